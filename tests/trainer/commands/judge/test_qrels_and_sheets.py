"""`querylift judge qrels`, `sample` and `check` on a real index, with a judge that needs no model."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.corpora.trec_files import read_qrels
from querylift.index_tools.engine import Engine
from querylift.index_tools.judging.grade_source import OpenedJudge
from querylift.index_tools.judging.judged_qrels import find_grade_source
from querylift.index_tools.judging.learned_queries import compute_query_digests
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings, parse_settings
from querylift.trainer.commands.judge.check import compare_with_sheet, format_agreement
from querylift.trainer.commands.judge.qrels import judge_queries, qrels
from querylift.trainer.commands.judge.sample import sample, write_sample
from tests.helpers.corpus_files import write_text_file
from tests.helpers.expanders import (
    TEXTS,
    TOPICS,
    create_index,
    fill_index,
    remove_document_ids,
    remove_indices,
    write_expander,
    write_tiny_encoder,
)
from tests.helpers.graders import WordOverlapGrader

pytestmark = pytest.mark.engine
INDEX = "topics"
QUERIES = {
    f"{topic}{number}": " ".join(words[number : number + 3]) for topic, words in TOPICS.items() for number in (0, 5)
}
"""Eight queries of three words each. In every topic, a document that holds all three words is graded 3."""


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as client:
        create_index(client, INDEX)
        documents = {doc_id: {"contents": text, "text": text} for doc_id, text in TEXTS.items()}
        fill_index(client, INDEX, {**documents, "textless": {"contents": "sailing boats harbour"}})
        yield client
        remove_indices(client, INDEX)


@pytest.fixture(scope="module")
def expander(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expander")
    return write_expander(folder / "topics.expander", write_tiny_encoder(folder / "encoder"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = "".join(f"{query_id}\t{text}\n" for query_id, text in QUERIES.items())
    write_text_file(tmp_path / "queries.tsv", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse_options(command: Any, *arguments: str) -> dict[str, Any]:
    """Return the options of a command by their names."""
    fixed = ["--index", INDEX, "--judge", "unused", "--queries", "queries.tsv"]
    parameters = command.make_context(command.name, [*fixed, *arguments]).params
    return {name: value for name, value in parameters.items() if name not in ("config", "engine", "judge_folder")}


def judge_and_read(
    settings: Settings, capsys: pytest.CaptureFixture[str], *arguments: str, grader: WordOverlapGrader | None = None
) -> tuple[str, str]:
    """Return what `querylift judge qrels` prints on standard output and on standard error."""
    options = parse_options(qrels, "--out", "judged.qrels", *arguments)
    judge_queries(settings, OpenedJudge(grader or WordOverlapGrader()), options)
    captured = capsys.readouterr()
    return captured.out, captured.err


# --- judge qrels


def test_the_first_documents_of_all_systems_are_graded_and_the_model_is_recorded(
    engine: Engine, expander: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = parse_settings({"engine": engine.url, "generator": f"expander:{expander}"})
    output, _ = judge_and_read(settings, capsys, "--depth", "5")
    assert output.startswith("judged by word-overlap (taught by dictionary-1b); its agreement with people was\n    not")
    assert "queries    8: 8 with a document" in output
    assert "systems    plain: 40, feedback: 40, expander: 40, dense: " in output
    assert "next       querylift compare A.run B.run --qrels judged.qrels\n" in output
    judged = read_qrels(folder / "judged.qrels")
    assert judged.keys() == QUERIES.keys()
    assert judged["sea0"]["sea-0"] == 3
    assert judged["sea0"]["sea-2"] == 1
    assert "textless" not in judged["sea0"]
    assert "left out   " in output
    rows = [json.loads(line) for line in (folder / "judged.qrels.judged.jsonl").read_text().splitlines()]
    assert {(row["model"], row["teacher"], row["probability"]) for row in rows} == {
        ("word-overlap", "dictionary-1b", 0.7)
    }
    assert len(rows) == sum(map(len, judged.values()))
    assert find_grade_source(folder / "judged.qrels") is not None


def test_an_expander_without_ids_is_left_out_of_dense_with_a_note(
    engine: Engine, expander: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old_expander = write_expander(tmp_path / "old.expander", write_tiny_encoder(tmp_path / "encoder"))
    remove_document_ids(old_expander)
    systems = ("--system", "plain", "--system", "dense", "--system", f"expander:{old_expander}")
    output, notes = judge_and_read(parse_settings({"engine": engine.url}), capsys, *systems)
    assert "gives no ids of documents, so its nearest documents are left out" in notes
    assert "dense" not in output


def test_without_an_expander_plain_and_feedback_are_pooled_and_dense_is_refused(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = parse_settings({"engine": engine.url})
    output, _ = judge_and_read(settings, capsys, "--depth", "3")
    assert "systems    plain: 24, feedback: 24\n" in output
    with pytest.raises(SettingsError, match="--system is dense, but the settings name no fast expander for topics"):
        judge_and_read(settings, capsys, "--system", "dense")


def test_peoples_qrels_are_not_written_over_and_their_own_model_is_refused(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = parse_settings({"engine": engine.url, "http": {"model": "Big/Dictionary-1B"}})
    with pytest.raises(SettingsError, match="Big/Dictionary-1B makes the expansions and also stands behind the judge"):
        judge_and_read(settings, capsys, "--system", "http://127.0.0.1:9/v1")
    write_text_file(folder / "judged.qrels", "q1 0 d1 1\n")
    with pytest.raises(SettingsError, match=r"judged\.qrels exists and was not written by a judge"):
        judge_and_read(settings, capsys, "--system", "plain")
    assert (folder / "judged.qrels").read_text() == "q1 0 d1 1\n"


@pytest.mark.parametrize(
    ("queries", "sentence"),
    [("\n", r"queries\.tsv holds no query"), ("q1\tzebra\n", "no query finds a document on topics")],
)
def test_queries_without_text_or_without_hits_are_refused(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str], queries: str, sentence: str
) -> None:
    write_text_file(folder / "queries.tsv", queries)
    with pytest.raises(SettingsError, match=sentence):
        judge_and_read(parse_settings({"engine": engine.url}), capsys, "--system", "plain")
    assert not (folder / "judged.qrels").exists()


# --- judge sample and judge check


def write_sheet(engine: Engine, *arguments: str, learned_queries: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Write sheet.csv and return its rows. The judge learned from `learned_queries`."""
    options = parse_options(sample, "--out", "sheet.csv", "--pairs", "20", *arguments)
    judge = OpenedJudge(WordOverlapGrader(), learned_queries=compute_query_digests(learned_queries))
    options |= {"judge_folder": Path("my judge"), "engine": None}
    write_sample(parse_settings({"engine": engine.url}), judge, options)
    with Path("sheet.csv").open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def rate_sheet(rows: list[dict[str, str]], rate: Any) -> None:
    """Write sheet.csv with the ratings that `rate` gives to the numbers of its rows."""
    with Path("sheet.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**row, "rating": rate(number, row)} for number, row in enumerate(rows))


def grade_as_judge(number: int, row: dict[str, str]) -> int:
    words = set(row["query"].split())
    return len(words & set(row["document"].split()))


def test_a_sheet_is_drawn_over_queries_and_shows_no_grade_of_the_judge(engine: Engine, folder: Path) -> None:
    rows = write_sheet(engine)
    assert list(rows[0]) == ["query", "docid", "rating", "document"]
    assert len(rows) == 20
    assert {row["rating"] for row in rows} == {""}
    assert {row["query"] for row in rows} == set(QUERIES.values())
    assert {grade_as_judge(0, row) for row in rows} == {1, 2, 3}
    assert (folder / "sheet.quepid.csv").read_text().startswith("query,docid,rating\n")


def test_a_sheet_comes_with_the_command_that_compares_it(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sheet(engine, "--field", "text", "--field", "a title")
    captured = capsys.readouterr()
    command = "querylift judge check sheet.csv --judge 'my judge' --index topics --field text --field 'a title'"
    assert captured.out.endswith(f"Then compare:\n  {command}\n")
    assert "warning: none of the" in captured.err
    assert "documents that are read has a text in a title\n" in captured.err


def test_a_person_is_warned_before_the_work_when_the_judge_learned_from_the_queries(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sheet(engine, learned_queries=(QUERIES["sea0"], QUERIES["sea5"]))
    assert "warning: the judge learned from 2 of these 8 queries" in capsys.readouterr().err


def test_a_sheet_that_may_hold_ratings_is_not_written_over(engine: Engine, folder: Path) -> None:
    write_sheet(engine)
    with pytest.raises(SettingsError, match=r"sheet\.csv exists and may hold a person's ratings"):
        write_sheet(engine)


def test_a_person_who_agrees_with_the_judge_gives_kappa_1(engine: Engine, folder: Path) -> None:
    rows = write_sheet(engine)
    rate_sheet(rows, lambda number, row: "" if number < 4 else grade_as_judge(number, row))
    grader = WordOverlapGrader()
    agreement = compare_with_sheet(
        parse_settings({"engine": engine.url}), OpenedJudge(grader), Path("sheet.csv"), index=INDEX
    )
    assert (agreement.pair_count, agreement.unrated_count) == (16, 4)
    assert (agreement.kappa_grades, agreement.kappa_relevant, agreement.macro_f1) == (1, 1, 1)
    text = format_agreement(agreement, grader)
    assert f"rated pairs       16 of {agreement.query_count} queries; 4 without a rating, left out" in text
    assert "kappa, grades     1.000 (95% interval 1.000 to 1.000)" in text
    assert "judge 0  judge 1  judge 2  judge 3\nperson 0" in text


def test_a_person_who_contradicts_the_judge_gives_a_kappa_below_0(engine: Engine, folder: Path) -> None:
    rows = write_sheet(engine)
    rate_sheet(rows, lambda number, row: 3 if grade_as_judge(number, row) < 2 else 0)
    agreement = compare_with_sheet(
        parse_settings({"engine": engine.url}), OpenedJudge(WordOverlapGrader()), Path("sheet.csv"), index=INDEX
    )
    assert agreement.kappa_grades < 0
    assert agreement.kappa_relevant == pytest.approx(-1, abs=0.3)
    assert agreement.kappa_grades_interval[0] <= agreement.kappa_grades <= agreement.kappa_grades_interval[1]
    assert sum(map(sum, agreement.confusions)) == 20


def test_too_few_ratings_are_refused(engine: Engine, folder: Path) -> None:
    rate_sheet(write_sheet(engine), lambda number, row: 1 if number < 9 else "")
    settings = parse_settings({"engine": engine.url})
    with pytest.raises(SettingsError, match="the sheet has 9 rated pairs and 11 without a rating; rate at least 10"):
        compare_with_sheet(settings, OpenedJudge(WordOverlapGrader()), Path("sheet.csv"), index=INDEX)


def test_a_sheet_of_another_index_is_refused(engine: Engine, folder: Path) -> None:
    rate_sheet([row | {"docid": f"other-{row['docid']}"} for row in write_sheet(engine)], lambda number, row: 1)
    settings = parse_settings({"engine": engine.url})
    with pytest.raises(
        SettingsError, match=r"topics has no text of document 'other-.*' of the sheet \([0-9]+ such documents\)"
    ):
        compare_with_sheet(settings, OpenedJudge(WordOverlapGrader()), Path("sheet.csv"), index=INDEX)


def test_a_judge_that_learned_from_the_queries_of_a_sheet_is_warned_about_and_not_recorded(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_sheet(engine)
    rate_sheet(rows, grade_as_judge)
    judge = OpenedJudge(WordOverlapGrader(), learned_queries=compute_query_digests([rows[0]["query"].upper()]))
    settings = parse_settings({"engine": engine.url})
    compare_with_sheet(settings, judge, Path("sheet.csv"), index=INDEX)
    assert "warning: the judge learned from 1 of these" in capsys.readouterr().err
    with pytest.raises(SettingsError, match=r"sheet\.csv cannot be recorded: the judge learned from 1 of these"):
        compare_with_sheet(settings, judge, Path("sheet.csv"), index=INDEX, records=True)


def test_a_rated_document_that_the_index_lost_is_left_out_and_counted(engine: Engine, folder: Path) -> None:
    rows = write_sheet(engine)
    rate_sheet([rows[0] | {"docid": "lost"}, *rows[1:]], lambda number, row: 1)
    judge = OpenedJudge(WordOverlapGrader())
    agreement = compare_with_sheet(parse_settings({"engine": engine.url}), judge, Path("sheet.csv"), index=INDEX)
    assert (agreement.pair_count, agreement.missing_count) == (19, 1)
    assert "1 whose document is gone" in format_agreement(agreement, judge.grader)
