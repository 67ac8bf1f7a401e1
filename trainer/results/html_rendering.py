"""The results as one HTML file, which needs no script, no network and no other file.

Names are hostile input. So the template escapes everything that it prints, and a content policy in the file forbids scripts
and outside resources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from querylift.index_tools.evaluation.comparison import Comparison
from querylift.index_tools.evaluation.html_report import (
    Scale,
    create_scale,
    format_measure,
    load_template,
    typeset_difference,
    typeset_tick,
)
from querylift.trainer.results.curve_pictures import Picture
from querylift.trainer.results.formatting import (
    format_comparison_p_value,
    format_corrected_p_value,
    format_facts,
    format_marked_ndcg,
    format_percent,
)
from querylift.trainer.results.records import CollectionResult, Results, RowResult

if TYPE_CHECKING:
    from jinja2 import Template


def render_html(results: Results, pictures: Sequence[Picture] = (), problems: Sequence[str] = ()) -> str:
    """Return the page. Its notes contain the sentences of `problems`. Raises MissingExtra when Jinja is not installed."""
    return _load_template().render(
        results=results,
        pictures=pictures,
        notes=[*results.notes, *problems],
        format_facts=format_facts,
        create_plot_scale=_create_plot_scale,
        list_plotted_rows=_list_plotted_rows,
        calculate_seed_differences=_calculate_seed_differences,
    )


def _list_plotted_rows(collection: CollectionResult) -> list[tuple[str, RowResult, Comparison]]:
    """Return the rows of the plot: those that are compared with the first row."""
    return [
        (name, result, result.against_plain)
        for name, result in collection.rows.items()
        if result.against_plain is not None
    ]


def _calculate_seed_differences(result: RowResult) -> list[float]:
    """Return nDCG@10 of every seed minus that of the first row, and [] when there is only one seed."""
    if result.against_plain is None or len(result.seeds) < 2:
        return []
    return [ndcg - result.against_plain.mean_a for ndcg in result.ndcg_by_seed]


def _create_plot_scale(collection: CollectionResult) -> Scale:
    values: list[float] = []
    for _, result, comparison in _list_plotted_rows(collection):
        values += [*comparison.interval, *_calculate_seed_differences(result)]
    return create_scale(values, parts=5)


def _load_template() -> Template:
    filters: dict[str, Callable[..., str]] = {
        "difference": typeset_difference,
        "marked_ndcg": format_marked_ndcg,
        "measure": format_measure,
        "corrected_p_value": format_corrected_p_value,
        "p_value": format_comparison_p_value,
        "percent": _typeset_percent,
        "tick": typeset_tick,
    }
    return load_template("querylift.trainer.results", "results.html.jinja", filters)


def _typeset_percent(share: float | None) -> str:
    """Return a share in whole percent with the minus sign of print, and a dash for None."""
    return "–" if share is None else format_percent(share).replace("-", "\N{MINUS SIGN}")
