"""The summary of a report as a text table for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from querylift.index_tools.evaluation.html_report import (
    SystemRow,
    format_difference,
    format_measure,
    format_milliseconds,
    format_p_value,
)

WIDTH = 80

_GAP = "  "
_HEADINGS = (
    ("", "", "", "", "", "", "added ms"),
    ("system", "nDCG@10", "diff", "recall@100", "W/T/L", "p", "p50/p95"),
)


def render_table(rows: Sequence[SystemRow]) -> str:
    """Return one line for each system below the headings, at most 80 columns wide. A long name has a line of its own.

    The column "diff" shows the difference in the compared measure. The last column is left out when no row has a time.
    Returns "" when there are no rows.
    """
    if not rows:
        return ""
    lines = [*_HEADINGS, *(_format_cells(row) for row in rows)]
    if not any(row.has_times for row in rows):
        lines = [line[:-1] for line in lines[1:]]
    return align_columns(lines)


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Align the cells of `lines`: the first column to the left, the others to the right.

    A first cell that is longer than the space that the others leave of 80 columns stands above them, and is never cut.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    space = max(1, WIDTH - sum(widths[1:]) - len(_GAP) * (len(widths) - 1))
    widths[0] = max((len(line[0]) for line in lines if len(line[0]) <= space), default=0)
    return "\n".join(_format_line(line, widths) for line in lines)


def replace_unprintable(line: str) -> str:
    """Replace control characters by "?".

    Ids come from files and reasons from an engine, and an escape sequence in one must not reach the terminal.
    """
    return "".join(character if character.isprintable() else "?" for character in line)


def _format_cells(row: SystemRow) -> tuple[str, ...]:
    means, comparison = row.evaluation.means, row.comparison
    difference, counts, p_value = "-", "-", "-"
    if comparison is not None:
        difference = format_difference(comparison.difference)
        counts = f"{comparison.wins}/{comparison.ties}/{comparison.losses}"
        p_value = format_p_value(comparison.p_value)
    times = f"{format_milliseconds(row.added_ms_p50)}/{format_milliseconds(row.added_ms_p95)}"
    return (
        row.name,
        format_measure(means["ndcg_at_10"]),
        difference,
        format_measure(means["recall_at_100"]),
        counts,
        p_value,
        times if row.has_times else "-",
    )


def _format_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return the aligned cells, below the lines of the name when that is too long for its column."""
    name = cells[0] if len(cells[0]) <= widths[0] else ""
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    line = _GAP.join((name.ljust(widths[0]), *numbers)).rstrip()
    return "\n".join([*([] if name else textwrap.wrap(cells[0], WIDTH)), line])
