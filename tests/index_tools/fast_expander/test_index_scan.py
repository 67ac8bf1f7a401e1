"""Every document of an index is read once, with a scroll or without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.index_scan import scan_hits, scan_point_in_time
from querylift.plugin.errors import EngineError
from querylift.plugin.settings import parse_settings
from tests.helpers.expanders import create_index, fill_index, remove_indices

pytestmark = pytest.mark.engine
ONE, TWO = INDICES = ("expander-scan-1", "expander-scan-2")
IDS = {f"d{number}" for number in range(60)}


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as connected_engine:
        remove_indices(connected_engine, *INDICES)
        create_index(connected_engine, ONE, number_of_shards=5)
        create_index(connected_engine, TWO, number_of_shards=1)
        for index in INDICES:
            fill_index(connected_engine, index, {doc_id: f"text of {doc_id}" for doc_id in sorted(IDS)})
        yield connected_engine
        remove_indices(connected_engine, *INDICES)


class EngineWithoutScroll(Engine):
    """The engine behind a service that refuses to scroll, as OpenSearch Serverless does."""

    def call(self, method: str, path: str, body: Any = None, *, params: Any = None) -> Any:
        """Refuse a scroll, and send every other request."""
        if params and "scroll" in params:
            raise EngineError("request [scroll] is not supported")
        return super().call(method, path, body, params=params)


class EngineWithoutState(EngineWithoutScroll):
    """The engine behind a service that keeps no state between requests: neither a scroll nor a point in time."""

    def call(self, method: str, path: str, body: Any = None, *, params: Any = None) -> Any:
        """Refuse a point in time, and do the same as the other otherwise."""
        if path.endswith(("/point_in_time", "/_pit")):
            raise EngineError("no such route")
        return super().call(method, path, body, params=params)


def list_keys(pages: Iterator[Any]) -> list[tuple[str, str]]:
    return [(hit["_index"], hit["_id"]) for page in pages for hit in page]


def read_body(size: int) -> dict[str, Any]:
    return {"size": size, "query": {"match_all": {}}, "_source": False}


ALL_KEYS = sorted((index, doc_id) for index in INDICES for doc_id in IDS)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_point_in_time_gives_every_document_of_all_shards_once(engine: Engine, size: int) -> None:
    """The shards number their documents alike, and a page may be shorter than the number of shards."""
    assert sorted(list_keys(scan_point_in_time(engine, ",".join(INDICES), read_body(size)))) == ALL_KEYS


def test_a_scroll_gives_the_same_documents(engine: Engine) -> None:
    assert sorted(list_keys(scan_hits(engine, ",".join(INDICES), read_body(7)))) == ALL_KEYS


def test_without_a_scroll_a_point_in_time_is_read_and_closed(engine: Engine) -> None:
    with EngineWithoutScroll(parse_settings({"engine": engine.url})) as without_scroll:
        query = {"query": {"match": {"contents": "d7"}}}
        assert list_keys(scan_hits(without_scroll, ONE, read_body(5) | query)) == [(ONE, "d7")]
        assert sorted(list_keys(scan_hits(without_scroll, f"{ONE},{TWO}", read_body(5)))) == ALL_KEYS
    assert engine.call("GET", f"/{ONE}/_stats/search")["_all"]["total"]["search"].get("point_in_time_current", 0) == 0


@pytest.mark.parametrize("size", [1, 7, 60, 1000])
def test_without_a_scroll_and_a_point_in_time_pages_go_by_id(engine: Engine, size: int) -> None:
    with EngineWithoutState(parse_settings({"engine": engine.url})) as without_state:
        assert sorted(list_keys(scan_hits(without_state, f"{ONE},{TWO}", read_body(size)))) == ALL_KEYS
        with pytest.raises(EngineError, match=r"request \[scroll\] is not supported"):
            list_keys(scan_hits(without_state, "expander-scan-none", read_body(5)))


def test_the_first_refusal_is_told_when_there_is_no_such_index(engine: Engine) -> None:
    with pytest.raises(EngineError, match="no such index"):
        list_keys(scan_hits(engine, "expander-scan-none", read_body(5)))
    with pytest.raises(EngineError, match="opens no point in time on expander-scan-none"):
        list_keys(scan_point_in_time(engine, "expander-scan-none", read_body(5)))
