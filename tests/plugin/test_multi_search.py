"""An `_msearch` body is cut as the engine cuts it, and put together with only the expanded bodies changed."""

import http.client
import json
from collections.abc import Iterator

import pytest

from querylift.index_tools.engine import Engine
from querylift.plugin.flow import FlowResult
from querylift.plugin.multi_search import join_msearch, split_msearch
from querylift.plugin.outcome import Outcome, Skip
from querylift.plugin.settings import parse_settings

HEADER = b'{"index":"msearch-lines"}\n'
BODY = b'{"query":{"match":{"text":"page"}}}\n'
REWRITE = b'{"query":{"match":{"text":"fetch"}}}'
EXPANDED = FlowResult(REWRITE, Outcome("expanded"))
UNCHANGED = FlowResult(None, Outcome("skipped", "index"))

BODIES = {
    "one search": HEADER + BODY,
    "two searches": HEADER + BODY + HEADER + BODY,
    "no newline at the end": HEADER + BODY[:-1],
    "no newline after two searches": HEADER + BODY + HEADER + BODY[:-1],
    "spaces in place of the last newline": HEADER + BODY + b"  ",
    "an empty line before": b"\n" + HEADER + BODY,
    "two empty lines before": b"\n\n" + HEADER + BODY,
    "a carriage return before": b"\r\n" + HEADER + BODY,
    "an empty line after": HEADER + BODY + b"\n",
    "a blank line after": HEADER + BODY + b"  \n",
    "two empty lines after": HEADER + BODY + b"\n\n",
    "empty lines before and after": b"\n" + HEADER + BODY + b"\n",
    "an empty line between": HEADER + BODY + b"\n" + HEADER + BODY,
    "an empty header": b"\n" + b"\n" + BODY,
    "a header of spaces": b"  \n" + BODY,
    "a header without a body": HEADER + BODY + HEADER,
    "an empty body": HEADER + b"\n" + HEADER + BODY,
    "Windows lines": HEADER.replace(b"\n", b"\r\n") + BODY.replace(b"\n", b"\r\n"),
    "a header that is not JSON": b"index\n" + BODY,
    "newlines only": b"\n\n",
}


@pytest.fixture(scope="module")
def engine_url(opensearch: str) -> Iterator[str]:
    with Engine(parse_settings({"engine": opensearch})) as engine:
        engine.call("PUT", "/msearch-lines/_doc/1?refresh=true", {"text": "fetch a page"})
        yield opensearch
        engine.call("DELETE", "/msearch-lines")


def _send_msearch(engine_url: str, raw: bytes) -> tuple[int, list[int]]:
    """Return the status of the answer, and the number of hits of each search in it."""
    connection = http.client.HTTPConnection(engine_url.removeprefix("http://"), timeout=60)
    headers = {"Content-Type": "application/x-ndjson"}
    connection.request("POST", "/msearch-lines/_msearch", raw, headers)
    reply = connection.getresponse()
    answer = json.loads(reply.read())
    connection.close()
    return reply.status, [response["hits"]["total"]["value"] for response in answer.get("responses", [])]


@pytest.mark.engine
@pytest.mark.parametrize("raw", BODIES.values(), ids=BODIES.keys())
def test_every_search_that_the_engine_sees_is_found_and_the_engine_takes_the_rewrite_alike(
    engine_url: str, raw: bytes
) -> None:
    status, hit_counts = _send_msearch(engine_url, raw)
    try:
        multi = split_msearch(raw, "msearch-lines")
    except Skip as skip:
        assert (skip.reason, status) in {("no-newline", 400), ("not-json", 400)}
        return
    if status == 200:
        assert [search.body.strip() for search in multi.searches] == [BODY.strip()] * len(hit_counts)
    assert join_msearch(multi, [UNCHANGED] * len(multi.searches)) == raw
    results = [EXPANDED if search.body.strip() == BODY.strip() else UNCHANGED for search in multi.searches]
    assert _send_msearch(engine_url, join_msearch(multi, results)) == (status, hit_counts)


def test_a_body_without_a_final_newline_stays_as_it_is() -> None:
    with pytest.raises(Skip, match="does not end with a newline"):
        split_msearch(HEADER + BODY[:-1], None)


def test_an_empty_line_before_and_after_stays_where_it_is() -> None:
    multi = split_msearch(b"\n" + HEADER + BODY + b"\n", None)
    assert [search.index for search in multi.searches] == ["msearch-lines"]
    assert join_msearch(multi, [EXPANDED]) == b"\n" + HEADER + REWRITE + b"\n\n"


def test_only_the_lines_of_expanded_searches_change() -> None:
    multi = split_msearch(HEADER + BODY + b'{ "index" : "other" }\n{"query":{ }}\n', None)
    assert join_msearch(multi, [EXPANDED, UNCHANGED]) == HEADER + REWRITE + b'\n{ "index" : "other" }\n{"query":{ }}\n'


@pytest.mark.parametrize(
    ("header", "index"),
    [(b"{}", "url"), (b"", "url"), (b'{"index":["a","b"]}', "a,b"), (b'{"index":"a"}', "a"), (b'{"index":[]}', "url")],
)
def test_the_index_of_a_header_goes_before_the_index_of_the_url(header: bytes, index: str) -> None:
    raw = HEADER + BODY + header + b"\n{}\n"
    assert split_msearch(raw, "url").searches[1].index == index


def test_a_header_at_the_end_without_a_body_counts_as_nothing() -> None:
    multi = split_msearch(HEADER + BODY + HEADER, None)
    assert len(multi.searches) == 1
    assert join_msearch(multi, [EXPANDED]) == HEADER + REWRITE + b"\n" + HEADER


def test_128_searches_between_empty_lines_are_read_and_129_are_not() -> None:
    assert len(split_msearch(b"\n" + b"{}\n{}\n" * 128 + b"\n", "docs").searches) == 128
    with pytest.raises(Skip) as skip:
        split_msearch(b"{}\n{}\n" * 100_000, "docs")
    assert skip.value.reason == "too-many-searches"


def test_an_msearch_with_very_many_values_stays_unread() -> None:
    body = b'{"query":{"terms":{"id":[%s]}}}' % b",".join([b"1"] * 100)
    with pytest.raises(Skip) as skip:
        split_msearch((b"{}\n" + body + b"\n") * 100, "docs")
    assert skip.value.reason == "too-many-values"


@pytest.mark.parametrize("header", [b'{"index":"a","indices":"b"}', b'{"indices":["b"],"index":"a"}'])
def test_a_header_with_both_index_and_indices_names_no_index_for_certain(header: bytes) -> None:
    assert split_msearch(header + b"\n{}\n", "url").searches[0].index is None
