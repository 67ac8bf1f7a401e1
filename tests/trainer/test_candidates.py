"""Reading and appending candidates, also after a killed run."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from querylift.plugin.errors import DataError, SettingsError
from querylift.trainer.candidates import Candidate, JsonLinesAppender, SourceDocument, read_candidates

RAINBOW = Candidate("1", "what causes a rainbow", "zero-shot", "m", "Light in drops of water.", {"sample": 0})


def _write_file(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_candidate_is_read_back_as_it_was_write_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.jsonl"
    chinese = Candidate("2", "谁偿还？", "few-shot", "m", "夫妻", {"params": {"inner": [1]}}, ended=False)
    with JsonLinesAppender(path) as appender:
        appender.append(RAINBOW.to_json())
        appender.append(chinese.to_json())
    assert list(read_candidates(path)) == [RAINBOW, chinese]
    assert "谁偿还" in path.read_text(encoding="utf-8")


def test_the_key_depends_on_the_request_and_not_on_the_answer() -> None:
    keys = {Candidate("1", "q", "zero-shot", "m", text, {"a": 1, "b": 2}).request_key for text in ("", "one", "two")}
    assert keys == {Candidate("1", "q", "zero-shot", "m", "", {"b": 2, "a": 1}).request_key}
    different_requests = [
        Candidate("2", "q", "zero-shot", "m", "", {"a": 1}),
        Candidate("1", "r", "zero-shot", "m", "", {"a": 1}),
        Candidate("1", "q", "few-shot", "m", "", {"a": 1}),
        Candidate("1", "q", "zero-shot", "n", "", {"a": 1}),
        Candidate("1", "q", "zero-shot", "m", "", {"a": 2}),
    ]
    assert len({request.request_key for request in different_requests} | keys) == 6


def test_the_document_of_a_candidate_is_read_back_and_changes_no_key(tmp_path: Path) -> None:
    candidate = replace(RAINBOW, document=SourceDocument("docs", "d1"))
    path = _write_file(tmp_path / "c.jsonl", json.dumps(candidate.to_json()) + "\n")
    assert list(read_candidates(path)) == [candidate]
    assert candidate.request_key == RAINBOW.request_key
    assert "document" not in RAINBOW.to_json()


@pytest.mark.parametrize(
    ("fields", "document"),
    [
        ({"params": {"doc_id": 7}}, SourceDocument("", "7")),
        ({"document": {"doc_id": "7"}}, SourceDocument("", "7")),
        ({"document": "7", "params": {}}, None),
        ({"document": {}, "params": {"doc_id": ""}}, None),
    ],
)
def test_an_older_or_odd_row_gives_what_it_says_of_its_document(
    tmp_path: Path, fields: dict[str, object], document: SourceDocument | None
) -> None:
    row = {"query_id": "1", "query": "q", "text": "t", **fields}
    path = _write_file(tmp_path / "c.jsonl", json.dumps(row) + "\n")
    assert [candidate.document for candidate in read_candidates(path)] == [document]


def test_method_model_and_params_may_be_left_out(tmp_path: Path) -> None:
    path = _write_file(tmp_path / "c.jsonl", '{"query_id": "1", "query": "q", "text": ""}\n')
    assert list(read_candidates(path)) == [Candidate("1", "q", "imported", "unknown", "")]


def test_a_gzip_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(RAINBOW.to_json()).encode() + b"\n"))
    assert list(read_candidates(path)) == [RAINBOW]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"c\.jsonl:2: this line is not JSON"),
        ("[]", r"c\.jsonl:2: this line is a JSON list; write an object"),
        ('{"query_id": 3.5, "query": "q", "text": "t"}', r"c\.jsonl:2: 'query_id' is a float; give every line its own"),
        ('{"query": "q", "text": "t"}', r"c\.jsonl:2: 'query_id' is missing; give every line its own text or number"),
        ('{"query_id": "3", "query": " ", "text": "t"}', r"c\.jsonl:2: 'query' is ' '; write it as a text"),
        ('{"query_id": "3", "query": "q"}', r"c\.jsonl:2: 'text' is None"),
        ('{"query_id": "3", "query": "q", "text": "t", "params": [1]}', r"c\.jsonl:2: 'params' is \[1\]"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = _write_file(tmp_path / "c.jsonl", json.dumps(RAINBOW.to_json()) + "\n", line + "\n")
    with pytest.raises(DataError, match=problem):
        list(read_candidates(path))


@pytest.mark.parametrize("incomplete", ['{"query_id": "2", "qu', "{", '{"text": "' + "x" * 200_000])
def test_an_incomplete_last_line_is_removed_and_the_file_goes_on(tmp_path: Path, incomplete: str) -> None:
    path = _write_file(tmp_path / "c.jsonl", json.dumps(RAINBOW.to_json()) + "\n", incomplete)
    with JsonLinesAppender(path) as appender:
        assert list(read_candidates(path)) == [RAINBOW]
        appender.append(RAINBOW.to_json())
        assert list(read_candidates(path)) == [RAINBOW, RAINBOW]


def test_a_file_of_one_incomplete_line_becomes_empty(tmp_path: Path) -> None:
    path = _write_file(tmp_path / "c.jsonl", "x" * 70_000)
    with JsonLinesAppender(path):
        assert path.read_bytes() == b""


def test_a_complete_file_is_left_unchanged(tmp_path: Path) -> None:
    path = _write_file(tmp_path / "c.jsonl", json.dumps(RAINBOW.to_json()) + "\n")
    original = path.read_bytes()
    with JsonLinesAppender(path):
        pass
    assert path.read_bytes() == original


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be written .*; name another file"):
        JsonLinesAppender(tmp_path)
    with pytest.raises(SettingsError, match=r"gone\.jsonl"):
        list(read_candidates(tmp_path / "gone.jsonl"))
