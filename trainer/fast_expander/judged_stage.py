"""The stage `judged`: the relevant documents of judged queries, and a teacher's candidates, give the target terms."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from querylift.index_tools.fast_expander.surface_words import SurfaceWords
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import clean_prose
from querylift.trainer.candidates import Candidate
from querylift.trainer.fast_expander.matrix_training import MatrixWeights, fit_to_targets
from querylift.trainer.fast_expander.term_targets import normalize_rows
from querylift.trainer.fast_expander.training_context import JudgedTrainingQueries, TrainingContext

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_MAX_BATCH_SIZE = 128


def train_on_judgments(
    context: TrainingContext, weights: MatrixWeights, judged: JudgedTrainingQueries
) -> MatrixWeights:
    """Train on judged queries. A share `judged_share` of a target comes from the judgments, the rest from its neighbours.

    Raises SettingsError when no query has a target.
    """
    options = context.options
    query_ids, targets = _build_targets(context, judged)
    if not query_ids:
        raise SettingsError(
            "no judged query has a relevant document or a candidate with a term of the index; name another split"
        )
    vectors = context.encode_queries(judged.queries[query_id] for query_id in query_ids)
    neighbour_targets = context.targets.build_from_neighbours(vectors)
    mixed_targets = options.judged_share * targets + (1 - options.judged_share) * neighbour_targets
    context.tell(f"{len(query_ids)} judged queries")
    return fit_to_targets(
        weights,
        vectors,
        normalize_rows(mixed_targets.tocsr()),
        epochs=options.judged_epochs,
        learning_rate=options.judged_learning_rate,
        batch_size=min(options.batch_size, _MAX_BATCH_SIZE),
        seed=context.seed,
        tell=context.tell,
    )


def _build_targets(context: TrainingContext, judged: JudgedTrainingQueries) -> tuple[list[str], csr_matrix]:
    """Return query ids, and for each of them a row that sums to 1.

    A row holds the terms of the relevant documents and the terms of the candidates, half each when the query has both.
    Queries without such terms are left out.
    """
    from scipy.sparse import vstack

    numbers = {key.partition("/")[2]: number for number, key in enumerate(context.document_keys)}
    candidate_rows = _build_candidate_rows(context, judged.candidates)
    query_ids, rows = [], []
    for query_id in judged.queries:
        grades = judged.labels.qrels.get(query_id, {})
        relevant = [
            numbers[doc_id]
            for doc_id, grade in grades.items()
            if grade >= judged.labels.relevant_from and doc_id in numbers
        ]
        sources = [context.targets.build_from_documents(relevant)] if relevant else []
        sources += [candidate_rows[query_id]] if query_id in candidate_rows else []
        row = normalize_rows(sum(sources[1:], sources[0])) if sources else None
        if row is not None and row.nnz:
            query_ids.append(query_id)
            rows.append(row)
    return query_ids, vstack(rows).tocsr() if rows else None


def _build_candidate_rows(context: TrainingContext, candidates: Iterable[Candidate]) -> dict[str, csr_matrix]:
    """Return, by query id, a row of terms. A term weighs the share of the candidates that have it, times its idf."""
    from scipy.sparse import csr_matrix

    texts_by_query: dict[str, list[str]] = defaultdict(list)
    for candidate in candidates:
        texts_by_query[candidate.query_id].append(clean_prose(candidate.text))
    source = context.record.source
    words = sorted({word for texts in texts_by_query.values() for text in texts for word in text.lower().split()})
    terms_of = SurfaceWords(context.engine, source.indices[0], source.field).analyze_words(words)
    rows = {}
    for query_id, texts in texts_by_query.items():
        votes = Counter(term for text in texts for term in {t for word in text.lower().split() for t in terms_of[word]})
        counts = {context.term_numbers[term]: count for term, count in votes.items() if term in context.term_numbers}
        if counts:
            columns = np.array(sorted(counts))
            shares = np.array([counts[int(number)] for number in columns]) / len(texts)
            weights = shares * context.idf[columns]
            shape = (1, len(context.term_numbers))
            row = csr_matrix((weights, (np.zeros(len(columns), dtype=int), columns)), shape=shape)
            rows[query_id] = normalize_rows(row)
    return rows
