"""Files of a model's grades: what they hold, what tells them apart, and what they never replace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from querylift.index_tools.commands.compare import compare
from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.corpora.trec_files import read_qrels, write_run
from querylift.index_tools.evaluation.experiment import create_task
from querylift.index_tools.judging.grade_source import GradeSource
from querylift.index_tools.judging.judged_qrels import (
    ModelJudgment,
    check_replaceable_qrels,
    choose_relevant_grade,
    find_grade_source,
    list_judgments,
    write_judged_qrels,
    write_peoples_qrels,
)
from querylift.plugin.commands.main import querylift
from querylift.plugin.errors import DataError, SettingsError
from tests.helpers.corpus_files import write_text_file

SOURCE = GradeSource("judge-minilm", "qwen3-235b", "2026-11-29", "its agreement with people was not measured", 2)
JUDGMENTS = (ModelJudgment("q1", "d1", 3, 0.91234), ModelJudgment("q1", "d2", 0, 0.5), ModelJudgment("q2", "d1", 1))


def test_the_grades_are_trec_qrels_and_the_sidecar_names_the_model(tmp_path: Path) -> None:
    path = tmp_path / "dev.qrels"
    write_judged_qrels(path, JUDGMENTS, SOURCE)
    assert path.read_text() == "q1 0 d1 3\nq1 0 d2 0\nq2 0 d1 1\n"
    rows = [json.loads(line) for line in (tmp_path / "dev.qrels.judged.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "query_id": "q1",
        "doc_id": "d1",
        "grade": 3,
        "probability": 0.9123,
        "model": "judge-minilm",
        "teacher": "qwen3-235b",
        "date": "2026-11-29",
        "relevant_from": 2,
    }
    assert rows[2]["probability"] is None
    assert find_grade_source(path) == GradeSource("judge-minilm", "qwen3-235b", "2026-11-29", relevant_from=2)
    assert list_judgments(read_qrels(path))[1] == ModelJudgment("q1", "d2", 0)


def test_a_file_of_qrels_without_a_sidecar_is_taken_for_peoples_and_stays(tmp_path: Path) -> None:
    path = write_text_file(tmp_path / "dev.qrels", "q1 0 d1 1\n")
    assert find_grade_source(path) is None
    with pytest.raises(SettingsError, match=r"dev\.qrels exists and was not written by a judge; name another file"):
        write_judged_qrels(path, JUDGMENTS, SOURCE)
    assert path.read_text() == "q1 0 d1 1\n"
    assert [file.name for file in tmp_path.iterdir()] == ["dev.qrels"]


def test_a_judges_own_file_may_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "dev.qrels"
    write_judged_qrels(path, JUDGMENTS, SOURCE)
    check_replaceable_qrels(path)
    write_judged_qrels(path, JUDGMENTS[:1], SOURCE)
    assert read_qrels(path) == {"q1": {"d1": 3}}


def test_peoples_judgments_in_place_of_a_judges_are_no_longer_told_as_a_models(tmp_path: Path) -> None:
    path = tmp_path / "qrels.txt"
    write_judged_qrels(path, JUDGMENTS, SOURCE)
    write_peoples_qrels(path, {"q1": {"d1": 1}})
    assert find_grade_source(path) is None


def test_an_id_that_no_trec_file_can_hold_leaves_no_file_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'d 1' cannot stand in a TREC file"):
        write_judged_qrels(tmp_path / "dev.qrels", [ModelJudgment("q1", "d 1", 1, 0.5)], SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_several_models_in_one_sidecar_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "dev.qrels"
    write_judged_qrels(path, JUDGMENTS, SOURCE)
    sidecar = tmp_path / "dev.qrels.judged.jsonl"
    sidecar.write_text(sidecar.read_text().replace("judge-minilm", "judge-bert", 1))
    source = find_grade_source(path)
    assert source is not None
    assert source.sentence == "judged by judge-bert, judge-minilm (taught by qwen3-235b)"


@pytest.mark.parametrize("line", ['{"query_id": "q1"}', '{"model": 1, "teacher": "t", "date": "d"}', "no JSON"])
def test_a_broken_sidecar_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    write_text_file(tmp_path / "dev.qrels", "q1 0 d1 1\n")
    write_text_file(tmp_path / "dev.qrels.judged.jsonl", line + "\n")
    with pytest.raises(DataError, match=r"dev\.qrels\.judged\.jsonl:1: "):
        find_grade_source(tmp_path / "dev.qrels")


# --- where the model is named


@pytest.mark.parametrize("kind", ["trec", "beir"])
def test_a_corpus_whose_qrels_a_model_made_is_told_as_judged_by_it(tmp_path: Path, kind: str) -> None:
    write_text_file(tmp_path / "queries.jsonl", '{"_id": "q1", "text": "nerve"}\n{"_id": "q2", "text": "heart"}\n')
    write_text_file(tmp_path / "topics.tsv", "q1\tnerve\nq2\theart\n")
    qrels_path = tmp_path / ("qrels.txt" if kind == "trec" else "qrels/dev.tsv")
    qrels_path.parent.mkdir(exist_ok=True)
    write_judged_qrels(qrels_path, JUDGMENTS, SOURCE)
    task = create_task(load_corpus(f"{kind}:{tmp_path}"), "dev" if kind == "beir" else None, "index")
    assert task.judged_by == GradeSource("judge-minilm", "qwen3-235b", "2026-11-29", relevant_from=2)
    (qrels_path.parent / f"{qrels_path.name}.judged.jsonl").unlink()
    assert create_task(load_corpus(f"{kind}:{tmp_path}"), task.split, "index").judged_by is None


def test_compare_names_the_model_in_its_table_its_json_and_its_report(tmp_path: Path) -> None:
    write_judged_qrels(tmp_path / "dev.qrels", JUDGMENTS, SOURCE)
    for name, ids in {"a.run": ["d2", "d1"], "b.run": ["d1", "d2"]}.items():
        write_run(tmp_path / name, {"q1": ids, "q2": ids}, "made")
    files = [str(tmp_path / name) for name in ("a.run", "b.run", "--qrels", "dev.qrels", "--report", "page.html")]
    arguments = ["compare", *(file if "--" not in file else f"--{file.rpartition('--')[2]}" for file in files)]
    text = CliRunner().invoke(querylift, arguments, catch_exceptions=False).stdout
    assert text.endswith("\njudged by judge-minilm (taught by qwen3-235b)\n")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<dt>Judged by</dt><dd><bdi>judge-minilm (taught by qwen3-235b)</bdi></dd>" in page
    assert "No person judged these documents." in page
    values = json.loads(CliRunner().invoke(querylift, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert values["judged_by"]["judge"] == "judge-minilm"


def test_the_sidecar_says_which_grades_are_relevant(tmp_path: Path) -> None:
    path = tmp_path / "dev.qrels"
    write_judged_qrels(path, JUDGMENTS, SOURCE)
    assert choose_relevant_grade(find_grade_source(path)) == 2
    assert choose_relevant_grade(None) == 1
    assert choose_relevant_grade(GradeSource("judge-a", "", "2026-11-29"), default=3) == 3


def test_compare_counts_relevant_documents_as_the_sidecar_says(tmp_path: Path) -> None:
    write_judged_qrels(tmp_path / "dev.qrels", JUDGMENTS, SOURCE)
    (tmp_path / "a.run").write_text("q1 Q0 d2 1 2 a\nq1 Q0 d1 2 1 a\nq2 Q0 d1 1 1 a\n")
    (tmp_path / "b.run").write_text("q1 Q0 d1 1 1 b\nq2 Q0 d1 1 1 b\n")
    arguments = [str(tmp_path / "a.run"), str(tmp_path / "b.run"), "--qrels", str(tmp_path / "dev.qrels"), "--json"]
    by_sidecar = json.loads(CliRunner().invoke(compare, arguments).stdout)
    assert (by_sidecar["queries"], by_sidecar["without_relevant"]) == (1, ["q2"])
    by_option = json.loads(CliRunner().invoke(compare, [*arguments, "--relevant-from", "1"]).stdout)
    assert (by_option["queries"], by_option["without_relevant"]) == (2, [])
