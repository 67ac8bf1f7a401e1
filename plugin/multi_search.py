"""Take an `_msearch` body apart into its searches, and put it together again. Lines are counted as the engines count them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.plugin import dsl
from querylift.plugin.experiments import Headers
from querylift.plugin.flow import FlowResult, Search
from querylift.plugin.outcome import Skip

MAX_SEARCHES = 128
"""An `_msearch` with more searches is sent on unread: reading it would delay every other search."""


@dataclass(frozen=True, slots=True)
class MultiSearch:
    """An `_msearch` body cut into lines. The body of search number i is line `first_body + 2 * i`."""

    lines: tuple[bytes, ...]
    first_body: int
    searches: tuple[Search, ...]


def split_msearch(
    raw: bytes,
    index: str | None,
    *,
    started_s: float | None = None,
    client: str = "",
    headers: Headers | None = None,
) -> MultiSearch:
    """Split an `_msearch` body into its searches.

    `index` is the index expression of the URL, `headers` are those of the request, and `started_s` is when it came. Raises
    Skip when there are too many searches or values, when a header is not JSON, or when the last line has no newline, which
    the engines refuse.

    As in the engines, one empty line may stand before the first header, any other blank line is a header without keys,
    and a header at the end that no body follows counts as nothing.
    """
    if raw.count(b"\n") > 2 * MAX_SEARCHES + 2:  # an empty line may stand before and after the searches
        raise Skip("too-many-searches")
    dsl.check_value_count(raw)
    if not raw.endswith(b"\n"):
        raise Skip("no-newline")
    lines = raw.split(b"\n")
    first_header = 1 if raw.startswith(b"\n") else 0
    searches = []
    for i in range(first_header, len(lines) - 2, 2):  # the last item is what follows the last newline: nothing
        header = dsl.parse_body(lines[i]) if lines[i].strip() else {}
        search_index = _read_header_index(header, index)
        searches.append(Search(search_index, lines[i + 1], client=client, started_s=started_s, headers=headers))
    return MultiSearch(tuple(lines), first_header + 1, tuple(searches))


def join_msearch(multi: MultiSearch, results: Sequence[FlowResult]) -> bytes:
    """Return the `_msearch` body with the rewritten searches in place. Every other line is the original one."""
    lines = list(multi.lines)
    for i, result in enumerate(results):
        if result.body is not None:
            lines[multi.first_body + 2 * i] = result.body
    return b"\n".join(lines)


def _read_header_index(header: Mapping[str, Any], default: str | None) -> str | None:
    """Return the index expression of an `_msearch` header, which may be a string or a list, or else `default`.

    None when the header has both `index` and `indices`. Only the engine knows which of them counts.
    """
    if "index" in header and "indices" in header:
        return None
    index = header.get("index", header.get("indices"))
    if isinstance(index, list) and all(isinstance(name, str) for name in index):
        return ",".join(index) or default
    return index if isinstance(index, str) and index else default
