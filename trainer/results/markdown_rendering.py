"""The results as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from querylift.index_tools.evaluation.html_report import format_difference
from querylift.trainer.results.formatting import BLANK, LEGEND, format_cells, format_facts, format_marked_ndcg
from querylift.trainer.results.records import CollectionResult, Results

_HEADINGS = (
    "",
    "nDCG@10",
    "seeds",
    "share kept",
    "share of gain",
    "difference",
    "95% interval",
    "p plain",
    "Holm",
    "p above",
    "Holm",
)
_MARKS_LEGEND = "▲ better, ▼ worse than the first row with p < 0.05 after Holm's correction."


def render_markdown(results: Results) -> str:
    """Return a table of all collections side by side, and then a table of every number for each collection."""
    title = f"nDCG@10 on {_escape(results.engine)}, weight {results.weight:g}. {_MARKS_LEGEND}"
    paragraphs = [_render_overview(results), title]
    for collection in results.collections:
        paragraphs += [
            f"### {_escape(collection.name)}",
            f"{_escape(format_facts(collection))}.",
            _render_collection(collection, results.row_names),
            _render_bullets(collection.notes),
        ]
    paragraphs += ["### How to read it", _render_bullets((*results.notes, *LEGEND))]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _render_overview(results: Results) -> str:
    lines = [("", *(collection.name for collection in results.collections))]
    lines += [
        (name, *(format_marked_ndcg(collection.rows.get(name)) for collection in results.collections))
        for name in results.row_names
    ]
    return _render_table(lines)


def _render_collection(collection: CollectionResult, row_names: Sequence[str]) -> str:
    lines: list[tuple[str, ...]] = [_HEADINGS]
    for name in row_names:
        result = collection.rows.get(name)
        cells = format_cells(result)
        difference, interval = BLANK, BLANK
        if result is not None and result.against_plain is not None:
            difference = format_difference(result.against_plain.difference)
            interval = " to ".join(map(format_difference, result.against_plain.interval))
        lines.append((name, *cells[:4], difference, interval, *cells[4:]))
    return _render_table(lines)


def _render_table(lines: Sequence[Sequence[str]]) -> str:
    headings, *rows = (f"| {' | '.join(map(_escape, line))} |" for line in lines)
    return "\n".join((headings, "|---" + "|---:" * (len(lines[0]) - 1) + "|", *rows))


def _render_bullets(notes: Iterable[str]) -> str:
    return "\n".join(f"* {_escape(note)}" for note in notes)


def _escape(text: str) -> str:
    """Escape every character that Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", text)
