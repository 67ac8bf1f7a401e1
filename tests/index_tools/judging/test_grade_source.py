"""What tables and reports say of a judge, and what the folder of a judge must be for that."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.index_tools.judging.grade_source import GradeSource, OpenedJudge, describe_agreement
from querylift.index_tools.judging.judge_folder import (
    SERVED_FILES,
    Agreement,
    JudgeRecord,
    read_judge_record,
    write_judge_record,
)
from querylift.index_tools.judging.sheet_check import SheetAgreement
from querylift.plugin.commands.main import querylift
from querylift.plugin.files import compute_file_digest
from querylift.trainer.commands.judge.check import record_agreement
from tests.helpers.graders import WordOverlapGrader

RECORD = JudgeRecord(
    name="judge-a", teacher="teacher-b", base="encoder-c", reading="apart", scale_name="graded",
    meanings=DEFAULT_SCALE.meanings, relevant_from=2, thresholds=(0.5, 1.5, 2.5), query_tokens=32, document_tokens=128,
    annotations=100, created="2026-11-29",
)  # fmt: skip


def write_cut_judge(folder: Path) -> Path:
    """Write a judge whose model file is not the one that its record names."""
    folder.mkdir()
    for name in SERVED_FILES:
        (folder / name).write_bytes(b"whole file")
    digests = {name: compute_file_digest(folder / name) for name in SERVED_FILES}
    write_judge_record(folder, RECORD.model_copy(update={"files": digests}))
    (folder / "judge.onnx").write_bytes(b"who")
    return folder


def test_a_judge_whose_agreement_was_not_measured_says_so_and_how_to_measure_it() -> None:
    assert OpenedJudge(WordOverlapGrader()).source.sentence == (
        "judged by word-overlap (taught by dictionary-1b); "
        "its agreement with people was not measured; run `querylift judge check`"
    )


def test_an_agreement_is_told_with_both_kappas_and_where_they_come_from() -> None:
    agreement = Agreement(queries=43, kappa_grades=0.2849, kappa_relevant=0.4, source="TREC DL 2019")
    assert describe_agreement(agreement) == (
        "its agreement with people: kappa 0.28 over all grades, 0.40 over relevant or not (43 queries, TREC DL 2019)"
    )


def test_an_agreement_just_below_chance_is_no_negative_zero() -> None:
    agreement = Agreement(queries=43, kappa_grades=-0.002, kappa_relevant=-0.02, source="s.csv")
    assert "kappa 0.00 over all grades, -0.02 over relevant or not" in describe_agreement(agreement)


def test_a_source_without_an_agreement_is_named_alone() -> None:
    assert GradeSource("judge-a", "teacher-b", "2026-11-29").sentence == "judged by judge-a (taught by teacher-b)"


def test_the_agreement_of_a_sheet_is_written_into_the_record_and_leaves_everything_else(tmp_path: Path) -> None:
    write_judge_record(tmp_path, RECORD)
    agreement = SheetAgreement(
        pair_count=50, query_count=31, unrated_count=0, kappa_grades=0.3, kappa_grades_interval=(0.1, 0.5),
        kappa_relevant=0.45, kappa_relevant_interval=(0.2, 0.7), macro_f1=0.5, confusions=[[0]],
    )  # fmt: skip
    record_agreement(tmp_path, agreement, source="sheet.csv")
    recorded = Agreement(queries=31, kappa_grades=0.3, kappa_relevant=0.45, source="sheet.csv")
    assert read_judge_record(tmp_path) == RECORD.model_copy(update={"agreement": recorded})


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--queries", "queries.tsv", "--generator", "none", "--judge", "judge"],
        ["judge", "qrels", "--queries", "queries.tsv", "--out", "new.qrels", "--judge", "judge"],
        ["judge", "sample", "--queries", "queries.tsv", "--out", "sheet.csv", "--judge", "judge"],
        ["judge", "check", "sheet.csv", "--judge", "judge"],
        ["train", "score", "candidates.jsonl", "--out", "scored.jsonl", "--labels", "judge:judge"],
    ],
)
def test_a_judge_that_is_cut_off_is_refused_before_anything_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cut_judge(tmp_path / "judge")
    arguments = [*command, "--index", "products", "--engine", "http://127.0.0.1:9"]
    error = CliRunner().invoke(querylift, arguments, standalone_mode=False).exception
    assert str(error).startswith("judge/judge.onnx is not the file that was exported, or is cut off; export the judge")
    assert [path.name for path in tmp_path.iterdir()] == ["judge"]
