"""What stands in an expander's folder: expander.json, which describes it, and the files that it names with their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import Reading

ABOUT = "expander.json"
VERSION = 1
"""Of the files' layout. A folder of another one is refused."""
_REMEDY = "build it with `querylift expander build`"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileFacts(_Record):
    """A file as it was written."""

    sha256: str
    size_bytes: int


class Source(_Record):
    """The index as it was read: the expression that was given, and the indices that it stood for with their aliases.

    `documents` are those with text, `in_index` all of them. `probe` holds words and the terms that the analyzer of `field`
    made of each.
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

    def names(self) -> tuple[str, ...]:
        """Searches on any of these are expanded."""
        return (self.index, *self.indices, *self.aliases)

    def refusal(self, expression: str) -> str:
        """Why a search on `expression` is not expanded; "" where it is."""
        if set(self.names()).issuperset(expression.split(",")):
            return ""
        return f"was built from {', '.join(sorted(set(self.names())))}, and the search is on {expression}"


class Shape(_Record):
    """How many terms make an expansion and how their weights are made; docs/expander.md has each one's meaning."""

    terms: Annotated[int, Field(ge=1, le=128)] = 40
    power: Annotated[float, Field(gt=0, le=2)] = 0.5
    documents: Annotated[int, Field(ge=1, le=200)] = 20
    temperature: Annotated[float, Field(gt=0)] = 0.08


class About(_Record):
    """expander.json, whole."""

    version: int
    form: Literal["neighbours", "terms", "cluster"]
    built: str
    source: Source
    reading: Reading
    encoder: str
    width: int
    terms: int
    shape: Shape
    trained: tuple[str, ...] = ()
    files: Mapping[str, FileFacts]


def read_about(folder: Path) -> About:
    """What `folder` says of itself. Raises SettingsError where it is no expander's, or of another version."""
    path = folder / ABOUT
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder} has no {ABOUT}, so it is no expander; {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    version = value.get("version") if isinstance(value, dict) else None
    if version != VERSION:
        raise SettingsError(f"{path} is of version {version!r}, this Querylift reads {VERSION}; {_REMEDY}")
    try:
        return About.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        problem = "missing" if first["type"] == "missing" else f"{first.get('input')!r} ({first['msg'].lower()})"
        raise SettingsError(f"{path}: {key} is {problem}; {_REMEDY}") from None


def check_files(folder: Path, about: About) -> None:
    """Raise SettingsError where a file of the folder is missing, or is not what was written."""
    for name, facts in about.files.items():
        path = folder / name
        try:
            found = facts_of(path)
        except OSError as error:
            raise SettingsError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None
        if found != facts:
            raise SettingsError(f"{path} is not the file that was built ({found.size_bytes} bytes); {_REMEDY}")


def facts_of(path: Path) -> FileFacts:
    """Hash and size of a file. Raises OSError."""
    with path.open("rb") as file:
        return FileFacts(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size_bytes=file.tell())


def identity_of(folder: Path) -> str:
    """What an expander is called in caches and candidates: another one as soon as anything of it differs. Raises OSError."""
    return f"expander:{facts_of(folder / ABOUT).sha256[:16]}"


def facts_of_all(folder: Path, names: Iterable[str]) -> dict[str, FileFacts]:
    """Hash and size of each of `names`."""
    return {name: facts_of(folder / name) for name in names}
