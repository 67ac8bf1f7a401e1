"""What a build has read so far: files of some thousand documents each, from which a build goes on and a later one starts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.vocabulary import Array

FOLDER, PLAN, KEPT, LOCK = "parts", "plan.json", "kept.json", ".lock"


@dataclass(frozen=True, slots=True)
class Part:
    """Documents as they were read.

    `vectors` has shape (documents, width), eight bits; `digests` tell whether a text is still the same. Of document i,
    `terms[ends[i-1]:ends[i]]` are numbers in `vocabulary` and `counts` how often each stands in it, `lengths[i]` is how many
    tokens it has. `surfaces` holds by term the commonest word and how often it stands in these documents.
    """

    keys: Sequence[str]
    digests: Array
    vectors: Array
    ends: Array
    terms: Array
    counts: Array
    lengths: Array
    vocabulary: Sequence[str]
    surfaces: Mapping[str, tuple[str, int]]

    def places(self, rows: Sequence[int]) -> Array:
        """Where in `terms` and `counts` those of the documents in `rows` stand."""
        import numpy as np

        spans = [np.arange(int(self.ends[row - 1]) if row else 0, int(self.ends[row])) for row in rows]
        return np.concatenate(spans) if spans else np.array([], np.int64)

    def only(self, rows: Sequence[int]) -> Part:
        """The documents in `rows`; words keep the counts that they have in all."""
        import numpy as np

        inside = self.places(rows)
        return replace(
            self,
            keys=[self.keys[row] for row in rows],
            digests=self.digests[rows],
            vectors=self.vectors[rows],
            ends=np.cumsum(np.diff(self.ends, prepend=0)[rows]),
            terms=self.terms[inside],
            counts=self.counts[inside],
            lengths=self.lengths[rows],
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder for the block; the kernel lets go of it when the process ends. Raises SettingsError."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"{folder} is being built by another process; wait for it to end") from None
        except OSError:
            pass  # a file system without locks
        yield


class Parts:
    """The parts in `folder`, all made by the same `plan`. Raises SettingsError where it holds those of another."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        said = self._folder / PLAN
        given = json.dumps(plan, indent=1, sort_keys=True)
        if said.is_file() and self.files():
            before = said.read_text(encoding="utf-8")
            if before != given:
                raise SettingsError(
                    f"{folder} holds an expander of other settings ({_differing(before, plan)}); name another folder, "
                    "or delete it"
                )
        _write(said, given.encode())
        for left in self._folder.glob("*.tmp"):
            left.unlink()

    @classmethod
    def found(cls, folder: Path) -> Parts:
        """The parts that are in `folder`, whatever their plan. Raises SettingsError where it has none."""
        return cls(folder, _plan(folder))

    def plan(self) -> dict[str, Any]:
        """What they were made by."""
        return _plan(self._folder.parent)

    def __iter__(self) -> Iterator[Part]:
        return (self.read(path) for path in self.files())

    def files(self) -> list[Path]:
        """The parts in the order in which they were written."""
        return sorted(self._folder.glob("*.npz"))

    def read(self, path: Path) -> Part:
        """One part. Raises SettingsError where it cannot be read."""
        import numpy as np

        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                said = json.loads(found["said"].tobytes())
                arrays = {name: found[name] for name in ("digests", "vectors", "ends", "terms", "counts", "lengths")}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise SettingsError(f"{path} cannot be read ({error}); delete it, and build again") from None
        surfaces = {term: (word, count) for term, (word, count) in said["surfaces"].items()}
        return Part(said["keys"], vocabulary=said["vocabulary"], surfaces=surfaces, **arrays)

    def compacted(self, kept: Sequence[Sequence[int]]) -> list[list[int]]:
        """Write parts anew that hold more of other documents than of the `kept` rows, and return the rows that are kept now.

        So an index that changes every day does not make the folder longer every day. From here until `keep` the folder does
        not say what it holds: a build that is stopped between the two is made anew.
        """
        (self._folder / KEPT).unlink(missing_ok=True)
        rows_by_part = [list(rows) for rows in kept]
        wasteful = [
            (number, path)
            for number, path in enumerate(self.files())
            if 2 * len(rows_by_part[number]) < self._documents(path)
        ]
        for number, path in wasteful:
            rows = rows_by_part[number]
            if rows:
                self._put(path, self.read(path).only(rows))
                rows_by_part[number] = list(range(len(rows)))
            else:
                path.unlink()
        gone = {number for number, path in wasteful if not rows_by_part[number]}
        return [rows for number, rows in enumerate(rows_by_part) if number not in gone]

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        """Put down which rows of each part hold a document as it is served now."""
        _write(self._folder / KEPT, json.dumps([list(rows) for rows in kept]).encode())

    def _documents(self, path: Path) -> int:
        import numpy as np

        with np.load(path, allow_pickle=False) as found:
            return len(found["digests"])

    def kept_before(self) -> list[list[int]] | None:
        """What `kept` gives; None where the last build did not end."""
        try:
            return self.kept()
        except SettingsError:
            return None

    def kept(self) -> list[list[int]]:
        """What `keep` put down last. Raises SettingsError."""
        path = self._folder / KEPT
        try:
            kept = [[int(row) for row in rows] for rows in json.loads(path.read_text(encoding="utf-8"))]
            if len(kept) != len(self.files()):
                raise ValueError("the last build did not end")
            return kept
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"{path} cannot be read ({error}); build the expander again") from None

    def write(self, part: Part) -> None:
        """Put one more part down, whole or not at all."""
        files = self.files()
        number = int(files[-1].stem) + 1 if files else 0
        self._put(self._folder / f"{number:06}.npz", part)

    def _put(self, target: Path, part: Part) -> None:
        import numpy as np

        said = {"keys": list(part.keys), "vocabulary": list(part.vocabulary), "surfaces": dict(part.surfaces)}
        arrays = {name: getattr(part, name) for name in ("digests", "vectors", "ends", "terms", "counts", "lengths")}
        unfinished = target.with_suffix(".tmp")
        try:
            with unfinished.open("wb") as file:
                np.savez(file, said=np.frombuffer(json.dumps(said).encode(), dtype=np.uint8), **arrays)
                os.fsync(file.fileno())
            unfinished.replace(target)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise SettingsError(
                f"{target} cannot be written: {error.strerror or error}; make room, and go on"
            ) from None


def _plan(folder: Path) -> dict[str, Any]:
    path = folder / FOLDER / PLAN
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); build the expander again") from None
    return dict(plan)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}; name another folder") from None


def _differing(before: str, plan: Mapping[str, Any]) -> str:
    try:
        said = json.loads(before)
    except ValueError:
        return "its plan cannot be read"
    names = [name for name in plan if said.get(name) != plan[name]]
    return ", ".join(f"{name} was {said.get(name)!r}" for name in names)
