"""The documents of an index, by scroll, with their texts; and the terms that the engine's analyzer made of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import EngineError, SettingsError

_TITLES = ("title", "headline", "heading", "subject")
_KEEP = "10m"
"""How long the engine keeps the scroll between two batches: encoding one takes seconds, on a busy machine minutes."""


@dataclass(frozen=True, slots=True)
class Field:
    """The analysed field to take terms from, the indices that have it, and the fields of the source with its text.

    `is_unkept` where its terms cannot be asked for by document: others are copied to it, and its vectors are not stored.
    """

    name: str
    indices: tuple[str, ...]
    aliases: tuple[str, ...]
    uuids: tuple[str, ...]
    sources: tuple[str, ...]
    is_unkept: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A document as the scan found it."""

    index: str
    doc_id: str
    routing: str | None
    text: str

    @property
    def key(self) -> str:
        """What tells it from every other document."""
        return f"{self.index}/{self.doc_id}"


def find_field(engine: Engine, expression: str, name: str, *, sources: Sequence[str] = ()) -> Field:
    """The field `name` of the indices that `expression` stands for. Raises SettingsError where one has it not, or not analysed.

    `sources` are by default the fields that are copied to it, else itself, a sub-field's being those of its parent. A title goes
    first, the others by name, as the engine lists them: an encoder reads a long document's beginning.
    """
    if not engine.exists(expression):
        raise SettingsError(f"there is no index {expression} at {engine.url}")
    mappings = engine.call("GET", f"/{expression}/_mapping")
    if not mappings:  # a pattern exists whatever it stands for
        raise SettingsError(f"there is no index {expression} at {engine.url}")
    found: set[str] = set()
    is_unkept = False
    for index, mapping in mappings.items():
        properties = mapping["mappings"].get("properties", {})
        definition = _definition(properties, name)
        if definition is None or definition.get("type") != "text":
            kind = "no such field" if definition is None else f"one of type {definition.get('type')}"
            known = ", ".join(sorted(_text_fields(properties))) or "none"
            raise SettingsError(f"--field is {name!r}: {index} has {kind}; its text fields: {known}")
        copied = _copied_to(properties, name)
        found.update(copied or [_stored_as(properties, name)])
        is_unkept |= bool(copied) and definition.get("term_vector", "no") == "no"
    settings = engine.call("GET", f"/{expression}/_settings")
    aliases = engine.call("GET", f"/{expression}/_alias")
    return Field(
        name,
        indices=tuple(sorted(mappings)),
        aliases=tuple(sorted({alias for index in aliases.values() for alias in index.get("aliases", {})})),
        uuids=tuple(sorted(one["settings"]["index"]["uuid"] for one in settings.values())),
        sources=tuple(sources) or tuple(sorted(found, key=_place)),
        is_unkept=is_unkept,
    )


def scan(
    engine: Engine,
    expression: str,
    *,
    sources: Sequence[str],
    query: Mapping[str, Any] | None = None,
    size: int = 500,
) -> Iterator[list[Hit]]:
    """Every document of `expression` that `query` matches, in batches of at most `size`. No `sources`: ids only."""
    body = {"size": size, "sort": ["_doc"], "query": query or {"match_all": {}}, "_source": list(sources) or False}
    answer = engine.call("POST", f"/{expression}/_search", body, params={"scroll": _KEEP})
    scroll_id = answer.get("_scroll_id")
    try:
        while hits := answer["hits"]["hits"]:
            if answer["_shards"]["failed"]:
                raise EngineError(f"{answer['_shards']['failed']} shards of {expression} did not answer; try again")
            yield [_hit(hit, sources) for hit in hits]
            answer = engine.call("POST", "/_search/scroll", {"scroll": _KEEP, "scroll_id": scroll_id})
            scroll_id = answer.get("_scroll_id", scroll_id)
    finally:
        if scroll_id:
            engine.call("DELETE", "/_search/scroll", {"scroll_id": scroll_id}, params={"ignore": 404})


def first(engine: Engine, expression: str, *, sources: Sequence[str], query: Mapping[str, Any], size: int) -> list[Hit]:
    """The best `size` documents of `expression` for `query`."""
    body = {"size": size, "query": query, "_source": list(sources)}
    hits = engine.call("POST", f"/{expression}/_search", body)["hits"]["hits"]
    return [_hit(hit, sources) for hit in hits]


def terms_of(engine: Engine, hits: Sequence[Hit], field: Field) -> list[dict[str, int]]:
    """How often each term stands in `field` of each of `hits`; {} for one that is gone. Stored vectors make it quick.

    The answers are matched by index and id: the engine gives them in an order of its own. Where the field is unkept, its
    analyzer is given the texts in place of the ids, and the answers, which have none, come in the order of the questions.
    """
    wanted = {
        "fields": [field.name],
        "positions": False,
        "offsets": False,
        "payloads": False,
        "field_statistics": False,
    }
    docs = [{"_index": hit.index, **_asked(hit, field), **wanted} for hit in hits]
    answered = engine.call("POST", "/_mtermvectors", {"docs": docs})["docs"]
    found: dict[str, dict[str, int]] = {}
    for hit, doc in zip(hits, answered, strict=True):
        if "error" in doc:
            raise EngineError(f"{engine.url} gave no terms of {doc.get('_id')!r}: {doc['error'].get('reason')}")
        terms = doc.get("term_vectors", {}).get(field.name, {}).get("terms", {})
        key = hit.key if field.is_unkept else f"{doc['_index']}/{doc['_id']}"
        found[key] = {term: int(facts["term_freq"]) for term, facts in terms.items()}
    return [found.get(hit.key, {}) for hit in hits]


def _asked(hit: Hit, field: Field) -> dict[str, Any]:
    if field.is_unkept:
        return {"doc": {field.name: hit.text}}
    return {"_id": hit.doc_id, **({"routing": hit.routing} if hit.routing else {})}


def _hit(hit: Mapping[str, Any], sources: Sequence[str]) -> Hit:
    source = hit.get("_source") or {}
    text = " ".join(part for name in sources for part in _texts(_value(source, name)))
    whole = text.encode("utf-8", "replace").decode()  # JSON may hold half of a surrogate pair, which no tokenizer takes
    return Hit(hit["_index"], hit["_id"], hit.get("_routing"), " ".join(whole.split()))


def _value(source: Any, name: str) -> Any:
    """What stands in `source` under a dotted name, however its objects are nested."""
    if not isinstance(source, Mapping):
        return (
            [found for one in source if (found := _value(one, name)) is not None] if isinstance(source, list) else None
        )
    if name in source:
        return source[name]
    for at, character in enumerate(name):
        if character == "." and name[:at] in source:
            return _value(source[name[:at]], name[at + 1 :])
    return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _fields(properties: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, name in the source, definition) of every field and sub-field."""
    for name, definition in properties.items():
        full = f"{before}{name}"
        yield full, full, definition
        for sub, inner in definition.get("fields", {}).items():
            yield f"{full}.{sub}", full, inner
        yield from _fields(definition.get("properties", {}), f"{full}.")


def analyzer_of(mapping: Mapping[str, Any], name: str) -> str | None:
    """The analyzer that an index's mapping names for a field, None where it is the index's own."""
    definition = _definition(mapping["mappings"].get("properties", {}), name) or {}
    return definition.get("analyzer")


def _definition(properties: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return next((definition for full, _, definition in _fields(properties) if full == name), None)


def _text_fields(properties: Mapping[str, Any]) -> list[str]:
    return [full for full, _, definition in _fields(properties) if definition.get("type") == "text"]


def _place(name: str) -> tuple[bool, str]:
    is_title = name.rpartition(".")[2].lower() in _TITLES or name == "name"
    return not is_title, name


def _copied_to(properties: Mapping[str, Any], name: str) -> list[str]:
    def targets(definition: Mapping[str, Any]) -> list[str]:
        given = definition.get("copy_to", [])
        return [given] if isinstance(given, str) else given

    return [full for full, _, definition in _fields(properties) if name in targets(definition)]


def _stored_as(properties: Mapping[str, Any], name: str) -> str:
    return next(source for full, source, _ in _fields(properties) if full == name)
