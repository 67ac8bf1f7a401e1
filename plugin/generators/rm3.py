"""The generator `feedback`: RM3 (Lavrenko and Croft 2001; Abdul-Jaleel et al. 2004).

One search returns the first documents, and one `_mtermvectors` request returns their terms. A term's weight is the sum
over the documents of P(term | document) x P(document | query). P(document | query) is the document's share of the scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from querylift.plugin.engine.access import ANONYMOUS_ACCESS, EngineAccess
from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import Expansion, expansion_from_terms
from querylift.plugin.fast_expander.term_filter import compute_document_limit, is_usable_term
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.engine_reader import EngineReader


class Rm3Generator:
    """Expands a query with the `terms` heaviest terms of its first `documents` hits.

    The generator searches the analysed field `field` and reads terms from it. With None it uses the first field that
    the search names.
    """

    reads_index = True

    def __init__(
        self,
        engine: str | Iterable[str],
        *,
        field: str | None = None,
        documents: int = 10,
        terms: int = 20,
        access: EngineAccess = ANONYMOUS_ACCESS,
    ) -> None:
        self._engine = EngineReader(engine, access)
        self.uses_account = bool(access.headers)
        self._field = field
        self._documents = documents
        self._terms = terms
        # Two clusters may share a cache and an index name, so the identity holds the engine too.
        self.identity = f"feedback:rm3:{documents}:{terms}:{field or ''}:{self._engine.engine_digest}"

    async def start(self) -> None:
        """Open the connection pool."""
        await self._engine.start()

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the heaviest terms, or None when the search has no hits. Raises GeneratorError."""
        field = self._field or next((name for name in request.fields if "*" not in name), None)
        if field is None:
            raise GeneratorError(
                "feedback needs a field to read terms from; name one as feedback.field in the settings"
            )
        body = {"query": {"match": {field: request.text}}, "size": self._documents}
        hits = await self._engine.search_documents(request.index, body)
        if not hits:
            return None
        vectors = await self._engine.fetch_term_vectors(hits, field)
        scores = {(hit["_index"], hit["_id"]): float(hit["_score"]) for hit in hits}
        weights = estimate_relevance_model(vectors, scores, field=field)
        heaviest = sorted(weights.items(), key=lambda entry: (-entry[1], entry[0]))[: self._terms]
        return expansion_from_terms(heaviest, field=field)

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.close()


def estimate_relevance_model(
    vectors: Iterable[Mapping[str, Any]], scores: Mapping[tuple[str, str], float], *, field: str
) -> dict[str, float]:
    """Return P(term | relevance model) of every usable term.

    This is the sum over documents of term frequency / document length x score / sum of scores. `vectors` are the `docs`
    of `_mtermvectors`, `scores` the BM25 scores by index and document id. `querylift.plugin.fast_expander.term_filter` says which
    terms are usable. Without documents the result is empty.
    """
    score_sum = sum(scores.values()) or 1.0
    weights: defaultdict[str, float] = defaultdict(float)
    for document in vectors:
        field_vector = document.get("term_vectors", {}).get(field, {})
        terms = field_vector.get("terms", {})
        length = sum(statistics.get("term_freq", 0) for statistics in terms.values()) or 1
        document_limit = compute_document_limit(field_vector.get("field_statistics", {}).get("doc_count", 0))
        score = scores.get((document.get("_index", ""), document.get("_id", "")), 0)
        for term, statistics in terms.items():
            if is_usable_term(term) and statistics.get("doc_freq", 1) <= document_limit:
                weights[term] += statistics.get("term_freq", 0) / length * score / score_sum
    return dict(weights)
