"""Rewards whose labels are a judge's grades of the documents that the candidates' own searches return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.judging.grade_source import GradeSource, OpenedJudge
from querylift.index_tools.judging.judged_qrels import list_judgments, write_judged_qrels
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import parse_settings
from querylift.trainer.commands.score import score, score_file
from querylift.trainer.rewards.engine_retry import EngineRetry
from querylift.trainer.rewards.judge_labels import make_judge_labels
from querylift.trainer.rewards.ranking_cache import RankingCache
from querylift.trainer.rewards.scoring import pool_candidates
from tests.helpers.graders import WordOverlapGrader
from tests.helpers.rewards import (
    CANDIDATES,
    INDEX,
    OPTIONS,
    QRELS,
    run_score_command,
    score_on_engine,
    write_score_arguments,
)

pytestmark = pytest.mark.engine


def score_with_judge(engine: Engine, folder: Path, *arguments: str, grader: WordOverlapGrader) -> dict[str, Any]:
    """Do what the command does with `--labels judge:FOLDER`, and return the results of its manifest."""
    path, _, _, *fixed = write_score_arguments(folder, engine.url)
    parameters = score.make_context("score", [path, "--labels", "judge:unused", *fixed, *arguments]).params
    options = {name: value for name, value in parameters.items() if name not in ("candidates", "out")}
    settings = parse_settings({"engine": engine.url})
    return score_file(Path(path), parameters["out"], settings, OpenedJudge(grader, digest="ab12"), options)


def test_the_pool_has_the_first_documents_of_every_search_and_the_second_pass_searches_nothing(engine: Engine) -> None:
    settings = parse_settings({"engine": engine.url})
    grader = WordOverlapGrader()
    with RankingCache() as cache:
        pooled = pool_candidates(
            CANDIDATES, engine=engine, settings=settings, options=OPTIONS, cache=cache, retry=EngineRetry()
        )
        labels = make_judge_labels(pooled, CANDIDATES, grader, engine=engine, index=INDEX)
        scoring = score_on_engine(engine, labels=labels, cache=cache)
    assert pooled.search_count == 9
    assert scoring.search_count == 0
    assert all(len(ids) <= 20 for ids in pooled.pool.doc_ids.values())
    assert labels.source == "judge:word-overlap"
    assert labels.relevant_from == 2
    assert len(grader.graded_pairs) == pooled.pool.pair_count
    assert {scored.labels for scored in scoring.scored} == {"judge:word-overlap"}
    assert any(scored.reward.value for scored in scoring.scored)


def test_the_command_records_the_judge_and_what_it_graded(engine: Engine, tmp_path: Path) -> None:
    results = score_with_judge(engine, tmp_path, grader=WordOverlapGrader())
    assert results["judged_by"] == {
        "judge": "word-overlap",
        "teacher": "dictionary-1b",
        "digest": "ab12",
        "fields": [],
        "relevant_from": 2,
    }
    assert (results["searches"], results["from_cache"], results["graded_pairs"] > 20) == (9, 0, True)
    manifest = json.loads((tmp_path / "out" / "scored.jsonl.manifest.json").read_text())
    assert manifest["settings"]["labels"] == "judge:word-overlap"
    assert manifest["settings"]["judged_by"]["digest"] == "ab12"
    again = score_with_judge(engine, tmp_path, grader=WordOverlapGrader())
    assert (again["searches"], again["from_cache"]) == (0, 9)
    assert again["mean_reward"] == results["mean_reward"]


def test_the_teacher_of_the_candidates_may_not_judge_them(engine: Engine, tmp_path: Path) -> None:
    grader = WordOverlapGrader(teacher="maker/Teacher")
    with pytest.raises(
        SettingsError, match="teacher makes the expansions and also stands behind the judge word-overlap"
    ):
        score_with_judge(engine, tmp_path, grader=grader)
    assert score_with_judge(engine, tmp_path, "--same-model", grader=grader)["scored"] > 0


def test_a_judge_that_finds_nothing_relevant_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="word-overlap gave no document of rewards-test the grade 9 or more"):
        score_with_judge(engine, tmp_path, "--relevant-from", "9", grader=WordOverlapGrader())


def test_a_file_that_a_judge_made_is_told_in_the_summary_and_the_manifest(engine: Engine, tmp_path: Path) -> None:
    arguments = write_score_arguments(tmp_path, engine.url)
    (tmp_path / "judge.txt").unlink()
    write_judged_qrels(tmp_path / "judge.txt", list_judgments(QRELS), GradeSource("judge-a", "teacher-b", "2026-11-29"))
    assert "judged by    judge-a (taught by teacher-b)\n" in run_score_command(arguments)

    write_judged_qrels(tmp_path / "judge.txt", list_judgments(QRELS), GradeSource("large-model", "", "2026-11-29"))
    again = ["--out", str(tmp_path / "again.jsonl")]
    assert "judged by    large-model\n" in run_score_command([*arguments, *again])
    manifest = json.loads((tmp_path / "out" / "scored.jsonl.manifest.json").read_text())
    assert manifest["settings"]["judged_by"]["judge"] == "judge-a"
