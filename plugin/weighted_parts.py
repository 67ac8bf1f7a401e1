"""The weighted terms and documents of an expansion: records, their bounds, and their JSON. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

MAX_TERMS = 128
"""An expansion keeps at most so many weighted terms, the heaviest ones."""
MAX_DOCUMENTS = 200
"""An expansion keeps at most so many documents, the heaviest ones."""
MAX_DOCUMENT_ID_CHARS = 512
"""The engines take no longer `_id`."""
MAX_WEIGHT = 1e12
"""A larger weight is a fault of its source."""


@dataclass(frozen=True, slots=True)
class WeightedTerm:
    """A term as the engine's analyzer writes it into an index, and its weight above 0, relative to the other terms.

    `surface` is the surface word of the term, for fields with another analyzer. It is "" when none is known. `fields` are
    the analysed fields that the term belongs to. Empty, they stand for the field of the expansion.
    """

    term: str
    weight: float
    surface: str = ""
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightedDocument:
    """A document that is probably relevant, by its `_id`, and the score above 0 that is added to its own."""

    doc_id: str
    weight: float


TermGroup: TypeAlias = tuple[Sequence[str], Iterable[tuple[str, float]], Mapping[str, str]]
"""The fields of a group, (term, weight) of each term, and the surface words of terms. All the fields hold each term."""


def select_terms(groups: Iterable[TermGroup]) -> tuple[WeightedTerm, ...]:
    """Return the `MAX_TERMS` heaviest terms of all groups, heaviest first and ties by term.

    A usable weight is above 0 and at most `MAX_WEIGHT`. A term that comes twice in a group gets the heavier weight.
    """
    terms: list[WeightedTerm] = []
    for fields, weights, surfaces in groups:
        usable: dict[str, float] = {}
        for term, weight in weights:
            if isinstance(term, str) and term and isinstance(weight, int | float) and 0 < weight <= MAX_WEIGHT:
                usable[term] = max(float(weight), usable.get(term, 0.0))
        names = tuple(fields)
        terms += [
            WeightedTerm(term, weight, _get_surface_word(surfaces, term), names) for term, weight in usable.items()
        ]
    return tuple(sorted(terms, key=lambda term: (-term.weight, term.term, term.fields))[:MAX_TERMS])


def describe_terms(terms: Sequence[WeightedTerm]) -> dict[str, Any]:
    """Return the JSON of terms of the same fields, without the fields."""
    surfaces = {term.term: term.surface for term in terms if term.surface}
    weights = {"terms": {term.term: term.weight for term in terms}}
    return weights | {"surfaces": surfaces} if surfaces else weights


def read_term_groups(value: Mapping[str, Any]) -> list[TermGroup]:
    """Return the groups of an expansion's JSON object, which may have one `field` instead. Raises ValueError."""
    groups = value.get("groups", [{**value, "fields": [value.get("field")]}])
    if not isinstance(groups, list) or not all(map(_is_group, groups)):
        raise ValueError('the expansion has neither "text" nor "field" and "terms"; write one of the two')
    return [(group["fields"], group["terms"].items(), group.get("surfaces", {})) for group in groups]


def _is_group(value: Any) -> bool:
    """Whether a JSON value is a group of terms, as `Expansion.to_json` writes it."""
    if not isinstance(value, Mapping) or not isinstance(fields := value.get("fields"), list):
        return False
    are_names = bool(fields) and all(isinstance(name, str) and name for name in fields)
    return are_names and isinstance(value.get("terms"), Mapping) and isinstance(value.get("surfaces", {}), Mapping)


def read_documents(value: Mapping[str, Any]) -> tuple[WeightedDocument, ...]:
    """Return the documents of an expansion's JSON object, () when it has none. Raises ValueError for another shape."""
    documents = value.get("documents", {})
    if not isinstance(documents, Mapping):
        raise ValueError('"documents" is no object; write {"the _id of a document": its weight}')
    weighted_documents = select_documents(documents.items())
    if documents and not weighted_documents:
        raise ValueError("the expansion has no usable document; give at least one a weight above 0")
    return weighted_documents


def select_documents(documents: Iterable[tuple[str, float]]) -> tuple[WeightedDocument, ...]:
    """Return the `MAX_DOCUMENTS` heaviest of (`_id`, weight), heaviest first. Documents of one weight keep their order.

    A usable weight is above 0 and at most `MAX_WEIGHT`.
    """
    usable = [
        WeightedDocument(doc_id, float(weight))
        for doc_id, weight in documents
        if isinstance(doc_id, str)
        and 0 < len(doc_id) <= MAX_DOCUMENT_ID_CHARS
        and isinstance(weight, int | float)
        and 0 < weight <= MAX_WEIGHT
    ]
    return tuple(sorted(usable, key=lambda document: -document.weight)[:MAX_DOCUMENTS])


def _get_surface_word(surfaces: Mapping[str, str] | None, term: str) -> str:
    surface = surfaces.get(term, "") if surfaces else ""
    return surface if isinstance(surface, str) else ""
