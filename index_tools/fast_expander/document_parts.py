"""Parts: files of some thousand documents that a build has read. The next build starts from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import open_for_replacement

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array

PARTS_FOLDER, PLAN_FILE, CURRENT_ROWS_FILE, LOCK_FILE = "parts", "plan.json", "kept.json", ".lock"
_ARRAYS = ("digests", "vectors")
_GROUP_ARRAYS = ("ends", "terms", "counts", "lengths")
"""The arrays of each group. Those of the first group have these names, and those of group 1 are `ends.1` and so on."""
_JSON_ENTRY = "said"
"""The name inside a part file of its JSON: keys, vocabularies and surface words."""


@dataclass(frozen=True, slots=True)
class CountedTerms:
    """The terms of documents in one group of fields.

    * The terms of document i are `terms[ends[i-1]:ends[i]]`, which are numbers in `vocabulary`. `counts` holds how often
      each of them stands in the document, and `lengths[i]` how many tokens the document has.
    * `surfaces` holds, by term, its commonest word in these documents and the count of that word.
    """

    ends: Array
    terms: Array
    counts: Array
    lengths: Array
    vocabulary: Sequence[str]
    surfaces: Mapping[str, tuple[str, int]]

    def find_positions(self, rows: Sequence[int]) -> Array:
        """Return the positions in `terms` and `counts` of the terms of the documents in `rows`."""
        import numpy as np

        spans = [np.arange(int(self.ends[row - 1]) if row else 0, int(self.ends[row])) for row in rows]
        return np.concatenate(spans) if spans else np.array([], np.int64)

    def select_rows(self, rows: Sequence[int]) -> CountedTerms:
        """Return the terms of the documents in `rows`. The counts of surface words stay those of all documents."""
        import numpy as np

        positions = self.find_positions(rows)
        return replace(
            self,
            ends=np.cumsum(np.diff(self.ends, prepend=0)[rows]),
            terms=self.terms[positions],
            counts=self.counts[positions],
            lengths=self.lengths[rows],
        )


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """Documents that were read from the index, with their vectors and terms.

    * `vectors` has shape (documents, width), eight bits a number.
    * `digests` holds a hash of each text, which tells whether the text has changed.
    * `groups` holds the terms of each group of fields.
    """

    keys: Sequence[str]
    digests: Array
    vectors: Array
    groups: Sequence[CountedTerms]

    def select_rows(self, rows: Sequence[int]) -> DocumentPart:
        """Return a part of the documents in `rows`. The counts of surface words stay those of all documents."""
        return replace(
            self,
            keys=[self.keys[row] for row in rows],
            digests=self.digests[rows],
            vectors=self.vectors[rows],
            groups=[group.select_rows(rows) for group in self.groups],
        )


class DocumentParts:
    """The parts in `folder`, all made by the same `plan`. Raises SettingsError when the folder holds parts of another plan.

    The current rows of a part are the rows of its documents that are served. A document that changed has a new row in a
    later part, and its older row is no longer current.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self._folder = folder / PARTS_FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        plan_path = self._folder / PLAN_FILE
        plan_text = json.dumps(plan, indent=1, sort_keys=True)
        if plan_path.is_file() and self.list_files():
            existing_text = plan_path.read_text(encoding="utf-8")
            if existing_text != plan_text:
                differences = _describe_differences(existing_text, plan)
                raise SettingsError(
                    f"{folder} holds an expander of other settings ({differences}); name another folder, or delete it"
                )
        _write_file(plan_path, plan_text.encode())
        for unfinished in self._folder.glob("*.tmp"):
            unfinished.unlink()

    @classmethod
    def open_existing(cls, folder: Path) -> DocumentParts:
        """Open the parts in `folder` with their own plan. Raises SettingsError when there is none."""
        return cls(folder, _read_plan_file(folder))

    def read_plan(self) -> dict[str, Any]:
        """Return the plan that the parts were made by."""
        return _read_plan_file(self._folder.parent)

    def __iter__(self) -> Iterator[DocumentPart]:
        return (self.read_part(path) for path in self.list_files())

    def list_files(self) -> list[Path]:
        """Return the files of the parts, in the order in which they were written."""
        return sorted(self._folder.glob("*.npz"))

    def read_part(self, path: Path) -> DocumentPart:
        """Read one part. Raises SettingsError when it cannot be read."""
        import numpy as np

        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as entries:
                values = json.loads(entries[_JSON_ENTRY].tobytes())
                arrays = {name: entries[name] for name in _ARRAYS}
                group_values = [values, *values.get("more_groups", [])]
                groups = [_read_group(entries, number, value) for number, value in enumerate(group_values)]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise SettingsError(f"{path} cannot be read ({error}); delete it, and build again") from None
        return DocumentPart(values["keys"], groups=groups, **arrays)

    def add_part(self, part: DocumentPart) -> None:
        """Write one more part. A failed write leaves no file."""
        files = self.list_files()
        number = int(files[-1].stem) + 1 if files else 0
        self._write_part(self._folder / f"{number:06}.npz", part)

    def replace_files(self, paths: Sequence[Path]) -> None:
        """Delete all parts, and take the files `paths` of other folders in their place, in this order."""
        (self._folder / CURRENT_ROWS_FILE).unlink(missing_ok=True)
        for path in self.list_files():
            path.unlink()
        for number, path in enumerate(paths):
            new_path = self._folder / f"{number:06}.npz"
            try:  # A part is never changed in place, so both folders may share it.
                new_path.hardlink_to(path)
            except OSError:
                shutil.copyfile(path, new_path)

    def compact(self, current_rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rewrite the parts of which fewer than half of the rows are current, and return the current rows of each part.

        Without this, an index that changes every day would make the folder longer every day. From here until
        `write_current_rows` the folder does not say which rows are current. A build that is stopped in between is redone.
        """
        (self._folder / CURRENT_ROWS_FILE).unlink(missing_ok=True)
        rows_by_part = [list(rows) for rows in current_rows]
        removed = set()
        for number, path in enumerate(self.list_files()):
            rows = rows_by_part[number]
            if 2 * len(rows) >= self._count_documents(path):
                continue
            if rows:
                self._write_part(path, self.read_part(path).select_rows(rows))
                rows_by_part[number] = list(range(len(rows)))
            else:
                path.unlink()
                removed.add(number)
        return [rows for number, rows in enumerate(rows_by_part) if number not in removed]

    def write_current_rows(self, current_rows: Sequence[Sequence[int]]) -> None:
        """Write which rows of each part are served. Replaces what an earlier call wrote. Raises SettingsError."""
        text = json.dumps([list(rows) for rows in current_rows])
        _write_file(self._folder / CURRENT_ROWS_FILE, text.encode())

    def read_current_rows(self) -> list[list[int]]:
        """Return the current rows of each part. Raises SettingsError when the last build did not end."""
        path = self._folder / CURRENT_ROWS_FILE
        try:
            current_rows = [[int(row) for row in rows] for rows in json.loads(path.read_text(encoding="utf-8"))]
            if len(current_rows) != len(self.list_files()):
                raise ValueError("the last build did not end")
            return current_rows
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"{path} cannot be read ({error}); build the expander again") from None

    def find_current_rows(self) -> list[list[int]] | None:
        """Return the current rows of each part, and None when the last build did not end."""
        try:
            return self.read_current_rows()
        except SettingsError:
            return None

    def _count_documents(self, path: Path) -> int:
        import numpy as np

        with np.load(path, allow_pickle=False) as entries:
            return len(entries["digests"])

    def _write_part(self, path: Path, part: DocumentPart) -> None:
        import numpy as np

        first_values, *more_values = [
            {"vocabulary": list(group.vocabulary), "surfaces": dict(group.surfaces)} for group in part.groups
        ]
        values = {"keys": list(part.keys), **first_values, **({"more_groups": more_values} if more_values else {})}
        entries: dict[str, Any] = {_JSON_ENTRY: np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)}
        entries |= {name: getattr(part, name) for name in _ARRAYS}
        for number, group in enumerate(part.groups):
            entries |= {_name_group_array(name, number): getattr(group, name) for name in _GROUP_ARRAYS}
        with open_for_replacement(path, remedy="free space, and build again") as file:
            np.savez(file, **entries)


def read_planned_fields(folder: Path) -> tuple[str, ...]:
    """Return the analysed fields that the parts in `folder` were made from, and () when there are none."""
    try:
        return list_planned_fields(_read_plan_file(folder))
    except (SettingsError, KeyError):
        return ()


def list_planned_fields(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the analysed fields of a plan."""
    planned: str | list[list[str]] = plan["field"]
    return (planned,) if isinstance(planned, str) else tuple(name for group in planned for name in group)


def _read_group(entries: Mapping[str, Any], number: int, values: Mapping[str, Any]) -> CountedTerms:
    arrays = {name: entries[_name_group_array(name, number)] for name in _GROUP_ARRAYS}
    surfaces = {term: (word, count) for term, (word, count) in values["surfaces"].items()}
    return CountedTerms(vocabulary=values["vocabulary"], surfaces=surfaces, **arrays)


def _name_group_array(name: str, number: int) -> str:
    return f"{name}.{number}" if number else name


def _read_plan_file(folder: Path) -> dict[str, Any]:
    path = folder / PARTS_FOLDER / PLAN_FILE
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); build the expander again") from None
    return dict(plan)


def _write_file(path: Path, data: bytes) -> None:
    with open_for_replacement(path, remedy="name another folder") as file:
        file.write(data)


def _describe_differences(existing_text: str, plan: Mapping[str, Any]) -> str:
    """Name the settings of an existing plan that differ from `plan`, such as "text was ['contents']"."""
    try:
        existing = json.loads(existing_text)
    except ValueError:
        return "its plan cannot be read"
    names = [name for name in {**plan, **existing} if existing.get(name) != plan.get(name)]
    return ", ".join(f"{name} was {existing.get(name)!r}" for name in names)
