"""Reads an index: its documents with their texts, by scroll, and the terms that the engine's analyzer made of each document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import EngineError, SettingsError

_TITLE_FIELDS = ("title", "headline", "heading", "subject")
_SCROLL_KEEP_ALIVE = "10m"
"""How long the engine keeps the scroll between two pages. Encoding a page takes seconds, or minutes on a busy machine."""


@dataclass(frozen=True, slots=True)
class AnalysedField:
    """The analysed field to take terms from, the indices that have it, and the source fields that hold its text.

    `is_unstored_copy` is True when other fields are copied to it and its term vectors are not stored. The engine then cannot
    give its terms by document id.
    """

    name: str
    indices: tuple[str, ...]
    aliases: tuple[str, ...]
    uuids: tuple[str, ...]
    sources: tuple[str, ...]
    is_unstored_copy: bool


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


def find_field(engine: Engine, expression: str, name: str, *, sources: Sequence[str] = ()) -> AnalysedField:
    """Return the field `name` of the indices that `expression` stands for, with its analyzer and its source fields.

    `sources` are the fields whose texts are encoded. By default, they are the fields that are copied to `name`. If there are
    none, the field itself is the source, or its parent when it is a sub-field. Titles come first and the others follow by
    name, because an encoder reads only the beginning of a long document.

    Raises SettingsError when an index lacks the field, or does not analyse it.
    """
    if not engine.has_index(expression):
        raise SettingsError(f"there is no index {expression} at {engine.url}; name another")
    mappings = engine.call("GET", f"/{expression}/_mapping")
    if not mappings:  # A pattern exists even when it stands for no index.
        raise SettingsError(f"there is no index {expression} at {engine.url}; name another")
    default_sources: set[str] = set()
    is_unstored_copy = False
    for index, mapping in mappings.items():
        properties = mapping["mappings"].get("properties", {})
        definition = _find_definition(properties, name)
        if definition is None or definition.get("type") != "text":
            problem = "no such field" if definition is None else f"one of type {definition.get('type')}"
            text_fields = sorted(field for field, _, other in _walk_fields(properties) if other.get("type") == "text")
            raise SettingsError(
                f"--field is {name!r}: {index} has {problem}; its text fields: {', '.join(text_fields) or 'none'}"
            )
        copied_fields = _find_copied_fields(properties, name)
        default_sources.update(copied_fields or [_find_source_name(properties, name)])
        is_unstored_copy |= bool(copied_fields) and definition.get("term_vector", "no") == "no"
    settings = engine.call("GET", f"/{expression}/_settings")
    aliases = engine.call("GET", f"/{expression}/_alias")
    return AnalysedField(
        name,
        indices=tuple(sorted(mappings)),
        aliases=tuple(sorted({alias for index in aliases.values() for alias in index.get("aliases", {})})),
        uuids=tuple(sorted(index["settings"]["index"]["uuid"] for index in settings.values())),
        sources=tuple(sources) or tuple(sorted(default_sources, key=_rank_title_first)),
        is_unstored_copy=is_unstored_copy,
    )


def find_analyzer(mapping: Mapping[str, Any], name: str) -> str | None:
    """Return the analyzer that the mapping of an index names for a field, and None when the field has the index's default."""
    definition = _find_definition(mapping["mappings"].get("properties", {}), name) or {}
    return definition.get("analyzer")


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
    body = {"size": size, "sort": ["_doc"], "query": query or {"match_all": {}}, "_source": list(sources) or False}
    answer = engine.call("POST", f"/{expression}/_search", body, params={"scroll": _SCROLL_KEEP_ALIVE})
    scroll_id = answer.get("_scroll_id")
    try:
        while hits := answer["hits"]["hits"]:
            if answer["_shards"]["failed"]:
                raise EngineError(f"{answer['_shards']['failed']} shards of {expression} did not answer; try again")
            yield [_parse_hit(hit, sources) for hit in hits]
            answer = engine.call("POST", "/_search/scroll", {"scroll": _SCROLL_KEEP_ALIVE, "scroll_id": scroll_id})
            scroll_id = answer.get("_scroll_id", scroll_id)
    finally:
        if scroll_id:
            engine.call("DELETE", "/_search/scroll", {"scroll_id": scroll_id}, params={"ignore": 404})


def search_documents(
    engine: Engine, expression: str, *, sources: Sequence[str], query: Mapping[str, Any], size: int
) -> list[IndexedDocument]:
    """Return the best `size` documents of `expression` for `query`."""
    body = {"size": size, "query": query, "_source": list(sources)}
    hits = engine.call("POST", f"/{expression}/_search", body)["hits"]["hits"]
    return [_parse_hit(hit, sources) for hit in hits]


def search_random_documents(
    engine: Engine, expression: str, *, sources: Sequence[str], size: int
) -> list[IndexedDocument]:
    """Return a random sample of at most `size` documents of `expression`, the same one each time."""
    query = {"function_score": {"query": {"match_all": {}}, "random_score": {"seed": 1, "field": "_seq_no"}}}
    return search_documents(engine, expression, sources=sources, query=query, size=size)


def fetch_terms(engine: Engine, documents: Sequence[IndexedDocument], field: AnalysedField) -> list[dict[str, int]]:
    """Return how often each term stands in `field` of each document, and {} for a document that is gone.

    Stored term vectors make it quick. The engine answers in any order, so answers are matched by index and id. When the field
    is an unstored copy, its analyzer gets the texts instead of the ids. Those answers have no id, and come in the order of
    the request.
    """
    options = {
        "fields": [field.name],
        "positions": False,
        "offsets": False,
        "payloads": False,
        "field_statistics": False,
    }
    requests = [{"_index": document.index, **_identify_or_quote(document, field), **options} for document in documents]
    answers = engine.call("POST", "/_mtermvectors", {"docs": requests})["docs"]
    counts_by_key: dict[str, dict[str, int]] = {}
    for document, answer in zip(documents, answers, strict=True):
        if "error" in answer:
            raise EngineError(f"{engine.url} gave no terms of {answer.get('_id')!r}: {answer['error'].get('reason')}")
        terms = answer.get("term_vectors", {}).get(field.name, {}).get("terms", {})
        key = document.key if field.is_unstored_copy else f"{answer['_index']}/{answer['_id']}"
        counts_by_key[key] = {term: int(facts["term_freq"]) for term, facts in terms.items()}
    return [counts_by_key.get(document.key, {}) for document in documents]


def _identify_or_quote(document: IndexedDocument, field: AnalysedField) -> dict[str, Any]:
    """Return the part of a term request that says which document it is, or what its text is."""
    if field.is_unstored_copy:
        return {"doc": {field.name: document.text}}
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


def _walk_fields(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (name, name in the source, definition) of every field and sub-field."""
    for name, definition in properties.items():
        full_name = f"{prefix}{name}"
        yield full_name, full_name, definition
        for sub_name, sub_definition in definition.get("fields", {}).items():
            yield f"{full_name}.{sub_name}", full_name, sub_definition
        yield from _walk_fields(definition.get("properties", {}), f"{full_name}.")


def _find_definition(properties: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return next((definition for field, _, definition in _walk_fields(properties) if field == name), None)


def _find_source_name(properties: Mapping[str, Any], name: str) -> str:
    """Return the field of the source that holds the text of a field: its parent when it is a sub-field, else itself."""
    return next(source for field, source, _ in _walk_fields(properties) if field == name)


def _find_copied_fields(properties: Mapping[str, Any], name: str) -> list[str]:
    """Return the fields that are copied to the field `name`."""

    def list_targets(definition: Mapping[str, Any]) -> list[str]:
        targets = definition.get("copy_to", [])
        return [targets] if isinstance(targets, str) else targets

    return [field for field, _, definition in _walk_fields(properties) if name in list_targets(definition)]


def _rank_title_first(name: str) -> tuple[bool, str]:
    """A sort key: titles come before other fields, and fields are sorted by name."""
    is_title = name.rpartition(".")[2].lower() in _TITLE_FIELDS or name == "name"
    return not is_title, name
