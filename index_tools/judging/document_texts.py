"""Texts of documents as a judge reads them: the title and then the text, or the fields that the user names."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.index_reader import join_field_texts
from querylift.plugin.errors import SettingsError

DEFAULT_TEXT_FIELDS = ("title", "text")
"""The source fields that are read when the user names none."""
_IDS_PER_SEARCH = 200


def fetch_document_texts(
    engine: Engine, index: str, doc_ids: Collection[str], fields: Sequence[str] = DEFAULT_TEXT_FIELDS
) -> dict[str, str]:
    """Return the text of each document by its id: the texts of `fields` in that order, joined.

    `fields` are source fields; a dotted name is a field of an object. A document that the index lacks, or that has no
    text in the fields, is left out. Warns of a field that no document has, unless the fields are the default ones. Raises
    SettingsError when the index has some of the documents and none has a text.
    """
    texts: dict[str, str] = {}
    document_count = 0
    empty_fields = set(fields) - set(DEFAULT_TEXT_FIELDS)
    ids = sorted(set(doc_ids))
    for start in range(0, len(ids), _IDS_PER_SEARCH):
        sources = engine.find_documents(index, ids[start : start + _IDS_PER_SEARCH], fields=fields)
        document_count += len(sources)
        empty_fields -= {
            field for source in sources.values() for field in empty_fields if join_field_texts(source, [field])
        }
        texts |= {doc_id: text for doc_id, source in sources.items() if (text := join_field_texts(source, fields))}
    if document_count and not texts:
        raise SettingsError(
            f"no document of {index} has a text in {' or '.join(fields)}; name the fields to read with --field, "
            "or with --judge-field in `evaluate` and `train score`"
        )
    if texts and empty_fields:
        names = " or ".join(field for field in fields if field in empty_fields)
        click.echo(f"warning: none of the {document_count} documents that are read has a text in {names}", err=True)
    return texts
