"""The summary of a report as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from querylift.index_tools.evaluation.report import SystemRow, milliseconds, number, p_text, signed

WIDTH = 80

_GAP = "  "


def render_table(rows: Sequence[SystemRow]) -> str:
    """One line per system under its headings, at most 80 columns wide; long names are cut. No rows give "".

    The column "diff" is that of the measure compared. The last column is left out where no row has a time.
    """
    if not rows:
        return ""
    cells = [*_HEADINGS, *(_cells(row) for row in rows)]
    if not any(row.timed for row in rows):
        cells = [line[:-1] for line in cells[1:]]
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Lines of `cells`, the first column left-aligned and cut to what the others leave of 80 columns, the rest right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[0] = max(1, min(widths[0], WIDTH - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)))
    return "\n".join(_line(line, widths) for line in cells)


_HEADINGS = (
    ("", "", "", "", "", "", "added ms"),
    ("system", "nDCG@10", "diff", "recall@100", "W/T/L", "p", "p50/p95"),
)


def _cells(row: SystemRow) -> tuple[str, ...]:
    means, c = row.evaluation.means, row.comparison
    compared = (signed(c.difference), f"{c.wins}/{c.ties}/{c.losses}", p_text(c.p_value)) if c else ("-", "-", "-")
    return (
        row.name,
        number(means["ndcg_at_10"]),
        compared[0],
        number(means["recall_at_100"]),
        *compared[1:],
        _added(row),
    )


def _added(row: SystemRow) -> str:
    return f"{milliseconds(row.added_ms_p50)}/{milliseconds(row.added_ms_p95)}" if row.timed else "-"


def _line(line: Sequence[str], widths: Sequence[int]) -> str:
    first = line[0] if len(line[0]) <= widths[0] else line[0][: widths[0] - 1] + "…"
    rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
    return _GAP.join((first.ljust(widths[0]), *rest)).rstrip()
