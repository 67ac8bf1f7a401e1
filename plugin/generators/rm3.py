"""RM3: terms of the engine's own first documents (Lavrenko and Croft 2001; Abdul-Jaleel et al. 2004).

One search for the first documents and one `_mtermvectors` for their terms. The weight of a term is the sum over the
documents of P(term | document) x P(document | query), the latter the share of the score.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import Expansion, from_terms
from querylift.plugin.fast_expander.term_filter import is_usable, most_documents
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.engine_reader import EngineReader


class FeedbackGenerator:
    """Terms of the first `documents` hits of the query, the `terms` heaviest.

    `field` is the analysed field to search and to read terms from; None takes the first field that the search names.
    """

    reads_index = True

    def __init__(
        self,
        engine: str,
        *,
        field: str | None = None,
        documents: int = 10,
        terms: int = 20,
        auth: aiohttp.BasicAuth | None = None,
        ssl: Any = True,
    ) -> None:
        self._engine = EngineReader(engine, auth=auth, ssl=ssl)
        self._field = field
        self._documents = documents
        self._terms = terms
        where = hashlib.sha256(engine.encode()).hexdigest()[:8]  # two clusters may share a cache and an index name
        self.identity = f"feedback:rm3:{documents}:{terms}:{field or ''}:{where}"

    async def start(self) -> None:
        """Open the connection pool."""
        await self._engine.start()

    async def expand(self, ask: Ask) -> Expansion | None:
        """The heaviest feedback terms; None where nothing was found."""
        field = self._field or next((f for f in ask.fields if "*" not in f), None)
        if field is None:
            raise GeneratorError("engine feedback needs a field; name one as feedback.field in the settings")
        body = {"query": {"match": {field: ask.text}}, "size": self._documents}
        hits = await self._engine.first_documents(ask.index, body)
        if not hits:
            return None
        vectors = await self._engine.term_vectors(hits, field)
        weights = relevance_model(vectors, {h["_id"]: float(h["_score"]) for h in hits}, field=field)
        heaviest = sorted(weights.items(), key=lambda tw: (-tw[1], tw[0]))[: self._terms]
        return from_terms(heaviest, field=field)

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.close()


def relevance_model(
    vectors: Iterable[Mapping[str, Any]], scores: Mapping[str, float], *, field: str
) -> dict[str, float]:
    """P(term | relevance model) of every usable term: sum over documents of tf / length x score / sum of scores.

    `vectors` are the `docs` of `_mtermvectors`, `scores` the BM25 scores by document id. Terms of one character, of
    digits alone, or in too many of the documents (`querylift.plugin.fast_expander.term_filter`) are left out. Empty in, empty out.
    """
    total = sum(scores.values()) or 1.0
    weights: defaultdict[str, float] = defaultdict(float)
    for doc in vectors:
        part = doc.get("term_vectors", {}).get(field, {})
        terms = part.get("terms", {})
        length = sum(t.get("term_freq", 0) for t in terms.values()) or 1
        most = most_documents(part.get("field_statistics", {}).get("doc_count", 0))
        for term, facts in terms.items():
            if is_usable(term) and facts.get("doc_freq", 1) <= most:
                weights[term] += facts.get("term_freq", 0) / length * scores.get(doc.get("_id", ""), 0) / total
    return dict(weights)
