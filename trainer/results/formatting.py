"""How the numbers of a row are written, in every kind of output."""

from __future__ import annotations

from querylift.index_tools.evaluation.comparison import Comparison
from querylift.index_tools.evaluation.html_report import format_measure, format_p_value, format_query_count
from querylift.trainer.results.records import CollectionResult, RowResult

BLANK = "-"
"""Stands where there is no value."""
LEGEND = (
    "seeds: their number, and the standard deviation of nDCG@10 over them.",
    "share kept: nDCG@10 divided by the teacher's; gain kept: the gain over the first row divided by the teacher's gain.",
    "p: two-sided, against the first row (plain) and the row above. With one seed, it is the paired randomisation test over "
    "queries. With several seeds it covers queries and seeds: two-way analysis of variance, both random.",
    "Holm: the p before it, corrected for the number of collections of the row. It decides what counts as a difference. "
    "A p above 0.05 does not show that two rows are equally good.",
)
_VERDICT_MARKS = {"helps": " ▲", "harms": " ▼"}


def format_facts(collection: CollectionResult) -> str:
    """Return a line such as "trec_dl dl19 on index trec_dl, 43 queries"."""
    task = collection.task
    return f"{task.corpus} {task.split} on index {task.index}, {format_query_count(collection.query_count)}"


def format_cells(result: RowResult | None) -> tuple[str, ...]:
    """Return nDCG@10, seeds, share kept, gain kept, and the p-values against the first row and the row above.

    After each p-value comes the corrected one.
    """
    if result is None:
        return (BLANK,) * 8
    return (
        format_measure(result.ndcg_at_10),
        BLANK if result.deviation is None else f"{len(result.seeds)} ±{format_measure(result.deviation)}",
        format_percent(result.share_kept),
        format_percent(result.gain_kept),
        *_format_p_values(result.against_plain),
        *_format_p_values(result.against_above),
    )


def format_percent(share: float | None) -> str:
    """Return a share in whole percent, and "-" for None."""
    if share is None:
        return BLANK
    text = f"{share:.0%}"
    return "0%" if text == "-0%" else text


def format_comparison_p_value(comparison: Comparison | None) -> str:
    """Return the p-value of a comparison before correction, and "-" for None."""
    return BLANK if comparison is None else format_p_value(comparison.p_value)


def format_corrected_p_value(comparison: Comparison | None) -> str:
    """Return the corrected p-value of a comparison, and "-" for None."""
    return BLANK if comparison is None else format_p_value(comparison.deciding_p_value)


def format_marked_ndcg(result: RowResult | None) -> str:
    """Return nDCG@10, with a mark when it differs from that of the first row by more than chance."""
    if result is None:
        return BLANK
    verdict = result.against_plain.verdict if result.against_plain else ""
    return format_measure(result.ndcg_at_10) + _VERDICT_MARKS.get(verdict, "")


def _format_p_values(comparison: Comparison | None) -> tuple[str, str]:
    """Return the p-value before and after correction."""
    return format_comparison_p_value(comparison), format_corrected_p_value(comparison)
