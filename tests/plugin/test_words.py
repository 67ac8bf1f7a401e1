"""One rule counts the words of a text, also in scripts that put no spaces between words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from querylift.plugin.expansion import MAX_WORD_CHARS, MAX_WORDS, expansion_from_text
from querylift.plugin.words import (
    count_words,
    find_last_break,
    find_word_spans,
    is_unspaced,
    split_long_text,
    take_first_words,
)

THAI = "การท่องเที่ยวแห่งประเทศไทยส่งเสริมการเดินทาง"
MIXED = st.text(st.sampled_from("ab 世界、。กิ่เ๒ー・のx-\u3000\u0301"), max_size=40)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("heart attack — a disease", 5),
        ("well-known don't", 2),
        ("世", 1),
        ("世界", 1),
        ("个体工商户", 3),
        ("谁可以成为个体工商户？", 5),
        ("个体，工商。", 2),
        ("使用Python安装3.8版", 5),
        ("。，", 1),
        ("データベース", 3),
        ("한국어 문장", 2),
        ("ภาษาไ", 1),
        (THAI, 9),
    ],
)
def test_two_signs_of_chinese_and_five_of_thai_count_as_a_word(text: str, words: int) -> None:
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("text", "count", "first_words"),
    [
        (" one\ttwo\n\nthree four", 3, "one two three"),
        ("谁可以成为个体工商户？依法登记。", 3, "谁可以成为个"),
        ("个体，工商。户", 2, "个体，工商"),
        ("使用 Python 安装", 2, "使用 Python"),
        ("データベースの設計", 3, "データベース"),
        (THAI, 2, "การท่องเที่"),
        ("a b", 0, ""),
    ],
)
def test_the_first_words_are_taken_with_the_signs_between_them(text: str, count: int, first_words: str) -> None:
    assert take_first_words(text, count) == first_words


@given(MIXED, st.integers(1, 20))
def test_the_first_words_are_no_more_than_asked_for(text: str, count: int) -> None:
    assert count_words(take_first_words(text, count)) <= count
    assert take_first_words(text, 1000) == " ".join(text.split()) or is_unspaced(text)


@given(MIXED, st.integers(0, 40))
def test_a_text_is_cut_between_words_or_signs(text: str, limit: int) -> None:
    end = find_last_break(text, limit)
    assert end <= limit
    assert end == 0 or not text[end - 1].isspace()
    assert all(not start < end < stop or is_unspaced(text[start:stop]) for start, stop in find_word_spans(text))


@pytest.mark.parametrize(
    ("text", "limit", "end"),
    [("heart attack", 11, 5), ("heart", 4, 0), ("世界和平", 3, 3), ("กิน", 1, 0), ("กิน", 2, 2), ("世界heart", 5, 2)],
)
def test_a_cut_falls_before_no_combining_mark_and_into_no_word(text: str, limit: int, end: int) -> None:
    assert find_last_break(text, limit) == end


def test_long_thai_is_split_before_no_mark() -> None:
    pieces = split_long_text("ก" * 39 + "กิ" + "ก" * 30, 40)
    assert pieces == ["ก" * 39, "กิ" + "ก" * 30]
    assert split_long_text("世界" + "x" * 41 + "和平", 40) == ["世界", "和平"]


@pytest.mark.parametrize(("sign_count", "kept_count"), [(250, 250), (256, 256), (300, 256)])
def test_an_expansion_keeps_128_words_of_chinese_too(sign_count: int, kept_count: int) -> None:
    sentence = "".join(chr(0x4E00 + number) for number in range(sign_count))
    expansion = expansion_from_text(sentence)
    assert expansion is not None
    assert len(expansion.text.replace(" ", "")) == kept_count
    assert expansion.count_words() == kept_count // 2 <= MAX_WORDS
    assert max(map(len, expansion.text.split())) == MAX_WORD_CHARS


@given(MIXED.map(lambda text: text * 20))
def test_reading_an_expansion_of_mixed_scripts_again_changes_nothing(text: str) -> None:
    expansion = expansion_from_text(text)
    assert expansion is None or expansion_from_text(expansion.text) == expansion
    assert expansion is None or expansion.count_words() <= MAX_WORDS
