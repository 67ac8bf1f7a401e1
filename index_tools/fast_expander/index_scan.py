"""Pages through all hits of a search: by scroll, by a point in time, or by id where an engine has neither.

OpenSearch Serverless has no scroll. A point in time is read with `search_after` in the order of `_seq_no`, a number that
every engine keeps for each document. It is unique in a shard, but not across shards. Elasticsearch adds a number that tells
equal ones apart. On OpenSearch, each page begins again at the last number of the page before, and leaves out what it knows.

Pages in the order of the ids need no state in the engine. They cost it more, and they show what changes in the meantime.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import EngineError

_KEEP_ALIVE = "10m"
"""How long the engine keeps its state between two pages. Encoding a page takes seconds, or minutes on a busy machine."""
Hit = Mapping[str, Any]


def scan_hits(engine: Engine, expression: str, body: Mapping[str, Any]) -> Iterator[Sequence[Hit]]:
    """Yield every hit of a search in pages of the body's `size`. Raises EngineError."""
    try:
        answer = engine.call(
            "POST", f"/{expression}/_search", {**body, "sort": ["_doc"]}, params={"scroll": _KEEP_ALIVE}
        )
    except EngineError as refusal:
        point_in_time = _open_point_in_time(engine, expression)
        if point_in_time is not None:
            yield from _scan_point_in_time(engine, expression, body, *point_in_time)
            return
        try:
            answer = _search_after_id(engine, expression, body, None)
        except EngineError:
            raise refusal from None
        yield from _continue_by_id(engine, expression, body, answer)
    else:
        yield from _continue_scroll(engine, expression, answer)


def scan_point_in_time(engine: Engine, expression: str, body: Mapping[str, Any]) -> Iterator[Sequence[Hit]]:
    """Yield every hit of a search as `scan_hits` does, without a scroll. Raises EngineError."""
    point_in_time = _open_point_in_time(engine, expression)
    if point_in_time is None:
        raise EngineError(f"{engine.url} opens no point in time on {expression}; check the account's rights")
    yield from _scan_point_in_time(engine, expression, body, *point_in_time)


def _continue_scroll(engine: Engine, expression: str, answer: dict[str, Any]) -> Iterator[Sequence[Hit]]:
    scroll_id = answer.get("_scroll_id")
    try:
        while hits := answer["hits"]["hits"]:
            _check_shards(answer, expression)
            yield hits
            answer = engine.call("POST", "/_search/scroll", {"scroll": _KEEP_ALIVE, "scroll_id": scroll_id})
            scroll_id = answer.get("_scroll_id", scroll_id)
    finally:
        if scroll_id:
            engine.call("DELETE", "/_search/scroll", {"scroll_id": scroll_id}, params={"ignore": 404})


def _open_point_in_time(engine: Engine, expression: str) -> tuple[str, str, dict[str, Any]] | None:
    """Return the id of a new point in time, and the path and the body that close it. None when the engine opens none."""
    for path, key in ((f"/{expression}/_search/point_in_time", "pit_id"), (f"/{expression}/_pit", "id")):
        try:
            pit_id = str(engine.call("POST", path, params={"keep_alive": _KEEP_ALIVE})[key])
        except EngineError:
            continue
        if key == "pit_id":
            return pit_id, "/_search/point_in_time", {"pit_id": [pit_id]}
        return pit_id, "/_pit", {"id": pit_id}
    return None


def _scan_point_in_time(
    engine: Engine, expression: str, body: Mapping[str, Any], pit_id: str, path: str, closing_body: dict[str, Any]
) -> Iterator[Sequence[Hit]]:
    search = {**body, "pit": {"id": pit_id, "keep_alive": _KEEP_ALIVE}, "sort": [{"_seq_no": "asc"}]}
    known_keys: set[tuple[str, str]] = set()
    try:
        while True:
            answer = engine.call("POST", "/_search", search)
            _check_shards(answer, expression)
            hits = answer["hits"]["hits"]
            if new_hits := [hit for hit in hits if _get_key(hit) not in known_keys]:
                yield new_hits
            if len(hits) < search["size"]:
                return
            if not new_hits:  # The index has more shards than the page has hits.
                search["size"] *= 2
                continue
            last_values = hits[-1]["sort"]
            if len(last_values) > 1:
                search["search_after"] = last_values
            else:
                search["search_after"] = [last_values[0] - 1]
                known_keys = {_get_key(hit) for hit in hits if hit["sort"] == last_values}
    finally:
        engine.call("DELETE", path, closing_body, params={"ignore": 404})


def _continue_by_id(
    engine: Engine, expression: str, body: Mapping[str, Any], answer: dict[str, Any]
) -> Iterator[Sequence[Hit]]:
    while hits := answer["hits"]["hits"]:
        _check_shards(answer, expression)
        yield hits
        if len(hits) < body["size"]:
            return
        answer = _search_after_id(engine, expression, body, hits[-1]["sort"])


def _search_after_id(
    engine: Engine, expression: str, body: Mapping[str, Any], last_values: Sequence[Any] | None
) -> dict[str, Any]:
    """Return the next page in the order of the ids. Several indices may hold the same id."""
    from opensearchpy.exceptions import OpenSearchWarning

    search_after = {} if last_values is None else {"search_after": last_values}
    sort = [{"_id": "asc"}, {"_index": "asc"}]
    search = {**body, **search_after, "sort": sort}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OpenSearchWarning)  # sorting by id is deprecated, and there is nothing else
        answer: dict[str, Any] = engine.call("POST", f"/{expression}/_search", search)
    return answer


def _get_key(hit: Hit) -> tuple[str, str]:
    return hit["_index"], hit["_id"]


def _check_shards(answer: Mapping[str, Any], expression: str) -> None:
    if answer["_shards"]["failed"]:
        raise EngineError(f"{answer['_shards']['failed']} shards of {expression} did not answer; try again")
