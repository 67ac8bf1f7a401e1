"""TABLE.toml of `querylift train report`: which rows are measured on which collections, checked when it is read.

Paths are relative to the file.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from querylift.plugin.errors import SettingsError

_SHOWN_CHARS = 80


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("write one line of printable characters")
    return text


def _folder(info: ValidationInfo) -> Path:
    return Path(info.context["folder"] if info.context else "")


def _beside(path: Path, info: ValidationInfo) -> Path:
    return _folder(info) / path


def _corpus_beside(spec: str, info: ValidationInfo) -> str:
    """`spec` with the paths in it, if any, taken from the file's folder."""
    folder = _folder(info)
    kind, colon, rest = spec.partition(":")
    if spec == "builtin" or (colon and kind in ("ir", "irds")):
        return spec
    if kind == "trec" and re.match(r"(?:documents|topics|qrels)=", rest):
        return re.sub(r"\b(documents|topics|qrels)=([^,]+)", lambda m: f"{m[1]}={folder / m[2]}", spec)
    return f"{kind}:{folder / rest}" if colon and kind in ("beir", "trec") else str(folder / spec)


def _generator_beside(spec: str, info: ValidationInfo) -> str:
    kind, _, rest = spec.partition(":")
    return f"{kind}:{_folder(info) / rest}" if rest and kind in ("table", "llama") else spec


Name = Annotated[str, AfterValidator(_one_line)]
Weight = Annotated[float, Field(gt=0, le=10)]
BesidePath = Annotated[Path, AfterValidator(_beside)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CollectionSettings(_Strict):
    """`[[collection]]`: a judged split and the index that holds its corpus. `split` may be left out where there is one."""

    name: Name
    corpus: Annotated[str, Field(min_length=1), AfterValidator(_corpus_beside)]
    split: str | None = None
    index: Annotated[str, Field(min_length=1)]
    relevant_from: Annotated[int, Field(ge=1)] | None = None


class RowSettings(_Strict):
    """`[[row]]`: one way to expand. `tables` has one mapping per seed, from a collection's name to a table of expansions."""

    name: Name
    tables: tuple[Mapping[str, BesidePath], ...] = ()
    generator: Annotated[str, Field(min_length=1), AfterValidator(_generator_beside)] | None = None
    weight: Weight | None = None
    against: str | None = None
    """The row that it is compared with instead of the row above."""
    curves: tuple[BesidePath, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether this is the search without expansion."""
        return not self.tables and self.generator is None

    def generators(self, collection: str) -> tuple[str, ...]:
        """What to measure on a collection, one a seed; nothing where the row lacks it."""
        if self.generator is not None:
            return (self.generator,)
        return tuple(f"table:{seed[collection]}" for seed in self.tables if collection in seed)

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if self.tables and self.generator is not None:
            raise ValueError("tables and generator are both given; keep one of them")
        return self


class ResultsSettings(_Strict):
    """The whole of TABLE.toml."""

    weight: Weight = 0.2
    teacher: str | None = None
    """The row that the shares kept are shares of."""
    collection: Annotated[tuple[CollectionSettings, ...], Field(min_length=1)]
    row: Annotated[tuple[RowSettings, ...], Field(min_length=1)]

    @property
    def measurements(self) -> int:
        """How many runs are made: one for every row, collection and seed, and the plain search once a collection."""
        return sum(max(row.plain, len(row.generators(c.name))) for c in self.collection for row in self.row)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results has to know of these settings."""
        weights = [r for r in self.row if r.weight is not None and r.weight != self.weight]
        named = [f"{row.name} is measured with weight {row.weight:g}" for row in weights]
        unnamed = "no share is shown: no teacher is named; name a row with teacher = NAME"
        return (*named, *(() if self.teacher else (unnamed,)))

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names, collections = [row.name for row in self.row], [c.name for c in self.collection]
        _distinct("row", names)
        _distinct("collection", collections)
        if self.teacher is not None and self.teacher not in names:
            raise ValueError(f"teacher is {self.teacher!r}, which is no row; the rows are: {', '.join(names)}")
        for row in self.row:
            _check_row(row, names, collections)
        return self

    @model_validator(mode="after")
    def _only_the_first_row_is_plain(self) -> Self:
        first, *others = self.row
        if not first.plain or first.weight is not None or first.against is not None:
            raise ValueError(f"row {first.name!r} is the first, the plain search; give it a name and nothing else")
        for row in others:
            if row.plain:
                raise ValueError(f"row {row.name!r} has nothing to measure; give it tables or a generator")
        return self


def read_settings(path: Path) -> ResultsSettings:
    """Read and check TABLE.toml. Raises SettingsError, one sentence, also for a table of expansions that is not there."""
    values = _read_toml(path)
    try:
        settings = ResultsSettings.model_validate(values, context={"folder": path.parent})
    except ValidationError as error:
        raise SettingsError(f"{path}: {_sentence(error.errors(include_url=False)[0], values)}") from None
    for row, table in _tables(settings):
        if not table.is_file():
            raise SettingsError(f"{path}: {table} of row {row!r} does not exist; make it, or take it out of the row")
    return settings


def _tables(settings: ResultsSettings) -> Iterator[tuple[str, Path]]:
    return ((row.name, table) for row in settings.row for seed in row.tables for table in seed.values())


def _distinct(what: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{what} {name!r} comes {count} times; give every {what} a name of its own")


def _check_row(row: RowSettings, names: list[str], collections: list[str]) -> None:
    for name in (name for seed in row.tables for name in seed if name not in collections):
        known = ", ".join(collections)
        raise ValueError(f"row {row.name!r} has a table for {name!r}, which is no collection; there are: {known}")
    if row.tables and not any(row.tables):
        raise ValueError(f"row {row.name!r} has tables without a file; write {{ {collections[0]} = FILE }}")
    if row.against is not None and (row.against not in names or row.against == row.name):
        known = ", ".join(name for name in names if name != row.name)
        raise ValueError(f"row {row.name!r} is set against {row.against!r}; name another row: {known}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror}); name a TOML file of rows and collections"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None


def _sentence(error: Any, values: Mapping[str, Any]) -> str:
    place = _place(error["loc"], values)
    if error["type"] == "missing":
        return f"{place} is missing; every file needs it" if len(error["loc"]) == 1 else f"{place} is missing; add it"
    if error["type"] == "extra_forbidden":
        return f"{place} is not a setting; remove it, or mend its spelling"
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and not isinstance(error["input"], str):
        return f"{place}: {problem}" if place else problem
    shown = repr(error["input"])
    shown = shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"
    return f"{place} is {shown}: {problem[0].lower()}{problem[1:]}"


def _place(loc: tuple[str | int, ...], values: Mapping[str, Any]) -> str:
    """ "row 'SFT', weight" for ("row", 3, "weight"); a row without a name is counted from 1."""
    parts = [str(part + 1 if isinstance(part, int) else part) for part in loc]
    if len(loc) < 2 or not isinstance(loc[1], int):
        return ".".join(parts)
    entry = values[str(loc[0])][loc[1]]
    name = entry.get("name") if isinstance(entry, Mapping) else None
    which = f"{loc[0]} {name!r}" if isinstance(name, str) and name else f"{loc[0]} {parts[1]}"
    return ", ".join(filter(None, (which, ".".join(parts[2:]))))
