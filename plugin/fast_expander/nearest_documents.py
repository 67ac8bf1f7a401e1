"""The documents whose vectors are nearest to the query's, as a part of an expansion.

Their ids go beside the user's clause, so that the engine adds up its own score and that of a dense search. A document's
weight falls with its rank as in reciprocal-rank fusion (Cormack et al. 2009), but more slowly. It is on the scale of the
engine's scores: the score scale of an index is the score that the best hit of a short query usually has there.
docs/log.md has the measurements behind the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from querylift.plugin.expansion import WeightedDocument, select_documents

RANK_OFFSET = 150
"""The document of rank 1 weighs twice as much as that of rank 152."""
NEAREST_DOCUMENTS = 200
"""The number of nearest documents that an expansion has. `[index.NAME] documents` may take fewer."""
_SMALL_INDEX_SHARE = 10
"""In a small index, at most one document of so many is added. Otherwise every document would be near."""
_LEAST_DOCUMENTS = 10


def limit_nearest_documents(documents: int) -> int:
    """Return how many nearest documents an expansion has in an index of `documents`."""
    return min(NEAREST_DOCUMENTS, max(_LEAST_DOCUMENTS, documents // _SMALL_INDEX_SHARE))


def weigh_documents(doc_ids: Iterable[str], score_scale: float) -> tuple[WeightedDocument, ...]:
    """Return the documents, nearest first, each with the weight score_scale x 150 / (150 + rank). Ranks count from 1.

    A document that comes twice, from two indices, counts at its first place.
    """
    ranked_ids = enumerate(dict.fromkeys(doc_ids), 1)
    return select_documents(
        (doc_id, round(score_scale * RANK_OFFSET / (RANK_OFFSET + rank), 4)) for rank, doc_id in ranked_ids
    )
