"""The summary of a report as a text table for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from querylift.index_tools.evaluation.html_report import (
    SystemRow,
    format_difference,
    format_measure,
    format_milliseconds,
    format_p_value,
)
from querylift.index_tools.text_columns import align_columns

_HEADINGS = (
    ("", "", "", "", "", "", "added ms"),
    ("system", "nDCG@10", "diff", "recall@100", "W/T/L", "p", "p50/p95"),
)


def render_table(rows: Sequence[SystemRow]) -> str:
    """Return one line for each system below the headings, at most 80 columns wide. A long name has a line of its own.

    The column "diff" shows the difference in the compared measure. The column "p" is corrected when there are several
    comparisons. The last column is left out when no row has a time.
    Returns "" when there are no rows.
    """
    if not rows:
        return ""
    lines = [*_HEADINGS, *(_format_cells(row) for row in rows)]
    if not any(row.has_times for row in rows):
        lines = [line[:-1] for line in lines[1:]]
    return align_columns(lines)


def _format_cells(row: SystemRow) -> tuple[str, ...]:
    means, comparison = row.evaluation.means, row.comparison
    difference, counts, p_value = "-", "-", "-"
    if comparison is not None:
        difference = format_difference(comparison.difference)
        counts = f"{comparison.wins}/{comparison.ties}/{comparison.losses}"
        p_value = format_p_value(comparison.deciding_p_value)
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
