"""Training files for small students: ten topics, each with a passage and a pair of passages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

TOPICS = ("rain", "snow", "wind", "storm", "fog", "hail", "frost", "heat", "clouds", "thunder")


def write_json_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write one line of JSON for each row, and return `path`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_passage_file(path: Path) -> Path:
    """Write a passage for each topic, as `querylift train sft` reads them."""
    sentence = "{} is weather that meteorologists measure with instruments on the ground"
    return write_json_lines(
        path, [{"query_id": t, "query": f"what is {t}", "text": sentence.format(t)} for t in TOPICS]
    )


def write_pair_file(path: Path) -> Path:
    """Write a better and a worse passage for each topic, as `querylift train dpo` reads them."""
    good, bad = "instruments on the ground measure {}", "the page about {} cannot be found"
    rows = [
        {"query_id": t, "query": f"what is {t}", "chosen": good.format(t), "rejected": bad.format(t)} for t in TOPICS
    ]
    return write_json_lines(path, rows)
