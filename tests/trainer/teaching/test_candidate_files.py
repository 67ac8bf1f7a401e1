"""Candidates that are imported from files, and appended to the output."""

import gzip
import json
from pathlib import Path

import pytest

from querylift.plugin.errors import DataError, SettingsError
from querylift.trainer.candidates import Candidate, read_candidates
from querylift.trainer.teaching.candidate_files import AppendResult, append_candidates, read_imported_candidates
from tests.helpers.paths import SHARED_DATA
from tests.helpers.teach_command import make_row, write_rows
from tests.helpers.teacher_server import PASSAGE, QUERIES


def test_matching_rows_are_cleaned_and_imported_once(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "in.jsonl",
        make_row("1", PASSAGE), make_row("1", "other", mode="fs"), make_row("2", "other", model="7B"), make_row("3", "Sure!\n\n"),
    )  # fmt: skip
    out, where = tmp_path / "out.jsonl", {"model": "72B", "params.mode": "zs"}
    assert append_candidates(read_imported_candidates(source, where), out) == AppendResult(written=1, empty=1)
    assert list(read_candidates(out)) == [
        Candidate("1", QUERIES["1"], "query2doc", "72B", "Sunlight bends in drops of water.", {"mode": "zs"})
    ]
    assert append_candidates(read_imported_candidates(source, where), out) == AppendResult(known=1, empty=1)


@pytest.mark.parametrize(
    ("answer", "passage"),
    [
        ("Sure, here's a passage:\nLight bends.", "Light bends."),
        ("Of course! Below is the answer:\n\nLight\nbends.", "Light bends."),
        ("Passage: Light bends.", "Light bends."),
        ("<think>A rainbow...</think>Light bends.", "Light bends."),
        ("Light bends <b>twice</b>.", "Light bends twice ."),
    ],
)
def test_a_chatty_introduction_is_removed(tmp_path: Path, answer: str, passage: str) -> None:
    append_candidates([Candidate("1", "q", "zero-shot", "m", answer)], tmp_path / "out.jsonl")
    assert [c.text for c in read_candidates(tmp_path / "out.jsonl")] == [passage]


def test_a_condition_may_accept_several_values(tmp_path: Path) -> None:
    rows = [
        make_row("1", "a"),
        make_row("1", "b", model="7B"),
        make_row("1", "c", model="gpt"),
        make_row("2", "d", method="mugi"),
    ]
    source = write_rows(tmp_path / "in.jsonl", *rows)
    where = {"model": {"72B", "7B"}, "method": "query2doc"}
    assert [c.text for c in read_imported_candidates(source, where)] == ["a", "b"]


def test_different_answers_to_one_request_are_numbered(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "in.jsonl", make_row("1", "a"), make_row("1", "b"), make_row("1", "a"), make_row("1", "c")
    )
    candidates = list(read_imported_candidates(source, {}))
    assert [(c.text, c.params) for c in candidates] == [
        ("a", {"mode": "zs"}), ("b", {"mode": "zs", "sample": 1}), ("c", {"mode": "zs", "sample": 2})
    ]  # fmt: skip
    assert len({c.request_key for c in candidates}) == 3


def test_an_id_of_two_queries_is_refused_unless_a_prefix_separates_them(tmp_path: Path) -> None:
    first_file = write_rows(tmp_path / "one.jsonl", make_row("1", "a"))
    second_file = write_rows(tmp_path / "two.jsonl", make_row("2", "x"), make_row("1", "b", query="another question"))
    out = tmp_path / "out.jsonl"
    append_candidates(read_imported_candidates(first_file, {}), out)
    with pytest.raises(SettingsError, match="query id '1' stands for two queries; give one file a prefix"):
        append_candidates(read_imported_candidates(second_file, {}), out)
    assert len(list(read_candidates(tmp_path / "out.jsonl"))) == 1
    assert append_candidates(read_imported_candidates(second_file, {}, prefix="two:"), out).written == 2
    assert [c.query_id for c in read_candidates(tmp_path / "out.jsonl")] == ["1", "two:2", "two:1"]


def test_a_broken_line_stops_the_import_and_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(json.dumps(make_row("1", "a")).encode() + b"\n\n{oops\n"))
    with pytest.raises(DataError, match=r"in\.jsonl\.gz:3: this line is not JSON"):
        append_candidates(read_imported_candidates(source, {}), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_table_is_imported_with_the_ids_of_the_queries_that_it_expands(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "table.jsonl",
        {"query": "What causes a  rainbow", "text": "light bends in drops"},
        {
            "query": "why do cats purr",
            "field": "body",
            "terms": {"felin": 2.0, "purr": 1.0},
            "surfaces": {"felin": "feline"},
        },
        {"query": "a query of no split", "text": "words"},
    )
    candidates = list(
        read_imported_candidates(source, {}, queries={"1": "what causes a rainbow", "2": "why do cats purr"})
    )
    assert [(c.query_id, c.text) for c in candidates[:2]] == [("1", "light bends in drops"), ("2", "feline purr")]
    assert (candidates[2].query_id[:6], len(candidates[2].query_id)) == ("query-", 22)
    (other,) = read_imported_candidates(write_rows(tmp_path / "b", {"query": "A query of no split", "text": "b"}), {})
    assert other.query_id == candidates[2].query_id


def test_a_number_as_the_id_of_a_query_becomes_text(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", make_row("1", "a") | {"query_id": 19335})
    assert [c.query_id for c in read_imported_candidates(source, {}, prefix="dl:")] == ["dl:19335"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"query": "q"}, r"in\.jsonl:1: 'text' is None; write it as a text"),
        ({"query": "q", "field": "f", "terms": {"a": 0}}, r"in\.jsonl:1: the expansion has no usable term"),
        ({"text": "words"}, r"in\.jsonl:1: 'query_id' is missing; give every line its own text or number"),
        ({"query": "q", "text": "words", "query_id": True}, r"in\.jsonl:1: 'query_id' is a bool"),
    ],
)
def test_a_row_of_a_table_without_words_or_query_is_named(
    tmp_path: Path, row: dict[str, object], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        list(read_imported_candidates(write_rows(tmp_path / "in.jsonl", row), {}))


@pytest.mark.data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the retrieval data is not beside the project (../shared/data)")
def test_published_expansions_are_imported_from_several_files(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    where = {"model": ("Qwen2.5-72B-Instruct", "Qwen2.5-7B-Instruct"), "params.mode": "zs", "method": "query2doc"}
    results = {
        name: append_candidates(
            read_imported_candidates(SHARED_DATA / "expansions" / f"{name}.jsonl.gz", where, prefix=f"{name}:"), out
        )
        for name in ("trec_covid", "trec_news", "trec_dl19")
    }
    candidates = list(read_candidates(out))
    keys = {c.request_key for c in candidates}
    assert len(keys) == len(candidates) == sum(result.written for result in results.values())
    assert results["trec_covid"].written >= 2 * 50
    assert {c.query_id.split(":")[0] for c in candidates} == {"trec_covid", "trec_news", "trec_dl19"}
    assert {c.model for c in candidates} == set(where["model"])
    chatty = [c for c in candidates if c.text.lower().startswith(("certainly", "sure", "here is", "here's"))]
    assert len(chatty) < len(candidates) / 100
