"""Sheets of pairs that a person grades, to check a judge against.

A sheet is a CSV file with the columns query, docid, rating and document; the person fills in the rating. Beside it lies a
file with the first three columns alone, because Quepid imports no other. The judge's grades are in neither file, so that
the person does not see them. A cell that a spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from querylift.index_tools.corpora.records import normalize_id
from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.index_tools.judging.judged_qrels import ModelJudgment
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.files import open_for_replacement
from querylift.plugin.text_files import read_whole_text

QUEPID_COLUMNS = ("query", "docid", "rating")
DOCUMENT_COLUMN = "document"
MAX_DOCUMENT_CHARS = 2000
"""A document is cut to so many characters, because a spreadsheet's cell holds no more than 32,767."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_COLUMN_NAMES = {"querytext": "query", "documentid": "docid"}
_RATING = re.compile(r"([0-9]{1,3})([.,]0+)?")


@dataclass(frozen=True, slots=True)
class SheetPair:
    """A pair of a sheet: the text of the query, the id of the document, and its text."""

    query: str
    doc_id: str
    document: str


@dataclass(frozen=True, slots=True)
class RatedPair:
    """A pair with a person's rating."""

    query: str
    doc_id: str
    rating: int


@dataclass(frozen=True, slots=True)
class RatedSheet:
    """The rated pairs of a sheet, and the number of its rows without a rating."""

    pairs: tuple[RatedPair, ...]
    unrated_count: int


def draw_pairs(judgments: Sequence[ModelJudgment], count: int, *, seed: int) -> list[ModelJudgment]:
    """Draw `count` pairs, or all where there are fewer: each grade of the judge equally often, from as many queries as can be.

    The grades take turns. A grade whose pairs are used up loses its turn. Of a grade's pairs, one of the query with the
    fewest drawn pairs comes next. The pairs are returned by query, in an order that does not show the judge's grades.
    """
    rng = random.Random(seed)
    pairs_by_grade: dict[int, list[ModelJudgment]] = {}
    for judgment in sorted(judgments, key=lambda judgment: (judgment.query_id, judgment.doc_id)):
        pairs_by_grade.setdefault(judgment.grade, []).append(judgment)
    for pairs in pairs_by_grade.values():
        rng.shuffle(pairs)
    drawn: list[ModelJudgment] = []
    query_counts: Counter[str] = Counter()
    while len(drawn) < count and any(pairs_by_grade.values()):
        for _, pairs in sorted(pairs_by_grade.items()):
            if pairs and len(drawn) < count:
                position = min(range(len(pairs)), key=lambda position: query_counts[pairs[position].query_id])
                drawn.append(pairs.pop(position))
                query_counts[drawn[-1].query_id] += 1
    rng.shuffle(drawn)
    return sorted(drawn, key=lambda judgment: judgment.query_id)


def locate_quepid_sheet(path: Path) -> Path:
    """Return the path of the file for Quepid: `sheet.quepid.csv` for `sheet.csv`."""
    return path.with_name(f"{path.name.removesuffix('.csv')}.quepid.csv")


def write_rating_sheet(path: Path, pairs: Sequence[SheetPair]) -> None:
    """Write the sheet, and the file for Quepid beside it. The column of ratings is empty.

    Quepid reads only a header that ends with a line feed, and takes a byte order mark for a part of it. Spreadsheets read
    UTF-8 only where there is such a mark.
    """
    rows = [(pair.query, pair.doc_id, "", pair.document[:MAX_DOCUMENT_CHARS]) for pair in pairs]
    sheet = _format_csv([(*QUEPID_COLUMNS, DOCUMENT_COLUMN), *rows])
    with open_for_replacement(path) as stream:
        stream.write(sheet.encode("utf-8-sig", "replace"))
    with open_for_replacement(locate_quepid_sheet(path)) as stream:
        stream.write(_format_csv([QUEPID_COLUMNS, *(row[:3] for row in rows)]).encode("utf-8", "replace"))


def read_rated_sheet(path: Path, scale: GradeScale) -> RatedSheet:
    """Read a sheet that a person graded, as a spreadsheet or Quepid saves it. Commas, semicolons or tabs are between cells.

    A pair that comes twice with one rating counts once. Raises DataError with path and line for a rating off the scale or
    two ratings of a pair, and SettingsError when the file is no sheet.
    """
    ratings: dict[tuple[str, str], int] = {}
    unrated_count = 0
    for number, row in _iter_sheet_rows(path):
        query, doc_id, text = (row[name].strip() for name in QUEPID_COLUMNS)
        pair = _remove_guard(query), normalize_id(_remove_guard(doc_id))
        if not text:
            unrated_count += 1
            continue
        if not all(pair):
            raise DataError(
                path, number, "this row has a rating, but no query or no docid; restore it, or empty the row"
            )
        match = _RATING.fullmatch(text)
        rating = int(match[1]) if match else -1
        if not scale.contains(rating):
            raise DataError(
                path, number, f"rating {text!r} is off the scale; give a whole number from 0 to {scale.highest}"
            )
        if ratings.setdefault(pair, rating) != rating:
            raise DataError(path, number, f"this pair already has the rating {ratings[pair]}; keep one of the two rows")
    return RatedSheet(tuple(RatedPair(*pair, rating) for pair, rating in ratings.items()), unrated_count)


def _iter_sheet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the last line of each row, and the row by the names of the columns. Raises DataError, SettingsError."""
    text = read_whole_text(path)
    header, _, _ = text.partition("\n")
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names = [_normalize_column(name) for name in next(reader, [])]
        missing = [name for name in QUEPID_COLUMNS if name not in names]
        if missing:
            raise SettingsError(
                f"{path} has no column {missing[0]!r}; give a sheet of `querylift judge sample`, "
                f"whose first line is {','.join(QUEPID_COLUMNS)}"
            )
        for cells in reader:
            if any(cell.strip() for cell in cells):
                padded = [*cells, *[""] * (len(names) - len(cells))]
                yield reader.line_num, dict(zip(names, padded, strict=False))
    except csv.Error as error:
        raise DataError(path, reader.line_num, f"this line is not CSV ({error}); save the sheet as CSV again") from None


def _normalize_column(name: str) -> str:
    letters = re.sub(r"[\s_]", "", name).casefold()
    return _COLUMN_NAMES.get(letters, letters)


def _format_csv(rows: Sequence[Sequence[str]]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows([list(map(_guard_cell, row)) for row in rows])
    return stream.getvalue()


def _guard_cell(text: str) -> str:
    """Return the text with an apostrophe before it when a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _remove_guard(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA_STARTS) else text
