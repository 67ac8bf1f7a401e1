"""An expander's folder: `expander.json`, which describes the expander, and the files that it lists with their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import EncoderSettings

RECORD_FILE = "expander.json"
FORMAT_VERSION = 1
"""Version of the folder's layout. A folder of another version cannot be used."""
_REMEDY = "build it with `querylift expander build`"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileFacts(_Record):
    """Digest and size of a file when it was written."""

    sha256: str
    size_bytes: int


class FieldGroup(_Record):
    """Fields of one analyzer, which share their terms.

    `terms` is how many of the vocabulary's terms are theirs. `probe` holds words, and the terms that the analyzer made of
    each.
    """

    names: tuple[str, ...]
    terms: int
    probe: Mapping[str, tuple[str, ...]]


class SourceIndex(_Record):
    """The index that an expander was built from, as it was then.

    `index` is the expression that the user gave. `indices` and `aliases` are what it stood for. `documents` counts the
    documents with text, `in_index` all documents. `probe` holds words, and the terms that the analyzer of `field` made of
    each. `groups` holds the fields of an expander of several fields, and begins with the group of `field`. It is empty when
    there is only `field`. `sample` is the share of the documents that was read. `slice` is such as "3/8" when the folder
    holds only a slice, which is merged with the others before it is served.
    """

    index: str
    indices: tuple[str, ...]
    aliases: tuple[str, ...]
    uuids: tuple[str, ...]
    field: str
    documents: int
    in_index: int
    engine: str
    probe: Mapping[str, tuple[str, ...]]
    changed_field: str = ""
    changed_until: str | float = ""
    groups: tuple[FieldGroup, ...] = ()
    sample: float = 1.0
    slice: str = ""

    def list_groups(self, terms: int) -> tuple[FieldGroup, ...]:
        """Return the groups of fields. `terms` is the size of the vocabulary."""
        return self.groups or (FieldGroup(names=(self.field,), terms=terms, probe=self.probe),)

    def list_index_names(self) -> tuple[str, ...]:
        """Return the names on which searches are expanded. A name may occur twice."""
        return (self.index, *self.indices, *self.aliases)

    def explain_mismatch(self, expression: str) -> str:
        """Return why a search on the index expression `expression` is not expanded; "" when it is."""
        names = set(self.list_index_names())
        if names.issuperset(expression.split(",")):
            return ""
        return f"was built from {', '.join(sorted(names))}, but the search is on {expression}"


class ExpansionShape(_Record):
    """How many terms an expansion has, and how their weights are computed. docs/how-to/fast-expander.md explains each value."""

    terms: Annotated[int, Field(ge=1, le=128)] = 40
    power: Annotated[float, Field(gt=0, le=2)] = 0.5
    documents: Annotated[int, Field(ge=1, le=200)] = 20
    temperature: Annotated[float, Field(gt=0)] = 0.08


class EndpointRecord(_Record):
    """The endpoint that makes the vectors, and what it is asked. `probes` holds texts and their vectors as queries.

    The prefix is put before a text that is cut to `max_chars`. An input type goes into the request unless it is empty.
    """

    url: str
    model: str
    query_prefix: str = ""
    document_prefix: str = ""
    query_input_type: str = ""
    document_input_type: str = ""
    max_chars: int
    probes: Mapping[str, tuple[float, ...]] = {}


class ExpanderRecord(_Record):
    """The contents of `expander.json`.

    An encoder has either `reading`, when it is in the folder, or `endpoint`. `score_scale` is the score that the
    best hit of a short query usually has on the index. `measures_temperature` says that the build chose the temperature of
    the shape; that of a slice is measured when all slices are merged.
    """

    version: int
    form: Literal["neighbours", "terms", "cluster"]
    built: str
    source: SourceIndex
    reading: EncoderSettings | None = None
    endpoint: EndpointRecord | None = None
    encoder: str
    width: int
    terms: int
    shape: ExpansionShape
    measures_temperature: bool = False
    trained: tuple[str, ...] = ()
    score_scale: Annotated[float, Field(gt=0)] = 1.0
    files: Mapping[str, FileFacts]


def read_expander_record(folder: Path) -> ExpanderRecord:
    """Read a folder's `expander.json`. Raises SettingsError when it is missing, invalid or of another version."""
    path = folder / RECORD_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder} is not an expander, because it has no {RECORD_FILE}; {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    version = value.get("version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise SettingsError(
            f"{path} has version {version!r}, but this Querylift reads version {FORMAT_VERSION}; {_REMEDY}"
        )
    try:
        return ExpanderRecord.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        key = ".".join(map(str, details["loc"]))
        problem = "missing" if details["type"] == "missing" else f"{details.get('input')!r} ({details['msg'].lower()})"
        raise SettingsError(f"{path}: {key} is {problem}; {_REMEDY}") from None


def check_files(folder: Path, record: ExpanderRecord) -> None:
    """Raise SettingsError when a file of the folder is missing or has changed since it was written, or it is a slice."""
    if record.source.slice:
        raise SettingsError(
            f"{folder} is only slice {record.source.slice} of an expander; merge all slices with `querylift expander merge`"
        )
    check_listed_files(folder, record)


def check_listed_files(folder: Path, record: ExpanderRecord) -> None:
    """Raise SettingsError when a file of the folder is missing or has changed since it was written."""
    for name, expected in record.files.items():
        path = folder / name
        try:
            facts = read_file_facts(path)
        except OSError as error:
            raise SettingsError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None
        if facts != expected:
            raise SettingsError(
                f"{path} has changed since it was built (it has {facts.size_bytes} bytes now); {_REMEDY}"
            )


def read_file_facts(path: Path) -> FileFacts:
    """Return digest and size of a file. Raises OSError."""
    with path.open("rb") as file:
        return FileFacts(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size_bytes=file.tell())


def collect_file_facts(folder: Path, names: Iterable[str]) -> dict[str, FileFacts]:
    """Return digest and size of each of these files of `folder`. Raises OSError."""
    return {name: read_file_facts(folder / name) for name in names}


def compute_expander_identity(folder: Path) -> str:
    """Return the name of an expander in caches and candidates. It changes when any of its files changes. Raises OSError."""
    return f"expander:{read_file_facts(folder / RECORD_FILE).sha256[:16]}"
