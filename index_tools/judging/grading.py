"""Grading of a pool: a judge reads every pair of a query and a document that was pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from querylift.index_tools.corpora.records import Qrels
from querylift.index_tools.engine import Engine
from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS, fetch_document_texts
from querylift.index_tools.judging.grader import Grader, QueryDocumentPair
from querylift.index_tools.judging.judged_qrels import ModelJudgment, collect_qrels
from querylift.index_tools.judging.pooling import Pool
from querylift.plugin.errors import SettingsError


@dataclass(frozen=True, slots=True)
class GradedPool:
    """The grades of a pool, and the texts that were read, by document id.

    `textless_count` is the number of pairs whose document has no text, and so no grade.
    """

    judgments: tuple[ModelJudgment, ...]
    textless_count: int
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def qrels(self) -> Qrels:
        """The grades by query and document."""
        return collect_qrels(self.judgments)


def grade_pool(
    grader: Grader,
    pool: Pool,
    queries: Mapping[str, str],
    *,
    engine: Engine,
    index: str,
    fields: Sequence[str] = DEFAULT_TEXT_FIELDS,
    progress: Callable[[int], None] = lambda count: None,
) -> GradedPool:
    """Return the judge's grade of every pair of the pool, by the texts that the engine has of the documents.

    `queries` are the texts by query id. `progress` is called with the number of pairs graded so far. Raises SettingsError
    when nothing can be graded, or the judge gives a grade that is not on its scale.
    """
    if not pool.pair_count:
        raise SettingsError(
            f"no query finds a document on {index}, so there is nothing to grade; name other fields to search"
        )
    doc_ids = {doc_id for ids in pool.doc_ids.values() for doc_id in ids}
    texts = fetch_document_texts(engine, index, doc_ids, fields)
    keys = [(query_id, doc_id) for query_id, ids in pool.doc_ids.items() for doc_id in ids if doc_id in texts]
    pairs = [QueryDocumentPair(queries[query_id], texts[doc_id]) for query_id, doc_id in keys]
    judgments = []
    for (query_id, doc_id), predicted in zip(keys, grader.grade_pairs(pairs, progress=progress), strict=True):
        if not grader.scale.contains(predicted.grade):
            raise SettingsError(
                f"the judge {grader.name} gave the grade {predicted.grade!r}, but its scale ends at "
                f"{grader.scale.highest}; export the judge again"
            )
        judgments.append(ModelJudgment(query_id, doc_id, predicted.grade, predicted.probability))
    return GradedPool(tuple(judgments), pool.pair_count - len(judgments), texts)
