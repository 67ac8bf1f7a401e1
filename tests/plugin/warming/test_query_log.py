"""A query log is read in several formats, the most frequent query first."""

import gzip
import logging
from pathlib import Path

import pytest

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.flow import FlowResult
from querylift.plugin.outcome import Outcome
from querylift.plugin.proxy.journal import Journal
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.settings import Settings
from querylift.plugin.settings_tables.log import LogSettings
from querylift.plugin.warming.query_log import QueryLog, read_query_log


@pytest.mark.parametrize(
    ("lines", "queries", "query_count"),
    [
        (b"axon\nneuron\n", ("axon", "neuron"), 2),
        (b"axon\nneuron\nneuron\n", ("neuron", "axon"), 3),
        (b"axon\t3\nneuron\t12\n", ("neuron", "axon"), 2),
        (b"axon\t3\r\nneuron\t2\r\n neuron \t2\n", ("neuron", "axon"), 3),
        (b"axon terminal\naxon \v  terminal\n", ("axon terminal",), 2),
        (b"\xef\xbb\xbfaxon\n\n  \n\t7\n", ("axon",), 1),
        (b'{"query": "axon"}\n{"query": "neuron", "count": 4, "user": 1}\n', ("neuron", "axon"), 2),
        (b'{"user_query": "axon", "query_id": "0f"}\n{"query": ""}\n', ("axon",), 1),
        (b'axon\n{"user_query": "neuron", "count": 2}\n', ("neuron", "axon"), 2),
        (b"{axon}\n[1]\n", ("{axon}", "[1]"), 2),
        (b"paris, texas\nrome, georgia\nlondon, ohio\n", ("paris, texas", "rome, georgia", "london, ohio"), 3),
        (b"axon,3\nneuron\n", ("axon,3", "neuron"), 2),
        ("café\nthé\n".encode(), ("café", "thé"), 2),
    ],
)
def test_a_log_is_read_with_the_most_frequent_query_first(
    tmp_path: Path, lines: bytes, queries: tuple[str, ...], query_count: int
) -> None:
    (tmp_path / "plain").write_bytes(lines)
    (tmp_path / "gzip").write_bytes(gzip.compress(lines))
    for name in ("plain", "gzip"):
        assert read_query_log(tmp_path / name) == QueryLog(query_count, queries)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory; name another file"),
        (b"\n \n", "holds no query; write one query per line"),
    ],
)
def test_a_file_without_queries_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    with pytest.raises(SettingsError, match=sentence):
        read_query_log(tmp_path / "log")


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        (gzip.compress(b"axon\n" * 999)[:20], 1, "the gzip file is broken"),
        (b"axon\ncaf\xe9\n", 2, "it looks like latin1; convert it: iconv -f latin1 -t utf-8"),
        ("axon\n".encode("utf-16"), 1, "the file is UTF-16"),
        (b"axon\t12.0\n", 1, "the count after the tab is '12.0'; write a whole number, such as 12"),
        (b"axon\t7\nneuron\t1,234\n", 2, "the count after the tab is '1,234'"),
        (b"axon\t-3\n", 1, "the count after the tab is '-3'"),
        (b"axon\t1_0\n", 1, "the count after the tab is '1_0'"),
        (b"axon\tmany\n", 1, "the count after the tab is 'many'"),
        (b"axon\t" + b"9" * 5000 + b"\n", 1, "the count after the tab is '99999999999999999999...'"),
        (b"axon\t7\t2026-11-28\n", 1, "this line has 3 columns; write the query, a tab and the count"),
        (b"query,count\naxon terminal,3\n", 1, "this line is a heading of CSV; write the query, a tab and the count"),
        (b'axon terminal,3\n"nerve, vagus",12\n', 1, "every line has 2 columns with ',' between them, like CSV"),
        (b"axon;2026-11-27;de\nnerve;2026-11-28;de\ncell;2026-11-28;fr\n", 1, "every line has 3 columns with ';'"),
        (b'{"query": "axon"}\n{"q": "neuron"}\n', 2, 'this object has no text under "query" or "user_query"'),
        (b'{"query": 5}\n', 1, 'this object has no text under "query" or "user_query"'),
        (b'{"query": "axon", "count": 12.0}\n', 1, "the count is 12.0; write a whole number"),
        (b'{"query": "axon", "count": "12"}\n', 1, 'the count is "12"; write a whole number'),
        (b'{"query": "axon", "count": -3}\n', 1, "the count is -3; write a whole number"),
        (b'{"query": "axon", "count": true}\n', 1, "the count is true; write a whole number"),
        (b'{"query": "axon"}\n{"query": "neuron"\n', 2, "this line is not JSON"),
        (b'{"query": "axon"}\nneuron\n', 2, "this line is not JSON"),
        (b'{"query_id": "0f", "user_query": "0f"}\n', 1, "this line has the query's hash, not its text"),
        (b'{"user_query": "0f", "query_attributes": {"query_hash": "0f"}}\n', 1, "this line has the query's hash"),
    ],
)
def test_a_line_that_is_no_query_is_named_before_anything_is_warmed(
    tmp_path: Path, content: bytes, line: int, sentence: str
) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_query_log(tmp_path / "log")
    assert (caught.value.path, caught.value.line) == (str(tmp_path / "log"), line)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("with_text", [True, False])
def test_the_search_log_of_the_proxy_can_be_warmed_when_it_holds_the_texts(
    tmp_path: Path, with_text: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal itself writes the line, so that both sides keep the same shape."""
    journal = Journal(Metrics(), Settings(log=LogSettings(searches=True, query_text=with_text)))
    with caplog.at_level(logging.INFO, "querylift.search"):
        journal.record_search("docs", FlowResult(None, Outcome("late", "budget"), "axon terminal"), 0.002)
    (tmp_path / "log").write_text(caplog.messages[-1] + "\n", encoding="utf-8")
    if with_text:
        assert read_query_log(tmp_path / "log").queries == ("axon terminal",)
        return
    with pytest.raises(DataError, match=r"log:1: .*hash, not its text; log with log\.query_text = true"):
        read_query_log(tmp_path / "log")


def test_the_repr_of_a_log_has_no_query() -> None:
    assert repr(QueryLog(2, ("axon",))) == "QueryLog(2 queries, 1 distinct)"
