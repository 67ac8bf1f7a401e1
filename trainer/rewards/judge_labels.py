"""Labels from a judge: it grades the documents that the candidates' own searches return first.

The searches come before the labels. The first documents of each query's own search and of all its candidates' rewrites are
pooled and graded once. Every other document counts as not relevant, so a measure that looks deeper than the pool, such
as recall@100, sees only graded documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from querylift.index_tools.engine import Engine
from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS
from querylift.index_tools.judging.grader import Grader
from querylift.index_tools.judging.grading import grade_pool
from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.labels import Labels
from querylift.trainer.rewards.scoring import CandidatePool

JUDGE_PREFIX = "judge:"
"""`--labels judge:FOLDER` names a judge in place of a file."""


def make_judge_labels(
    pooled: CandidatePool,
    candidates: Sequence[Candidate],
    grader: Grader,
    *,
    engine: Engine,
    index: str,
    relevant_from: int | None = None,
    fields: Sequence[str] = DEFAULT_TEXT_FIELDS,
    progress: Callable[[int], None] = lambda count: None,
) -> Labels:
    """Grade the pool, and return the grades as labels. `relevant_from` is the judge's own when it is None.

    `progress` is called with the number of pairs graded so far. Raises SettingsError when nothing can be graded, or the
    judge finds no relevant document for any query.
    """
    queries = {candidate.query_id: candidate.query for candidate in candidates}
    graded = grade_pool(grader, pooled.pool, queries, engine=engine, index=index, fields=fields, progress=progress)
    labels = Labels(graded.qrels, f"{JUDGE_PREFIX}{grader.name}", relevant_from or grader.scale.relevant_from)
    if not labels.select_usable_qrels():
        raise SettingsError(
            f"{grader.name} gave no document of {index} the grade {labels.relevant_from} or more, so no candidate can be "
            "scored; check the index, or lower --relevant-from"
        )
    return labels
