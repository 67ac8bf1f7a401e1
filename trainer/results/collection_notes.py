"""Sentences about what is special in the results of one collection."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from querylift.index_tools.evaluation.conclusion import describe_refusals
from querylift.index_tools.judging.grade_source import GradeSource
from querylift.trainer.results.records import RowResult
from querylift.trainer.results.table_settings import RowSettings

EXPANDED_OUTCOMES = ("expanded", "cached")


def list_collection_notes(
    results: Mapping[str, RowResult],
    rows: Sequence[RowSettings],
    teacher: str | None,
    *,
    judged_by: GradeSource | None = None,
) -> tuple[str, ...]:
    """Return the notes about a judging model, a missing teacher, unusual comparisons, refused searches and unexpanded queries.

    `judged_by` is the model that made the judgments, and None when people made them.
    """
    return (
        *([judged_by.sentence] if judged_by else ()),
        *_write_teacher_notes(results, teacher),
        *_write_comparison_notes(results, rows),
        *_write_refusal_notes(results),
        *_write_unexpanded_notes(results),
    )


def _write_teacher_notes(results: Mapping[str, RowResult], teacher: str | None) -> Iterator[str]:
    if teacher is not None and teacher not in results:
        yield f"no share is shown: the teacher, {teacher}, has no result here"
    elif teacher is not None and results[teacher].gain_kept is None:
        yield f"no share of gain is shown: the teacher, {teacher}, gains nothing here"


def _write_comparison_notes(results: Mapping[str, RowResult], rows: Sequence[RowSettings]) -> Iterator[str]:
    """Yield a note for each row that is not compared with the row above it in the table."""
    for previous, row in pairwise(rows):
        above = results[row.name].above if row.name in results else previous.name
        if row.name in results and above not in results:
            yield f"{row.name} is to be compared with {above}, which has no result here"
        elif above != previous.name:
            yield f"the row above {row.name} is here {above}"


def _write_refusal_notes(results: Mapping[str, RowResult]) -> Iterator[str]:
    """Yield which searches the engine refused. Rows with the same sentence share it."""
    names_by_sentence: dict[str, list[str]] = defaultdict(list)
    for name, result in results.items():
        refusals = {query_id: reason for seed in result.seeds for query_id, reason in seed.refusals.items()}
        if refusals:
            names_by_sentence[describe_refusals(refusals)].append(name)
    for sentence, names in names_by_sentence.items():
        yield f"{'; '.join(names) if len(names) < len(results) else 'every row'}: {sentence}"


def _write_unexpanded_notes(results: Mapping[str, RowResult]) -> Iterator[str]:
    """Yield how many queries a row had no expansion for. Rows with the same sentence share it."""
    expanding_rows = [name for name, result in results.items() if result.above]
    names_by_sentence: dict[str, list[str]] = defaultdict(list)
    for name in expanding_rows:
        if any(seed.unexpanded for seed in results[name].seeds):
            names_by_sentence[_describe_unexpanded(results[name])].append(name)
    for sentence, names in names_by_sentence.items():
        subject = "; ".join(names)
        if len(names) > max(1, len(expanding_rows) / 2):
            exceptions = "; ".join(name for name in expanding_rows if name not in names)
            subject = f"every row but {exceptions}" if exceptions else "every row"
        yield f"{subject}: {sentence}"


def _describe_unexpanded(result: RowResult) -> str:
    """Return a sentence such as "no expansion for 1, 0 of 3 queries (skipped;nothing 1)", with a count for each seed."""
    counts = ", ".join(str(seed.unexpanded) for seed in result.seeds)
    outcomes = sum((Counter(seed.outcomes) for seed in result.seeds), Counter[str]())
    reasons = ", ".join(
        f"{outcome} {count}" for outcome, count in outcomes.most_common() if outcome not in EXPANDED_OUTCOMES
    )
    return f"no expansion for {counts} of {len(result.per_query)} queries ({reasons})"
