"""Candidates as they stand in a file, and the file after a kill."""

import gzip
import json
from pathlib import Path

import pytest

from querylift.plugin.errors import DataError, SettingsError
from querylift.trainer.candidates import Appender, Candidate, read

RAINBOW = Candidate("1", "what causes a rainbow", "zero-shot", "m", "Light in drops of water.", {"sample": 0})


def _written(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_candidate_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.jsonl"
    other = Candidate("2", "谁偿还？", "few-shot", "m", "夫妻", {"params": {"inner": [1]}})
    with Appender(path) as appender:
        appender.write(RAINBOW.to_json())
        appender.write(other.to_json())
    assert list(read(path)) == [RAINBOW, other]
    assert "谁偿还" in path.read_text(encoding="utf-8")


def test_the_key_follows_what_was_asked_and_not_what_was_answered() -> None:
    answers = {Candidate("1", "q", "zero-shot", "m", text, {"a": 1, "b": 2}).key for text in ("", "one", "two")}
    assert answers == {Candidate("1", "q", "zero-shot", "m", "", {"b": 2, "a": 1}).key}
    others = [
        Candidate("2", "q", "zero-shot", "m", "", {"a": 1}),
        Candidate("1", "r", "zero-shot", "m", "", {"a": 1}),
        Candidate("1", "q", "few-shot", "m", "", {"a": 1}),
        Candidate("1", "q", "zero-shot", "n", "", {"a": 1}),
        Candidate("1", "q", "zero-shot", "m", "", {"a": 2}),
    ]
    assert len({other.key for other in others} | answers) == 6


def test_method_model_and_params_may_be_left_out(tmp_path: Path) -> None:
    path = _written(tmp_path / "c.jsonl", '{"query_id": "1", "query": "q", "text": ""}\n')
    assert list(read(path)) == [Candidate("1", "q", "imported", "unknown", "")]


def test_a_gzip_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(RAINBOW.to_json()).encode() + b"\n"))
    assert list(read(path)) == [RAINBOW]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"c\.jsonl:2: not JSON"),
        ("[]", r"c\.jsonl:2: a JSON list, not an object"),
        ('{"query_id": 3, "query": "q", "text": "t"}', r"c\.jsonl:2: 'query_id' is 3; write it as a text"),
        ('{"query_id": "3", "query": " ", "text": "t"}', r"c\.jsonl:2: 'query' is ' '; write it as a text"),
        ('{"query_id": "3", "query": "q"}', r"c\.jsonl:2: 'text' is None"),
        ('{"query_id": "3", "query": "q", "text": "t", "params": [1]}', r"c\.jsonl:2: 'params' is \[1\]"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = _written(tmp_path / "c.jsonl", json.dumps(RAINBOW.to_json()) + "\n", line + "\n")
    with pytest.raises(DataError, match=problem):
        list(read(path))


@pytest.mark.parametrize("torn", ['{"query_id": "2", "qu', "{", '{"text": "' + "x" * 200_000])
def test_a_torn_last_line_is_cut_away_and_the_file_goes_on(tmp_path: Path, torn: str) -> None:
    path = _written(tmp_path / "c.jsonl", json.dumps(RAINBOW.to_json()) + "\n", torn)
    with Appender(path) as appender:
        assert list(read(path)) == [RAINBOW]
        appender.write(RAINBOW.to_json())
        assert list(read(path)) == [RAINBOW, RAINBOW]


def test_a_file_that_is_one_torn_line_begins_anew(tmp_path: Path) -> None:
    path = _written(tmp_path / "c.jsonl", "x" * 70_000)
    with Appender(path):
        assert path.read_bytes() == b""


def test_a_whole_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = _written(tmp_path / "c.jsonl", json.dumps(RAINBOW.to_json()) + "\n")
    before = path.read_bytes()
    with Appender(path):
        pass
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be written .*; name another file"):
        Appender(tmp_path)
    with pytest.raises(SettingsError, match=r"gone\.jsonl"):
        list(read(tmp_path / "gone.jsonl"))
