"""Read a search body so that writing it again loses nothing, or refuse to read it."""

from __future__ import annotations

import json
import math
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from querylift.plugin.outcome import Skip


def parse_body(raw: bytes) -> dict[str, Any]:
    """Return the body as a dict.

    Raises Skip when the body is not a JSON object, or when `dump_body` could not write it without loss.
    """
    try:
        text = raw.decode("utf-8")
        body = _DECODER.decode(text)
    except RecursionError:
        raise Skip("too-deep") from None
    except ValueError as error:  # bad UTF-8, bad JSON, an integer of more than 4,300 digits
        raise Skip("not-json") from error
    if not isinstance(body, dict):
        raise Skip("not-json")
    return body


def dump_body(body: dict[str, Any]) -> bytes:
    """Return `body` as one line of JSON. The line is ASCII, so an escaped lone surrogate stays as the client sent it."""
    try:
        return _ENCODER.encode(body).encode("ascii")
    except RecursionError:
        raise Skip("too-deep") from None


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raises Skip when a key comes twice."""
    json_object = dict(pairs)
    if len(json_object) != len(pairs):
        raise Skip("duplicate-key")
    return json_object


def _parse_exact_float(literal: str) -> float:
    """Return the number of `literal`. Raises Skip when a float cannot hold it exactly."""
    value = float(literal)
    try:
        is_exact = math.isfinite(value) and Decimal(repr(value)) == Decimal(literal)
    except InvalidOperation:  # an exponent of more than 18 digits
        is_exact = False
    if not is_exact:
        raise Skip("number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Skip("not-json")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_float=_parse_exact_float, parse_constant=_refuse_constant
)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
