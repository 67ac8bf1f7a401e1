"""`querylift evaluate --judge` on a real index: queries without judgments get a table, a report and a conclusion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from querylift.index_tools.commands.evaluate import evaluate, evaluate_index
from querylift.index_tools.engine import Engine
from querylift.index_tools.judging.grade_source import OpenedJudge, describe_agreement
from querylift.index_tools.judging.judge_folder import Agreement
from querylift.plugin.commands.main import querylift
from querylift.plugin.errors import QueryliftError, SettingsError
from querylift.plugin.settings import enable_index, parse_settings, replace_generator
from tests.helpers.corpus_files import format_jsonl, write_text_file
from tests.helpers.expanders import create_index, fill_index, remove_indices
from tests.helpers.graders import OffScaleGrader, WordOverlapGrader

pytestmark = pytest.mark.engine
INDEX = "evaluate-judge-test"
DOCUMENTS = {
    "d1": {"contents": "axon", "title": "Axon", "text": "carries the nerve signal"},
    "d2": {"contents": "heart blood vessel", "title": "Heart", "text": "blood vessel"},
    "d3": {"contents": "heart muscle", "title": "", "text": "heart attack muscle"},
    "d4": {"contents": "nerve", "text": "a nerve"},
}
AGREEMENT = describe_agreement(Agreement(queries=40, kappa_grades=0.312, kappa_relevant=0.44, source="sheet.csv"))


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as client:
        create_index(client, INDEX)
        fill_index(client, INDEX, DOCUMENTS)
        yield client
        remove_indices(client, INDEX)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a working folder with two queries that nobody judged, and a table that expands the first."""
    write_text_file(tmp_path / "queries.tsv", "q1\tnerve signal\nq2\theart attack\n")
    write_text_file(tmp_path / "corpus" / "queries.jsonl", format_jsonl(q1="nerve signal", q2="heart attack"))
    write_text_file(tmp_path / "table.jsonl", '{"query": "nerve signal", "text": "axon", "model": "writer-7b"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate_with_judge(engine: Engine, *arguments: str, judge: OpenedJudge | None = None) -> None:
    """Do what the command does, with a judge that needs no folder."""
    options = evaluate.make_context("evaluate", ["--index", INDEX, "--mode", "widen", *arguments]).params
    settings = replace_generator(parse_settings({"engine": engine.url}), "table:table.jsonl")
    corpus = options.pop("corpus")
    settings = enable_index(settings, INDEX, mode="widen", weight=1)
    evaluate_index(settings, corpus, judge or OpenedJudge(WordOverlapGrader(), AGREEMENT), options)


def read_json(engine: Engine, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    evaluate_with_judge(engine, *arguments, "--json")
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_a_file_of_queries_alone_gets_a_table_and_advice_that_name_the_judge(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only with the expansion does the query `nerve signal` find d1, which holds both of its words."""
    evaluate_with_judge(engine, "--queries", "queries.tsv")
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "judged by word-overlap (taught by dictionary-1b); its agreement with people: kappa 0.31 over all grades, "
        "0.44 over relevant or not (40 queries, sheet.csv)" in text
    )
    assert "judged documents: 4 " in text
    assert "This rests on the grades of a model, word-overlap, and not on people's." in text


def test_the_measures_are_those_of_the_judges_grades_from_its_own_relevant_grade(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = read_json(engine, capsys, "--queries", "queries.tsv", "--out", "out")
    assert values["judged_by"]["judge"] == "word-overlap"
    assert values["relevant_from"] == 2
    plain, expanded = values["systems"]
    # q1 is graded d4: 1 and d1: 3. Without the expansion only d4 is a hit. The only relevant document of q2 is d3.
    assert plain["means"]["recall_at_100"] == 0.5
    assert expanded["means"]["recall_at_100"] == 1
    assert (folder / "out/qrels.txt").read_text().split("\n")[:2] == ["q1 0 d4 1", "q1 0 d1 3"]
    sidecar = json.loads((folder / "out/qrels.txt.judged.jsonl").read_text().splitlines()[0])
    assert (sidecar["model"], sidecar["probability"]) == ("word-overlap", 0.7)
    page = (folder / "out/report.html").read_text(encoding="utf-8")
    assert "<dt>Judged by</dt><dd><bdi>word-overlap (taught by dictionary-1b)</bdi></dd>" in page
    assert "kappa 0.31 over all grades" in page


def test_a_corpus_without_judgments_and_the_fields_that_the_judge_reads_may_be_named(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grader = WordOverlapGrader()
    arguments = ("corpus", "--judge-field", "contents", "--relevant-from", "1", "--json")
    evaluate_with_judge(engine, *arguments, judge=OpenedJudge(grader))
    values = json.loads(capsys.readouterr().out)
    assert (values["corpus"], values["relevant_from"]) == ("corpus", 1)
    assert values["judged_by"]["agreement"].endswith("was not measured; run `querylift judge check`")
    assert ("nerve signal", "nerve") in grader.graded_pairs


def test_a_query_without_a_relevant_document_is_not_counted_and_told(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text_file(folder / "queries.tsv", "q1\tnerve signal\nq2\tblood loss of the nerve\n")
    evaluate_with_judge(engine, "--queries", "queries.tsv")
    output = capsys.readouterr().out
    assert "not counted: 1 query without a document of grade 2 or more" in output
    assert "No difference beyond chance was seen with 1 query.\n" in output
    assert "\nrecall counts graded documents only, and the judge grades first hits only\n" in output
    assert max(map(len, output.splitlines())) <= 80


def test_only_a_judge_without_a_check_is_sent_to_a_person(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remedy = "Check them against a person: `querylift judge sample`, then `judge check`."
    evaluate_with_judge(engine, "--queries", "queries.tsv")
    assert remedy not in capsys.readouterr().out
    evaluate_with_judge(engine, "--queries", "queries.tsv", judge=OpenedJudge(WordOverlapGrader()))
    assert remedy in capsys.readouterr().out


def test_peoples_judgments_in_the_folder_of_the_results_are_never_written_over(engine: Engine, folder: Path) -> None:
    write_text_file(folder / "out/qrels.txt", "q1 0 d1 1\n")
    with pytest.raises(SettingsError, match=r"out/qrels\.txt exists and was not written by a judge"):
        evaluate_with_judge(engine, "--queries", "queries.tsv", "--out", "out")
    assert (folder / "out/qrels.txt").read_text() == "q1 0 d1 1\n"


def test_the_model_of_the_table_may_not_judge_its_own_expansions(engine: Engine, folder: Path) -> None:
    judge = OpenedJudge(WordOverlapGrader(teacher="big/Writer-7B"))
    with pytest.raises(SettingsError, match="writer-7b makes the expansions and also stands behind the judge"):
        evaluate_with_judge(engine, "--queries", "queries.tsv", judge=judge)
    evaluate_with_judge(engine, "--queries", "queries.tsv", "--same-model", judge=judge)


@pytest.mark.parametrize(
    ("queries", "sentence"),
    [
        ("\n", r"queries\.tsv holds no query"),
        ("q1\tzebra\n", "no query finds anything on evaluate-judge-test"),
        ("q1\tblood nerve loss\n", r"queries\.tsv cannot be measured: no query of the qrels has a document graded 2"),
    ],
)
def test_queries_that_cannot_be_judged_are_refused_in_a_sentence(
    engine: Engine, folder: Path, queries: str, sentence: str
) -> None:
    write_text_file(folder / "queries.tsv", queries)
    with pytest.raises(SettingsError, match=sentence):
        evaluate_with_judge(engine, "--queries", "queries.tsv")


def test_a_grade_off_the_scale_and_unreadable_documents_are_refused(engine: Engine, folder: Path) -> None:
    with pytest.raises(SettingsError, match="gave the grade 4, but its scale ends at 3; export the judge again"):
        evaluate_with_judge(engine, "--queries", "queries.tsv", judge=OpenedJudge(OffScaleGrader()))
    with pytest.raises(SettingsError, match="no document of evaluate-judge-test has a text in nowhere"):
        evaluate_with_judge(engine, "--queries", "queries.tsv", "--judge-field", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--queries", "queries.tsv"], "--queries is given without judgments; add --judge FOLDER"),
        ([], "no queries are named; give CORPUS, or --queries FILE and --judge FOLDER"),
    ],
)
def test_sources_that_do_not_fit_together_are_refused(folder: Path, arguments: list[str], sentence: str) -> None:
    command = ["evaluate", *arguments, "--index", INDEX, "--generator", "none", "--engine", "http://127.0.0.1:9"]
    result = CliRunner().invoke(querylift, command, standalone_mode=False)
    assert sentence in str(result.exception)


def test_a_corpus_and_a_file_of_queries_are_not_both_taken(engine: Engine, folder: Path) -> None:
    with pytest.raises(SettingsError, match="CORPUS and --queries are both given; give one of the two"):
        evaluate_with_judge(engine, "corpus", "--queries", "queries.tsv")
    with pytest.raises(SettingsError, match="--split is 'dev', but a file of queries has no splits"):
        evaluate_with_judge(engine, "--queries", "queries.tsv", "--split", "dev")


def test_the_models_behind_a_proxy_are_not_known_and_the_user_is_told(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine itself stands for a proxy that expands nothing, so nothing is concluded."""
    with pytest.raises(QueryliftError, match="no query was expanded"):
        evaluate_with_judge(engine, "--queries", "queries.tsv", "--via", engine.url)
    captured = capsys.readouterr()
    assert "make sure that none of them is word-overlap or its teacher dictionary-1b" in captured.err
    assert "judged by word-overlap" in captured.out
