"""Which two answers of a query and document become a pair, and how sampled answers are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from querylift.plugin.errors import DataError
from querylift.trainer.judge.adaptation.answer_pairs import (
    AnswerPair,
    choose_answers,
    compute_mean_scores,
    write_answer_pairs,
)
from querylift.trainer.judge.adaptation.rewards import DIMENSIONS, ScoredAnswer


def _score(text: str, reward: float) -> ScoredAnswer:
    return ScoredAnswer(text, reward, dict.fromkeys(DIMENSIONS, reward))


GOOD, MIDDLE, BAD = _score("good", 0.75), _score("middle", 0.5), _score("bad", 0.25)


def test_the_best_and_the_worst_sample_are_a_pair() -> None:
    assert choose_answers([MIDDLE, BAD, GOOD], None, min_margin=0.5) == (GOOD, BAD)


def test_samples_that_differ_by_less_than_the_margin_are_no_pair() -> None:
    assert choose_answers([MIDDLE, BAD, GOOD], None, min_margin=0.51) is None
    assert choose_answers([MIDDLE], None, min_margin=0.1) is None


def test_the_annotation_is_preferred_when_it_is_best_and_wins_a_tie() -> None:
    annotated = _score("annotated", 0.75)
    assert choose_answers([BAD, GOOD], annotated, min_margin=0.1) == (annotated, BAD)
    assert choose_answers([BAD], annotated, min_margin=0.1) == (annotated, BAD)


def test_the_annotation_is_never_rejected() -> None:
    assert choose_answers([MIDDLE, GOOD], _score("annotated", 0.0), min_margin=0.1) == (GOOD, MIDDLE)


def test_the_means_are_over_all_answers() -> None:
    assert compute_mean_scores([GOOD, MIDDLE]) == dict.fromkeys((*DIMENSIONS, "reward"), 0.625)


def test_a_file_of_pairs_says_what_each_answer_was_worth(tmp_path: Path) -> None:
    write_answer_pairs([AnswerPair("q", "d", GOOD, BAD)], tmp_path / "pairs.jsonl")
    row = json.loads((tmp_path / "pairs.jsonl").read_text(encoding="utf-8"))
    assert row["chosen"] == {"text": "good", "reward": 0.75, "scores": dict.fromkeys(DIMENSIONS, 0.75)}
    assert (row["query_id"], row["doc_id"], row["rejected"]["text"]) == ("q", "d", "bad")


def test_a_damaged_file_of_answers_is_named_with_its_line(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the training stack: pip install '.[train]'")
    from querylift.trainer.judge.adaptation.sampled_answers import read_answers

    path = tmp_path / "answers.jsonl"
    path.write_text('{"query_id": "q", "doc_id": "d", "number": "x", "text": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"answers\.jsonl:1: 'number' is 'x'; remove the file to sample again"):
        read_answers(path)
