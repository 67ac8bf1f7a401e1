"""The reader of pair files, which `querylift train pairs` writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from querylift.index_tools.corpora.json_rows import get_json_id, read_jsonl
from querylift.plugin.errors import DataError


class PassagePair(NamedTuple):
    """The texts of a pair: the chosen passage had the higher reward for the query.

    A passage that did not end goes on after its text, which was cut, or whose writer stopped at a limit. `margin` is the
    difference of the rewards.
    """

    query_id: str
    query: str
    chosen: str
    rejected: str
    chosen_ended: bool = True
    rejected_ended: bool = True
    margin: float = 0.0


def read_passage_pairs(path: Path) -> Iterator[PassagePair]:
    """Read the pairs of a JSONL file, `.gz` or not.

    Raises DataError with path and line, and SettingsError when there is no file.
    """
    for line_number, row in read_jsonl(path):
        query_id = get_json_id(path, line_number, row, names=("query_id",))
        texts = {name: row.get(name) for name in ("query", "chosen", "rejected")}
        for name, value in texts.items():
            if not isinstance(value, str) or (name == "query" and not value.strip()):
                raise DataError(path, line_number, f"{name!r} is {value!r}; write it as a text")
        ends = {name: row.get(name, True) for name in ("chosen_ended", "rejected_ended")}
        for name, value in ends.items():
            if not isinstance(value, bool):
                raise DataError(path, line_number, f"{name!r} is {value!r}; write true or false, or leave it out")
        query, chosen, rejected = map(str, texts.values())
        margin = row.get("margin", 0.0)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < math.inf:
            raise DataError(path, line_number, f"'margin' is {margin!r}; write a number from 0, or leave it out")
        yield PassagePair(
            query_id, query, chosen, rejected, ends["chosen_ended"], ends["rejected_ended"], float(margin)
        )
