"""TABLE.toml of `querylift train report`: the rows to measure and the collections to measure them on.

Paths are relative to the file. Everything is checked when the file is read.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import MAX_TOKENS
from querylift.trainer.student.model_bases import PACKAGED_BASE, RANDOM_BASES

_MAX_VALUE_CHARS = 80


def _check_one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("write one line of printable characters")
    return text


def _get_folder(info: ValidationInfo) -> Path:
    """Return the folder of TABLE.toml."""
    return Path(info.context["folder"] if info.context else "")


def _resolve_path(path: Path, info: ValidationInfo) -> Path:
    return _get_folder(info) / path


def _resolve_corpus(spec: str, info: ValidationInfo) -> str:
    """Resolve the paths in the name of a corpus, if there are any."""
    folder = _get_folder(info)
    kind, colon, location = spec.partition(":")
    if spec == "builtin" or (colon and kind in ("ir", "irds")):
        return spec
    if kind == "trec" and re.match(r"(?:documents|topics|qrels)=", location):
        return re.sub(r"\b(documents|topics|qrels)=([^,]+)", lambda match: f"{match[1]}={folder / match[2]}", spec)
    return f"{kind}:{folder / location}" if colon and kind in ("beir", "trec") else str(folder / spec)


def _resolve_generator(spec: str, info: ValidationInfo) -> str:
    """Resolve the path in the name of a generator, if there is one."""
    kind, _, path = spec.partition(":")
    names_a_path = path and kind in ("table", "llama", "expander") and spec != "llama:base"
    return f"{kind}:{_get_folder(info) / path}" if names_a_path else spec


def _resolve_student(name: str, info: ValidationInfo) -> str:
    """Resolve the path of a student, unless it is the name of a model that needs no path."""
    return name if name in (PACKAGED_BASE, *RANDOM_BASES) else str(_get_folder(info) / name)


Name = Annotated[str, AfterValidator(_check_one_line)]
Weight = Annotated[float, Field(gt=0, le=10)]
RelativePath = Annotated[Path, AfterValidator(_resolve_path)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CollectionSettings(_Section):
    """`[[collection]]`: a judged split, and the index that holds its corpus. `split` may be left out when there is one.

    Queries that share a relevant document with a split of `apart_from` are left out.
    """

    name: Name
    corpus: Annotated[str, Field(min_length=1), AfterValidator(_resolve_corpus)]
    split: str | None = None
    index: Annotated[str, Field(min_length=1)]
    relevant_from: Annotated[int, Field(ge=1)] | None = None
    apart_from: tuple[Annotated[str, Field(min_length=1), AfterValidator(_resolve_corpus)], ...] = ()


class RowSettings(_Section):
    """`[[row]]`: one way to expand. `tables` has one mapping for each seed, from collection to table of expansions.

    With `cut_for`, the texts of the tables are cut to the tokens that this student may write.
    """

    name: Name
    tables: tuple[Mapping[str, RelativePath], ...] = ()
    generator: Annotated[str, Field(min_length=1), AfterValidator(_resolve_generator)] | None = None
    weight: Weight | None = None
    against: str | None = None
    """The row to compare it with, instead of the row above."""
    cut_for: Annotated[str, Field(min_length=1), AfterValidator(_resolve_student)] | None = None
    curves: tuple[RelativePath, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether this row is the search without expansion."""
        return not self.tables and self.generator is None

    def list_tables(self, collection: str) -> tuple[Path, ...]:
        """Return the tables to measure on a collection, one for each seed. () when the row lacks the collection."""
        return tuple(seed[collection] for seed in self.tables if collection in seed)

    def count_runs(self, collection: str) -> int:
        """Return the number of runs on a collection: one for each seed."""
        return 1 if self.is_plain or self.generator is not None else len(self.list_tables(collection))

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if self.tables and self.generator is not None:
            raise ValueError("tables and generator are both given; keep one of them")
        if self.cut_for is not None and not self.tables:
            raise ValueError(f"cut_for is {self.cut_for!r} without tables; only the texts of tables are cut")
        return self


class ResultsSettings(_Section):
    """All settings of TABLE.toml."""

    weight: Weight = 0.2
    teacher: str | None = None
    """The row that shares are calculated against."""
    collection: Annotated[tuple[CollectionSettings, ...], Field(min_length=1)]
    row: Annotated[tuple[RowSettings, ...], Field(min_length=1)]

    @property
    def run_count(self) -> int:
        """The number of runs: one for each row, collection and seed. The plain search runs once for each collection."""
        return sum(row.count_runs(collection.name) for collection in self.collection for row in self.row)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about these settings, for a reader of the results."""
        notes = [
            f"{row.name} is measured with weight {row.weight:g}"
            for row in self.row
            if row.weight is not None and row.weight != self.weight
        ]
        notes += [
            f"{row.name} is cut to the {MAX_TOKENS} tokens that {Path(row.cut_for).name} may write"
            for row in self.row
            if row.cut_for is not None
        ]
        if not self.teacher:
            notes.append("no share is shown: no teacher is named; name a row with teacher = NAME")
        return tuple(notes)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [row.name for row in self.row]
        collections = [collection.name for collection in self.collection]
        _check_distinct("row", names)
        _check_distinct("collection", collections)
        if self.teacher is not None and self.teacher not in names:
            raise ValueError(f"teacher is {self.teacher!r}, which is not a row; use one of: {', '.join(names)}")
        for row in self.row:
            _check_row(row, names, collections)
        return self

    @model_validator(mode="after")
    def _check_plain_row(self) -> Self:
        plain, *expanding = self.row
        if not plain.is_plain or plain.weight is not None or plain.against is not None:
            raise ValueError(f"row {plain.name!r} is the first, the plain search; give it a name and nothing else")
        for row in expanding:
            if row.is_plain:
                raise ValueError(f"row {row.name!r} has nothing to measure; give it tables or a generator")
        return self


def read_results_settings(path: Path) -> ResultsSettings:
    """Read and check TABLE.toml. Raises SettingsError, also when a table of expansions does not exist."""
    values = _read_toml(path)
    try:
        settings = ResultsSettings.model_validate(values, context={"folder": path.parent})
    except ValidationError as error:
        raise SettingsError(f"{path}: {_describe_error(error.errors(include_url=False)[0], values)}") from None
    for row in settings.row:
        for table in (table for seed in row.tables for table in seed.values()):
            if not table.is_file():
                raise SettingsError(
                    f"{path}: {table} of row {row.name!r} does not exist; make it, or take it out of the row"
                )
    return settings


def _check_distinct(kind: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{kind} {name!r} comes {count} times; give every {kind} a name of its own")


def _check_row(row: RowSettings, names: list[str], collections: list[str]) -> None:
    for name in (name for seed in row.tables for name in seed if name not in collections):
        raise ValueError(
            f"row {row.name!r} has a table for {name!r}, which is not a collection; use one of: {', '.join(collections)}"
        )
    if row.tables and not any(row.tables):
        raise ValueError(f"row {row.name!r} has tables without a file; write {{ {collections[0]} = FILE }}")
    if row.against is not None and (row.against not in names or row.against == row.name):
        other_names = ", ".join(name for name in names if name != row.name)
        raise ValueError(f"row {row.name!r} is set against {row.against!r}; name another row: {other_names}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror}); name a TOML file of rows and collections"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}; correct that line") from None


def _describe_error(error: Any, values: Mapping[str, Any]) -> str:
    """Return one sentence about an error of pydantic: the setting, its value and the remedy."""
    place = _format_location(error["loc"], values)
    if error["type"] == "missing":
        return f"{place} is missing; every file needs it" if len(error["loc"]) == 1 else f"{place} is missing; add it"
    if error["type"] == "extra_forbidden":
        return f"{place} is not a setting; remove it, or mend its spelling"
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and not isinstance(error["input"], str):
        return f"{place}: {problem}" if place else problem
    value = repr(error["input"])
    value = value if len(value) <= _MAX_VALUE_CHARS else f"{value[:_MAX_VALUE_CHARS]}…"
    return f"{place} is {value}: {problem[0].lower()}{problem[1:]}"


def _format_location(location: tuple[str | int, ...], values: Mapping[str, Any]) -> str:
    """Return "row 'SFT', weight" for ("row", 3, "weight"). A row without a name gets its number, from 1."""
    parts = [str(part + 1 if isinstance(part, int) else part) for part in location]
    if len(location) < 2 or not isinstance(location[1], int):
        return ".".join(parts)
    entry = values[str(location[0])][location[1]]
    name = entry.get("name") if isinstance(entry, Mapping) else None
    entry_name = f"{location[0]} {name!r}" if isinstance(name, str) and name else f"{location[0]} {parts[1]}"
    return ", ".join(filter(None, (entry_name, ".".join(parts[2:]))))
