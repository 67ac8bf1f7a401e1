"""Check of a judge against a sheet that a person graded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from querylift.index_tools.engine import Engine
from querylift.index_tools.judging.agreement import (
    GradePair,
    bootstrap_interval,
    compute_kappa,
    compute_macro_f1,
    count_confusions,
)
from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS, fetch_document_texts
from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.index_tools.judging.grader import Grader, QueryDocumentPair
from querylift.index_tools.judging.rating_sheet import RatedSheet
from querylift.plugin.errors import SettingsError

MIN_RATED_PAIRS = 10
"""With fewer rated pairs, kappa says nothing."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class SheetAgreement:
    """How well a judge agrees with a person. Each interval holds 95% of the bootstrap values, over queries.

    `confusions` has a row for each grade of the person, and a column for each grade of the judge. `missing_count` rated pairs
    are left out, because the index no longer has a text of their document.
    """

    pair_count: int
    query_count: int
    unrated_count: int
    kappa_grades: float
    kappa_grades_interval: Interval
    kappa_relevant: float
    kappa_relevant_interval: Interval
    macro_f1: float
    confusions: Sequence[Sequence[int]]
    missing_count: int = 0


def check_sheet(
    sheet: RatedSheet,
    grader: Grader,
    *,
    engine: Engine,
    index: str,
    fields: Sequence[str] = DEFAULT_TEXT_FIELDS,
    progress: Callable[[int], None] = lambda count: None,
) -> SheetAgreement:
    """Grade the rated pairs of a sheet, and compare the judge's grades with the person's.

    Raises SettingsError when fewer than ten pairs are rated, or when the index has texts of fewer than ten of them.
    """
    if len(sheet.pairs) < MIN_RATED_PAIRS:
        raise SettingsError(
            f"the sheet has {len(sheet.pairs)} rated pairs and {sheet.unrated_count} without a rating; "
            f"rate at least {MIN_RATED_PAIRS}, better 50"
        )
    texts = fetch_document_texts(engine, index, {pair.doc_id for pair in sheet.pairs}, fields)
    missing_ids = sorted({pair.doc_id for pair in sheet.pairs} - texts.keys())
    rated_pairs = [pair for pair in sheet.pairs if pair.doc_id in texts]
    if len(rated_pairs) < MIN_RATED_PAIRS:
        raise SettingsError(
            f"{index} has no text of document {missing_ids[0]!r} of the sheet ({len(missing_ids)} such documents); "
            "name the index and the fields that the sheet was made from"
        )
    pairs = [QueryDocumentPair(pair.query, texts[pair.doc_id]) for pair in rated_pairs]
    predicted = grader.grade_pairs(pairs, progress=progress)
    pairs_by_query: dict[str, list[GradePair]] = {}
    for pair, prediction in zip(rated_pairs, predicted, strict=True):
        pairs_by_query.setdefault(pair.query, []).append((pair.rating, prediction.grade))
    agreement = _compare_grades(pairs_by_query, grader.scale, unrated_count=sheet.unrated_count)
    return replace(agreement, missing_count=len(sheet.pairs) - len(rated_pairs))


def _compare_grades(
    pairs_by_query: dict[str, list[GradePair]], scale: GradeScale, *, unrated_count: int
) -> SheetAgreement:
    grade_pairs = [pair for pairs in pairs_by_query.values() for pair in pairs]
    person, judge = [rating for rating, _ in grade_pairs], [grade for _, grade in grade_pairs]
    kappa_of_grades = partial(compute_kappa, grades=scale.grades)
    kappa_of_relevance = partial(_compute_relevance_kappa, relevant_from=scale.relevant_from)
    return SheetAgreement(
        pair_count=len(grade_pairs),
        query_count=len(pairs_by_query),
        unrated_count=unrated_count,
        kappa_grades=kappa_of_grades(person, judge),
        kappa_grades_interval=bootstrap_interval(pairs_by_query, kappa_of_grades),
        kappa_relevant=kappa_of_relevance(person, judge),
        kappa_relevant_interval=bootstrap_interval(pairs_by_query, kappa_of_relevance),
        macro_f1=compute_macro_f1(person, judge, scale.grades),
        confusions=count_confusions(person, judge, scale.grades),
    )


def _compute_relevance_kappa(first: Sequence[int], second: Sequence[int], *, relevant_from: int) -> float:
    """Return kappa over relevant or not."""
    a, b = ([int(grade >= relevant_from) for grade in grades] for grades in (first, second))
    return compute_kappa(a, b, (0, 1))
