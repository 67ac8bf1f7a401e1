"""What students made on the spot are taught: ten topics, a passage and a pair of passages for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

TOPICS = ("rain", "snow", "wind", "storm", "fog", "hail", "frost", "heat", "clouds", "thunder")


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_file(path: Path) -> Path:
    """A passage for each topic, as `sft` reads them."""
    says = "{} is weather that meteorologists measure with instruments on the ground"
    return write_lines(path, [{"query_id": t, "query": f"what is {t}", "text": says.format(t)} for t in TOPICS])


def pairs_file(path: Path) -> Path:
    """A better and a worse passage for each topic, as `dpo` reads them."""
    good, bad = "instruments on the ground measure {}", "the page about {} cannot be found"
    rows = [
        {"query_id": t, "query": f"what is {t}", "chosen": good.format(t), "rejected": bad.format(t)} for t in TOPICS
    ]
    return write_lines(path, rows)
