"""A query log is read in several formats, the most frequent query first."""

import gzip
from pathlib import Path

import pytest

from querylift.plugin.errors import SettingsError
from querylift.plugin.warming.query_log import QueryLog, read_query_log


@pytest.mark.parametrize(
    ("lines", "queries", "query_count"),
    [
        (b"axon\nneuron\n", ("axon", "neuron"), 2),
        (b"axon\nneuron\nneuron\n", ("neuron", "axon"), 3),
        (b"axon\t3\nneuron\t12\n", ("neuron", "axon"), 2),
        (b"axon\t3\r\nneuron\t2\r\n neuron \t2\n", ("neuron", "axon"), 3),
        (b"axon terminal\naxon \t terminal\n", ("axon terminal",), 2),
        (b"\xef\xbb\xbfaxon\n\n  \n\t7\n", ("axon",), 1),
        (b'{"query": "axon"}\n{"query": "neuron", "count": 4, "user": 1}\n', ("neuron", "axon"), 2),
        (b'{axon}\n{"q": "neuron"}\n[1]\n', ("{axon}", '{"q": "neuron"}', "[1]"), 3),
        (b'{"query": ""}\n{"query": 5}\naxon\n', ('{"query": 5}', "axon"), 2),
        (b"axon\tmany\nneuron\t" + b"9" * 5000 + b"\n", ("axon\tmany", "neuron\t" + "9" * 5000), 2),
        (b"caf\xe9\n", ("caf\ufffd",), 1),
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
        (None, "does not exist; name a file with one query per line"),
        (b"\n \n", "holds no query; write one query per line"),
        (gzip.compress(b"axon\n" * 999, mtime=0)[:20], "cannot be read"),
        (b"\x1f\x8bno gzip at all", "cannot be read"),
    ],
)
def test_a_file_without_queries_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    with pytest.raises(SettingsError, match=sentence):
        read_query_log(tmp_path / "log")


def test_the_repr_of_a_log_has_no_query() -> None:
    assert repr(QueryLog(2, ("axon",))) == "QueryLog(2 queries, 1 distinct)"
