"""Reads an index: its documents with their texts, and the terms that the engine's analyzer made of each document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.index_fields import AnalysedFields
from querylift.index_tools.fast_expander.index_scan import scan_hits
from querylift.plugin.errors import EngineError

_RANDOM_ORDER: Mapping[str, Any] = {
    "function_score": {"query": {"match_all": {}}, "random_score": {"seed": 1, "field": "_seq_no"}}
}
"""A query for all documents, in an order that is random and always the same."""


@dataclass(frozen=True, slots=True)
class IndexedDocument:
    """A document of the index, with its text."""

    index: str
    doc_id: str
    routing: str | None
    text: str

    @property
    def key(self) -> str:
        """The index and the id, which together are unique."""
        return f"{self.index}/{self.doc_id}"


def scan_documents(
    engine: Engine,
    expression: str,
    *,
    sources: Sequence[str],
    query: Mapping[str, Any] | None = None,
    size: int = 500,
) -> Iterator[list[IndexedDocument]]:
    """Yield every document of `expression` that `query` matches, in pages of at most `size`.

    Without `sources` the documents have no text. Without `query` all documents match.
    """
    body = {"size": size, "query": query or {"match_all": {}}, "_source": list(sources) or False}
    for hits in scan_hits(engine, expression, body):
        yield [_parse_hit(hit, sources) for hit in hits]


def search_documents(
    engine: Engine, expression: str, *, sources: Sequence[str], query: Mapping[str, Any], size: int
) -> list[IndexedDocument]:
    """Return the best `size` documents of `expression` for `query`."""
    return [_parse_hit(hit, sources) for hit in _search(engine, expression, sources, query, size)]


def search_random_documents(
    engine: Engine, expression: str, *, sources: Sequence[str], size: int
) -> list[IndexedDocument]:
    """Return a random sample of at most `size` documents of `expression`, the same one each time."""
    return [_parse_hit(hit, sources) for hit in _search(engine, expression, sources, _RANDOM_ORDER, size)]


def fetch_random_sources(engine: Engine, expression: str, *, sources: Sequence[str], size: int) -> list[dict[str, Any]]:
    """Return the source fields `sources` of the documents that `search_random_documents` returns."""
    return [hit.get("_source") or {} for hit in _search(engine, expression, sources, _RANDOM_ORDER, size)]


def _search(engine: Engine, expression: str, sources: Sequence[str], query: Mapping[str, Any], size: int) -> Any:
    body = {"size": size, "query": query, "_source": list(sources) or False}
    return engine.call("POST", f"/{expression}/_search", body)["hits"]["hits"]


def fetch_terms(
    engine: Engine, documents: Sequence[IndexedDocument], fields: AnalysedFields
) -> list[tuple[dict[str, int], ...]]:
    """Return, for each document, how often each term stands in each group of fields. A document that is gone has none.

    Stored term vectors make it quick. The engine answers in any order, so answers are matched by index and id. When the field
    is an unstored copy, its analyzer gets the texts instead of the ids. Those answers have no id, and come in the order of
    the request.
    """
    options = {
        "fields": list(fields.names),
        "positions": False,
        "offsets": False,
        "payloads": False,
        "field_statistics": False,
    }
    requests = [{"_index": document.index, **_identify_or_quote(document, fields), **options} for document in documents]
    answers = engine.call("POST", "/_mtermvectors", {"docs": requests})["docs"]
    counts_by_key: dict[str, tuple[dict[str, int], ...]] = {}
    for document, answer in zip(documents, answers, strict=True):
        if "error" in answer:
            raise EngineError(f"{engine.url} gave no terms of {answer.get('_id')!r}: {answer['error'].get('reason')}")
        vectors = answer.get("term_vectors", {})
        key = document.key if fields.unstored_copy else f"{answer['_index']}/{answer['_id']}"
        counts_by_key[key] = tuple(_count_terms(vectors, group) for group in fields.groups)
    without_terms: tuple[dict[str, int], ...] = tuple({} for _ in fields.groups)
    return [counts_by_key.get(document.key, without_terms) for document in documents]


def _count_terms(vectors: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """Return how often each term stands in the fields `names` together."""
    counts = Counter[str]()
    for name in names:
        terms = vectors.get(name, {}).get("terms", {})
        counts.update({term: int(facts["term_freq"]) for term, facts in terms.items()})
    return dict(counts)


def _identify_or_quote(document: IndexedDocument, fields: AnalysedFields) -> dict[str, Any]:
    """Return the part of a term request that says which document it is, or what its text is."""
    if fields.unstored_copy:
        return {"doc": {fields.unstored_copy: document.text}}
    return {"_id": document.doc_id, **({"routing": document.routing} if document.routing else {})}


def join_field_texts(source: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return the texts of the fields of a document's source, in the order of `fields`, with one space between words."""
    text = " ".join(part for name in fields for part in _walk_texts(_get_value(source, name)))
    # JSON may hold half of a surrogate pair, which tokenizers reject.
    encodable = text.encode("utf-8", "replace").decode()
    return " ".join(encodable.split())


def _parse_hit(hit: Mapping[str, Any], sources: Sequence[str]) -> IndexedDocument:
    text = join_field_texts(hit.get("_source") or {}, sources)
    return IndexedDocument(hit["_index"], hit["_id"], hit.get("_routing"), text)


def _get_value(source: Any, name: str) -> Any:
    """Return the value in `source` under a dotted name, however its objects are nested. None means that there is none."""
    if isinstance(source, list):
        return [value for item in source if (value := _get_value(item, name)) is not None]
    if not isinstance(source, Mapping):
        return None
    if name in source:
        return source[name]
    for position, character in enumerate(name):
        if character == "." and name[:position] in source:
            return _get_value(source[name[:position]], name[position + 1 :])
    return None


def _walk_texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value and in its nested lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _walk_texts(item)
