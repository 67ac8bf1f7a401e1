"""The text that is rewarded of a candidate is the text that is learned for it."""

from __future__ import annotations

import pytest

from querylift.plugin.expansion import parse_output
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.rewarded_text import RewardedText, make_rewarded_text


def make_candidate(
    text: str, *, query: str = "axon signal", method: str = "zero-shot", ended: bool = True
) -> Candidate:
    return Candidate("q1", query, method, "teacher", text, ended=ended)


def read_words(text: RewardedText) -> str | None:
    return text.expansion.text if text.expansion else None


def take_two_words(text: str) -> str:
    return " ".join(text.split()[:2])


def test_a_teachers_text_is_read_as_a_table_row_and_a_students_as_model_output() -> None:
    teachers = make_candidate("Certainly! Here is a passage: **Axons** carry signals.\nA second line of it.")
    assert read_words(make_rewarded_text(teachers)) == "Axons carry signals A second line of it"
    assert read_words(make_rewarded_text(teachers, cut=take_two_words)) == "Axons carry"
    students = make_candidate("Axons carry signals.\nand more", method="student")
    expected = parse_output(students.text, query=students.query)
    assert make_rewarded_text(students, cut=take_two_words).expansion == expected
    assert read_words(make_rewarded_text(students)) == "Axons carry signals"
    assert make_rewarded_text(make_candidate(" ... ")) == RewardedText(None, "", True, False)


@pytest.mark.parametrize(
    ("text", "method", "passage"),
    [
        ("1. 2. Axons carry, axons grow.", "zero-shot", "2 Axons carry grow"),
        ("Axons carry.\nMore", "student", "Axons carry"),
        ("!", "zero-shot", ""),
    ],
)
def test_a_passage_is_prose_when_the_parser_reads_it_alike_and_bare_words_otherwise(
    text: str, method: str, passage: str
) -> None:
    assert make_rewarded_text(make_candidate(text, method=method)).passage == passage


@pytest.mark.parametrize(
    ("ended", "text", "has_end"),
    [(True, "Axons carry", True), (False, "Axons carry", False), (True, "Axons carry signals", False)],
)
def test_a_passage_that_was_cut_or_did_not_end_has_no_end(ended: bool, text: str, has_end: bool) -> None:
    rewarded = make_rewarded_text(make_candidate(text, ended=ended), cut=take_two_words)
    assert rewarded.passage == "Axons carry"
    assert rewarded.ended == has_end
    assert rewarded.was_cut == (text != "Axons carry")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("谁可以成为个体工商户？", "公民从事工商业经营，经依法登记，为个体工商户。" * 9),
        ("神経とは何か", "神経細胞は電気信号を伝える細胞であり、軸索と樹状突起を持つ。" * 9),
        ("ภาษีคืออะไร", "ภาษีคือเงินที่รัฐเรียกเก็บจากประชาชนเพื่อใช้จ่ายในกิจการของรัฐ" * 9),
    ],
)
def test_long_text_without_spaces_is_rewarded_in_every_script(query: str, text: str) -> None:
    rewarded = make_rewarded_text(make_candidate(text, query=query))
    assert rewarded.expansion is not None and rewarded.expansion.count_words() > 10
    assert parse_output(rewarded.passage, query=query) == rewarded.expansion
