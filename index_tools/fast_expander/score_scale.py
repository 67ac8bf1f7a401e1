"""Measures the score scale of an index: the score that the best hit of a short query usually has there.

The openings of some documents serve as queries, and each document is left out of its own search. The scale depends on the
analyzer, the similarity and the size of the index, so nobody has to know them: Chinese pairs of characters score twice
as high as English words.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from querylift.index_tools.engine import Engine, SearchRefusal, encode_json
from querylift.index_tools.fast_expander.index_fields import AnalysedFields
from querylift.index_tools.fast_expander.index_reader import search_random_documents
from querylift.plugin.words import take_first_words

_SAMPLE_DOCUMENTS = 60
_OPENING_WORDS = 8
_FALLBACK_SCALE = 8.0
"""The scale of an index in which no two documents share a word. It is near that of our English collections."""


def measure_score_scale(engine: Engine, index: str, fields: AnalysedFields) -> float:
    """Return the median score of the best hit over a random sample of openings."""
    documents = search_random_documents(engine, index, sources=fields.sources, size=_SAMPLE_DOCUMENTS)
    bodies = [
        _build_search(fields.names, take_first_words(document.text, _OPENING_WORDS), document.doc_id)
        for document in documents
        if document.text
    ]
    best_scores = _search_best_scores(engine, index, bodies) if bodies else []
    return round(statistics.median(best_scores), 2) if best_scores else _FALLBACK_SCALE


def _build_search(names: Sequence[str], opening: str, doc_id: str) -> bytes:
    match = {"multi_match": {"query": opening, "fields": list(names)}}
    query = {"bool": {"must": [match], "must_not": [{"ids": {"values": [doc_id]}}]}}
    return encode_json({"query": query, "size": 1, "_source": False})


def _search_best_scores(engine: Engine, index: str, bodies: Sequence[bytes]) -> list[float]:
    answers = engine.search_many(index, bodies)
    hits = [answer["hits"]["hits"] for answer in answers if not isinstance(answer, SearchRefusal)]
    return [float(first_hits[0]["_score"]) for first_hits in hits if first_hits]
