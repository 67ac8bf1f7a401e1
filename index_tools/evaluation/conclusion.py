"""What a measurement says for a person: how many queries were expanded, what was left out, and what to do now.

A measurement in which no query was expanded says nothing about expansion, so it has no conclusion.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from querylift.index_tools.evaluation.comparison import Comparison
from querylift.index_tools.evaluation.html_report import Report, format_query_count
from querylift.index_tools.judging.grade_source import NOT_MEASURED, GradeSource
from querylift.index_tools.searching import SearchedRun
from querylift.index_tools.text_columns import WIDTH, replace_unprintable
from querylift.plugin.outcome import REASONS

_MAX_NAMED_QUERIES = 5


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """How many queries were expanded, skipped and not expanded in spite of a try. `by_outcome` has the commonest first."""

    expanded: int
    skipped: int
    failed: int
    by_outcome: Mapping[str, int]

    @classmethod
    def of_run(cls, searched: SearchedRun) -> OutcomeCounts:
        """Count the outcomes of a run. A query without an outcome was sent to something that is no proxy, unexpanded."""
        by_outcome = dict(Counter(searched.outcomes.values()).most_common())
        kinds: Counter[str] = Counter()
        for outcome, count in by_outcome.items():
            kinds[outcome.partition(";")[0]] += count
        return cls(
            expanded=kinds["expanded"] + kinds["cached"],
            skipped=kinds["skipped"] + kinds[""],
            failed=kinds["late"] + kinds["error"],
            by_outcome=by_outcome,
        )

    def format_summary(self) -> str:
        """Return "40 expanded, 3 skipped, 1 failed"."""
        return f"{self.expanded} expanded, {self.skipped} skipped, {self.failed} failed"

    def format_outcomes(self) -> str:
        """Return how many queries had each outcome, such as "expanded 40, late;budget 3"."""
        return ", ".join(f"{outcome or 'sent unchanged'} {count}" for outcome, count in self.by_outcome.items())

    def iter_reason_lines(self) -> Iterator[str]:
        """Yield a sentence for each outcome that is more than an expansion, such as "3 skipped;sort: the hits are not ..."."""
        for outcome, count in self.by_outcome.items():
            kind, _, reason = outcome.partition(";")
            if reason or kind not in ("expanded", "cached"):
                sentence = REASONS.get(reason, "the answer has no header X-Querylift, so no proxy sent it")
                yield f"{count} {outcome or 'sent unchanged'}: {sentence}"


def format_observations(report: Report, runs: Mapping[str, SearchedRun], counts: OutcomeCounts) -> str:
    """Return what a reader must know beside the means, as lines of at most 80 columns. `runs` are the runs by system."""
    lines = [f"queries: {counts.format_summary()}", *(f"  {line}" for line in counts.iter_reason_lines())]
    names_by_sentence: dict[str, list[str]] = {}
    for name, searched in runs.items():
        if searched.refusals:
            names_by_sentence.setdefault(describe_refusals(searched.refusals), []).append(name)
    lines += [f"{' and '.join(names)}: {sentence}" for sentence, names in names_by_sentence.items()]
    lines += list_judge_lines(report)
    lines.append(f"judged documents: {describe_judged_documents(report)}")
    shares = [(row.name, row.evaluation.unjudged_share) for row in report.systems]
    shown_shares = ", ".join(f"{share:.0%} {name}" for name, share in shares if share is not None)
    if shown_shares:
        lines.append(f"never judged, of the first ten hits: {shown_shares}")
    return "\n".join(
        textwrap.fill(replace_unprintable(line), WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        for line in lines
    )


def list_judge_lines(report: Report) -> list[str]:
    """Return which model judged and how well it agrees with people, what recall counts, and how many queries are left out.

    The queries that are left out have no relevant document. The list is empty when people judged.
    """
    if report.judged_by is None:
        return []
    lines = [report.judged_by.sentence, "recall counts graded documents only, and the judge grades first hits only"]
    if left_out := len(report.systems[0].evaluation.without_relevant):
        lines.append(
            f"not counted: {format_query_count(left_out)} without a document of grade {report.relevant_from} or more"
        )
    return lines


def describe_judged_documents(report: Report) -> str:
    """Return "345", or "345, 12 of them not in the index"."""
    missing = f", {report.missing_document_count:,} of them not in the index" if report.missing_document_count else ""
    return f"{report.judged_document_count:,}{missing}"


def format_advice(
    index: str,
    comparison: Comparison,
    counts: OutcomeCounts,
    index_settings: str,
    *,
    judged_by: GradeSource | None = None,
) -> str:
    """Say what to put into querylift.toml after this measurement. At least one query was expanded.

    `index_settings` holds the measured settings as TOML lines. It is empty when a proxy has them already. `judged_by` is the
    model on whose grades the advice rests, and None when people judged.
    """
    if comparison.verdict == "helps":
        toml = f'To switch it on:\n\n[index."{index}"]\n{index_settings}'
        advice = f"It helps here. {toml if index_settings else 'Keep the settings of the proxy.'}"
    elif comparison.verdict == "harms":
        advice = f"It harms here. Leave expansion off on {index}."
    else:
        # A judge may leave queries without a relevant document. They were expanded, but are not compared.
        compared_count, searched_count = len(comparison.differences), sum(counts.by_outcome.values())
        share = f", {counts.expanded} of them expanded" if compared_count == searched_count else ""
        advice = (
            f"No difference beyond chance was seen with {format_query_count(compared_count)}{share}.\n"
            f"Leave expansion off on {index}."
        )
    if counts.failed:
        advice += f"\n{counts.failed} expansions failed. Correct that, and measure again before you rely on this."
    if judged_by is not None:
        advice += f"\nThis rests on the grades of a model, {judged_by.judge}, and not on people's."
        if judged_by.agreement.startswith(NOT_MEASURED):
            advice += "\nCheck them against a person: `querylift judge sample`, then `judge check`."
    return advice


def explain_missing_conclusion(counts: OutcomeCounts) -> str:
    """Return the sentence that refuses to conclude, because no query was expanded."""
    remedy = "correct --body, --field, the settings or the generator"
    if set(counts.by_outcome) == {""}:
        remedy = "name the URL of a Querylift proxy with --via"
    return f"no query was expanded ({counts.format_outcomes()}), so nothing was measured; {remedy}"


def describe_refusals(refusals: Mapping[str, str]) -> str:
    """Return how many searches the engine refused, with the ids and the reasons of the first few."""
    examples = islice(refusals.items(), _MAX_NAMED_QUERIES)
    named = ", ".join(f"{query_id!r} ({reason})" for query_id, reason in examples)
    more = f" and {len(refusals) - _MAX_NAMED_QUERIES} more" if len(refusals) > _MAX_NAMED_QUERIES else ""
    return f"the engine refused {format_query_count(len(refusals))}, counted as 0: {named}{more}"
