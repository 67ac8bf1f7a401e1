"""The results as text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from querylift.index_tools.text_columns import WIDTH, align_columns
from querylift.trainer.results.formatting import LEGEND, format_cells, format_facts
from querylift.trainer.results.records import CollectionResult, Results

_HEADINGS = (
    ("", "", "", "share", "gain", "p", "", "p", ""),
    ("", "nDCG@10", "seeds", "kept", "kept", "plain", "Holm", "above", "Holm"),
)


def render_text(results: Results) -> str:
    """Return one table for each collection. Long names of rows are cut."""
    paragraphs = [textwrap.fill(f"{results.engine}, weight {results.weight:g}", WIDTH)]
    paragraphs += [_render_collection(collection, results.row_names) for collection in results.collections]
    paragraphs.append(_render_notes((*results.notes, *LEGEND)))
    return "\n\n".join(paragraphs)


def _render_collection(collection: CollectionResult, row_names: Sequence[str]) -> str:
    lines = [*_HEADINGS, *((name, *format_cells(collection.rows.get(name))) for name in row_names)]
    title = textwrap.fill(f"{collection.name}: {format_facts(collection)}", WIDTH)
    return "\n".join(filter(None, (title, align_columns(lines), _render_notes(collection.notes))))


def _render_notes(notes: Iterable[str]) -> str:
    return "\n".join(textwrap.fill(f"* {note}", WIDTH, subsequent_indent="  ") for note in notes)
