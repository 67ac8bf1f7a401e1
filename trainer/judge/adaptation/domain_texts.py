"""The texts of a domain: documents of an index or a corpus, sampled and stored, so that a resumed run reads the same ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from querylift.index_tools.corpora.json_rows import get_json_id, get_json_text, read_jsonl
from querylift.index_tools.corpora.records import Document
from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.field_choice import choose_fields, list_chosen_names
from querylift.index_tools.fast_expander.index_fields import find_fields
from querylift.index_tools.fast_expander.index_reader import scan_documents
from querylift.plugin.errors import SettingsError
from querylift.plugin.files import open_for_replacement
from querylift.plugin.settings import Settings


def iter_index_documents(
    settings: Settings, index: str, fields: Sequence[str], *, say: Callable[[str], None]
) -> Iterator[Document]:
    """Stream the documents of an index, with the texts of its analysed `fields`.

    Without `fields`, a look at the index chooses them, as the build of an expander does. Raises SettingsError.
    """
    with Engine(settings) as engine:
        names = tuple(fields) or list_chosen_names(choose_fields(engine, index))
        analysed = find_fields(engine, index, names)
        say(f"reading {', '.join(names)} of {index}")
        for page in scan_documents(engine, index, sources=analysed.sources):
            for document in page:
                yield Document(document.key, "", document.text)


def sample_documents(documents: Iterable[Document], count: int, *, seed: int, source: str) -> list[Document]:
    """Return `count` documents with a text, each as likely as any other, or all when there are fewer.

    Raises SettingsError with `source` when no document has a text.
    """
    draw = random.Random(seed)
    sample: list[Document] = []
    with_text = (document for document in documents if document.title.strip() or document.text.strip())
    for position, document in enumerate(with_text):
        if position < count:
            sample.append(document)
        elif (slot := draw.randrange(position + 1)) < count:
            sample[slot] = document
    if not sample:
        raise SettingsError(f"no document of {source} has a text; name other fields or another source")
    return sample


def write_documents(documents: Iterable[Document], path: Path) -> None:
    """Write one JSON object for each document. The file appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_for_replacement(path) as stream:
        for document in documents:
            row = {"_id": document.doc_id, "title": document.title, "text": document.text}
            stream.write(json.dumps(row).encode() + b"\n")


def read_documents(path: Path) -> list[Document]:
    """Return the documents that `write_documents` wrote."""
    return [
        Document(
            get_json_id(path, number, row),
            get_json_text(path, number, row, names=("title",)),
            get_json_text(path, number, row, names=("text",)),
        )
        for number, row in read_jsonl(path)
    ]
