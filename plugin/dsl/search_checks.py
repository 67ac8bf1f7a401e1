"""Checks of a whole search that rule out an expansion, whatever its query is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from querylift.plugin.dsl.url_parameters import UrlParameters
from querylift.plugin.outcome import Skip
from querylift.plugin.policy import Policy

_SAMPLERS = ("sampler", "diversified_sampler")
"""Aggregations over the hits with the best scores."""


_MAX_SORT_KEYS = 64


def check_search(body: dict[str, Any], url_parameters: UrlParameters, policy: Policy) -> None:
    """Raise Skip when something beside the query rules out an expansion."""
    if url_parameters.q is not None:
        raise Skip("uri-query")
    if (url_parameters.size if url_parameters.size is not None else body.get("size")) in (0, "0"):
        raise Skip("size-0")
    if "min_score" in body:
        raise Skip("min-score")
    if url_parameters.scroll is not None and policy.mode == "widen":
        raise Skip("scroll")
    if not sorts_by_score(url_parameters.sort if url_parameters.sort is not None else body.get("sort")):
        raise Skip("sort")
    if any(contains_key(body.get(key), *_SAMPLERS) for key in ("aggs", "aggregations")):
        raise Skip("min-score")
    if _would_highlight_expansion(body):
        raise Skip("highlight")


def shows_query_words(body: dict[str, Any], url_parameters: UrlParameters) -> bool:
    """Whether the answer will show the words of the rewritten query: through `profile`, or `explain` at any depth."""
    is_explained = url_parameters.explain not in (None, "false") or contains_key(body, "explain")
    return is_explained or body.get("profile") not in (None, False, "false")


def sorts_by_score(sort: Any) -> bool:
    """Whether the score affects the order: there is no sort, or `_score` is one of its first 64 keys."""
    if sort is None or sort == []:
        return True
    if isinstance(sort, str):
        return any(key.split(":")[0].strip() == "_score" for key in sort.split(",", _MAX_SORT_KEYS)[:_MAX_SORT_KEYS])
    if isinstance(sort, dict):
        return "_score" in sort
    if not isinstance(sort, list):
        return False
    return any(sorts_by_score(key) for key in sort[:_MAX_SORT_KEYS] if isinstance(key, str | dict))


def contains_key(value: Any, *keys: str) -> bool:
    """Whether one of `keys` is a key anywhere in `value`."""
    names = set(keys)
    return any(not names.isdisjoint(json_object) for json_object in iterate_objects(value))


def iterate_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in `value`. The search is iterative, as clients choose the depth."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def get_only_item(value: Any) -> tuple[str, Any]:
    """Return the kind and the content of a clause. Return ("", None) when it is not an object with one key."""
    if isinstance(value, dict) and len(value) == 1:
        kind, content = next(iter(value.items()))
        return kind, content
    return "", None


def _would_highlight_expansion(body: dict[str, Any]) -> bool:
    """Whether expansion words would be highlighted, and one highlight_query at the top could not prevent it.

    That happens for hits inside hits (top_hits, collapse), and when the body has more than one query.
    """
    nested_parts = (body.get(key) for key in ("aggs", "aggregations", "collapse", "retriever"))
    if any(contains_key(part, "highlight") for part in nested_parts):
        return True
    highlight = body.get("highlight")
    return isinstance(highlight, dict) and "highlight_query" not in highlight and (_is_hybrid(body) or _is_fused(body))


def _is_hybrid(body: dict[str, Any]) -> bool:
    return isinstance(body.get("query"), dict) and "hybrid" in body["query"]


def _is_fused(body: dict[str, Any]) -> bool:
    """Whether a retriever runs several queries, or has filters, which would be highlighted too."""
    kind, content = get_only_item(body.get("retriever"))
    return "retriever" in body and (kind != "standard" or not isinstance(content, dict) or "filter" in content)
