"""Sheets for a person: which pairs are in them, what spreadsheets and Quepid read, and what comes back."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.index_tools.judging.judged_qrels import ModelJudgment
from querylift.index_tools.judging.rating_sheet import (
    RatedPair,
    SheetPair,
    draw_pairs,
    locate_quepid_sheet,
    read_rated_sheet,
    write_rating_sheet,
)
from querylift.plugin.errors import DataError, SettingsError
from tests.helpers.corpus_files import write_text_file


def make_judgments(counts: dict[int, int], *, queries: int) -> list[ModelJudgment]:
    """Return so many judgments of each grade, dealt to the queries in turn."""
    grades = [grade for grade, count in counts.items() for _ in range(count)]
    return [ModelJudgment(f"q{number % queries}", f"d{number}", grade, 0.5) for number, grade in enumerate(grades)]


def test_the_pairs_are_spread_over_the_grades_and_over_the_queries() -> None:
    judgments = make_judgments({0: 300, 1: 40, 2: 20, 3: 3}, queries=20)
    drawn = draw_pairs(judgments, 40, seed=1)
    assert Counter(pair.grade for pair in drawn) == {0: 13, 1: 12, 2: 12, 3: 3}
    assert set(Counter(pair.query_id for pair in drawn).values()) <= {1, 2, 3}
    assert draw_pairs(judgments, 40, seed=1) == drawn
    assert draw_pairs(judgments, 40, seed=2) != drawn


def test_all_pairs_are_drawn_where_there_are_fewer_than_wanted() -> None:
    judgments = make_judgments({0: 4, 3: 2}, queries=2)
    assert sorted(draw_pairs(judgments, 50, seed=0), key=str) == sorted(judgments, key=str)
    assert draw_pairs([], 50, seed=0) == []


def test_the_sheet_has_the_documents_and_quepids_file_has_three_columns_alone(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    write_rating_sheet(path, [SheetPair("red, shoes", "d1", "shoes " * 1000), SheetPair("née", "d2", "a")])
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["query", "docid", "rating", "document"]
    assert rows[1][:3] == ["red, shoes", "d1", ""]
    assert len(rows[1][3]) == 2000
    quepid = locate_quepid_sheet(path)
    assert quepid.name == "sheet.quepid.csv"
    assert quepid.read_bytes() == 'query,docid,rating\n"red, shoes",d1,\nnée,d2,\n'.encode()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-abc", "@SUM(A1)", '=HYPERLINK("x")'])
def test_no_cell_is_a_formula_and_the_text_comes_back_unchanged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sheet.csv"
    write_rating_sheet(path, [SheetPair(text, text, text)])
    with path.open(encoding="utf-8-sig", newline="") as stream:
        assert list(csv.reader(stream))[1] == [f"'{text}", f"'{text}", "", f"'{text}"]
    cell = '"' + f"'{text}".replace('"', '""') + '"'
    write_text_file(path, f"query,docid,rating\n{cell},{cell},2\n")
    assert read_rated_sheet(path, DEFAULT_SCALE).pairs == (RatedPair(text, text, 2),)


@pytest.mark.parametrize(
    "text",
    [
        "query,docid,rating\nred shoes,d1,3\nboots,d2,\nboots,d3,0\n",
        "\ufeffquery;docid;rating;document\r\nred shoes;d1;3;text\r\nboots;d2;;text\r\nboots;d3;0\r\n",
        'document\tRating\tDoc ID\tQuery Text\n"two\nlines"\t3.0\t d1 \tred shoes\n\t\td2\tboots\n\t0,00\td3\tboots\n',
    ],
)
def test_sheets_are_read_as_quepid_and_spreadsheets_save_them(tmp_path: Path, text: str) -> None:
    path = write_text_file(tmp_path / "sheet.csv", text)
    sheet = read_rated_sheet(path, DEFAULT_SCALE)
    assert sheet.pairs == (RatedPair("red shoes", "d1", 3), RatedPair("boots", "d3", 0))
    assert sheet.unrated_count == 1


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a,d1,4", "2: rating '4' is off the scale; give a whole number from 0 to 3"),
        ("a,d1,1\nb,d2,1.5", "3: rating '1.5' is off the scale"),
        ("a,d1,good", "2: rating 'good' is off the scale"),
        ("a,d1,-1", "2: rating '-1' is off the scale"),
        ("a,d1,1\na,d1,2", "3: this pair already has the rating 1; keep one of the two rows"),
        ("a,,1", "2: this row has a rating, but no query or no docid"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, rows: str, sentence: str) -> None:
    path = write_text_file(tmp_path / "sheet.csv", f"query,docid,rating\n{rows}\n")
    with pytest.raises(DataError, match=f"sheet.csv:{sentence}"):
        read_rated_sheet(path, DEFAULT_SCALE)


@pytest.mark.parametrize("text", ["", "a,b,c\n1,2,3\n", "query,docid\na,d1\n"])
def test_a_file_that_is_no_sheet_is_refused(tmp_path: Path, text: str) -> None:
    path = write_text_file(tmp_path / "sheet.csv", text)
    with pytest.raises(SettingsError, match=r"sheet\.csv has no column '(query|rating)'; give a sheet of"):
        read_rated_sheet(path, DEFAULT_SCALE)


def test_a_pair_with_the_same_rating_twice_counts_once(tmp_path: Path) -> None:
    path = write_text_file(tmp_path / "sheet.csv", "query,docid,rating\na,d1,1\na,d1,1\n")
    assert len(read_rated_sheet(path, DEFAULT_SCALE).pairs) == 1
