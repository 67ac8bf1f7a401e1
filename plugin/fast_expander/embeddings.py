"""The bodies of an OpenAI-compatible embeddings API: a request for vectors, and the vectors of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from querylift.plugin.errors import EndpointError

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array

_TEMPORARY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 529})


def make_embeddings_body(model: str, texts: Sequence[str], input_type: str) -> dict[str, Any]:
    """Return the JSON body of a request. `input_type` is left out when it is empty."""
    body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "float"}
    return {**body, "input_type": input_type} if input_type else body


def check_status(url: str, status: int, model: str) -> None:
    """Raise EndpointError unless `status` is 200. The answer's own words are left out, as they may quote a query."""
    if status == 200:
        return
    if status in (401, 403):
        remedy = "set encoder.api_key (QUERYLIFT_ENCODER__API_KEY)"
    elif status == 404:
        remedy = f"check that the URL ends in /v1 and that the endpoint has the model {model!r}"
    elif 300 <= status < 400:
        remedy = "redirects are not followed; name the URL that it redirects to"
    elif status in _TEMPORARY_STATUSES:
        remedy = "try again, or look into the endpoint's log"
    else:
        remedy = "lower encoder.max_chars or encoder.batch_size, or look into the endpoint's log"
    raise EndpointError(f"{url} answered with status {status}; {remedy}", is_temporary=status in _TEMPORARY_STATUSES)


def read_embeddings(url: str, content: bytes, *, count: int, width: int | None) -> Array:
    """Return the vectors of an answer to `count` texts, in their order: shape (count, width), length 1.

    A vector of zeros stays so. Raises EndpointError when the answer is anything else, also when its vectors have not
    `width` numbers. None stands for any width.
    """
    import numpy as np

    try:
        items = json.loads(content)["data"]
        values = [item["embedding"] for item in items]
        positions = [int(item.get("index", position)) for position, item in enumerate(items)]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise EndpointError(
            f"{url} answered without vectors; name an OpenAI-compatible endpoint, whose URL usually ends in /v1"
        ) from None
    if sorted(positions) != list(range(count)):
        raise EndpointError(
            f"{url} answered {count} texts with {len(values)} vectors of the numbers {positions[:5]}; "
            "use another endpoint"
        )
    try:
        vectors = np.array(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        vectors = np.empty(0)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise EndpointError(
            f"{url} answered with embeddings that are not lists of numbers of one length; "
            "serve a model that gives one vector for each text"
        )
    if not np.isfinite(vectors).all():
        raise EndpointError(f"{url} answered with numbers that are not finite; serve the model with other settings")
    if width is not None and vectors.shape[1] != width:
        raise EndpointError(
            f"{url} answered with vectors of {vectors.shape[1]} numbers, but the expander has {width}; "
            "serve the model that it was built with, or build it again"
        )
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)  # so that no square is too large
    vectors = (vectors / largest)[np.argsort(positions)]
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return (vectors / lengths).astype(np.float32)  # type: ignore[no-any-return]
