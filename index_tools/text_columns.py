"""Text in columns for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 80

_GAP = "  "


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Align the cells of `lines`: the first column to the left, the others to the right.

    A first cell that is longer than the space that the others leave of 80 columns stands above them, and is never cut.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    space = max(1, WIDTH - sum(widths[1:]) - len(_GAP) * (len(widths) - 1))
    widths[0] = max((len(line[0]) for line in lines if len(line[0]) <= space), default=0)
    return "\n".join(_format_line(line, widths) for line in lines)


def wrap_line(line: str) -> str:
    """Wrap a line at 80 columns. The lines after the first one are indented by four spaces."""
    return textwrap.fill(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


def replace_unprintable(line: str) -> str:
    """Replace control characters by "?".

    Ids come from files and reasons from an engine, and an escape sequence in one must not reach the terminal.
    """
    return "".join(character if character.isprintable() else "?" for character in line)


def _format_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return the aligned cells, below the lines of the name when that is too long for its column."""
    name = cells[0] if len(cells[0]) <= widths[0] else ""
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    line = _GAP.join((name.ljust(widths[0]), *numbers)).rstrip()
    return "\n".join([*([] if name else textwrap.wrap(cells[0], WIDTH)), line])
