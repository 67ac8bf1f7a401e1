"""Smaller files of a GGUF model, one for each type, by llama.cpp, and the manifest of what each was made from.

A level is a file of one type. It is made under another name, looked at, and put in its place whole; the manifest is written
after each. A run that was ended goes on after the levels that are whole, of the same model, and made in the same way.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.generators.llama.model_file import check_llama_cpp, default_threads, file_digest
from querylift.quantize.files import read_json, replacing
from querylift.quantize.levels.importance_matrix import MOST_TOKENS, calibration_texts
from querylift.quantize.levels.source_model import Source, counted, open_gguf, read_source, tensor_types
from querylift.quantize.levels.worker_process import TaskFailed, run

MANIFEST, IMPORTANCE = "manifest.json", "importance.gguf"
IGNORES_IMPORTANCE = ("BF16", "F16", "Q8_0")
"""Types whose numbers an importance matrix does not change."""
Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with a label and how far it goes; gives what is told how far it has come."""

PURE = "-PURE"
_FORMAT = 1
_PREFIX = "LLAMA_FTYPE_MOSTLY_"
_LLAMA_CPP = "llama-cpp-python"
_PACKAGES = ("querylift", _LLAMA_CPP, "gguf")
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Calibration:
    """What an importance matrix is computed from: `rows` lines of `file`, a JSON-lines file with query and text."""

    file: Path
    rows: int = 200


@dataclass(frozen=True, slots=True)
class Level:
    """A file of the folder. `tensors` counts them by what they really are, `fallbacks` those whose rows fit no block.

    `importance` is the digest of the matrix that it was made with, or None; `kept` says that an earlier run made it.
    """

    type: str
    file: str
    size_bytes: int
    sha256: str
    seconds: float
    tensors: Mapping[str, int]
    fallbacks: Mapping[str, int]
    importance: str | None
    versions: Mapping[str, str]
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """The manifest's entry."""
        return {name: value for name, value in asdict(self).items() if name not in ("type", "kept")}


def known_types() -> dict[str, int]:
    """The types that this version of llama.cpp writes, by the names of its files, with its numbers for them.

    Each may be followed by -PURE: every tensor in that very type, embeddings and output included, which it would keep finer.
    """
    check_llama_cpp()
    from llama_cpp import llama_cpp as api

    return {name.removeprefix(_PREFIX): getattr(api, name) for name in vars(api) if name.startswith(_PREFIX)}


def wanted_types(text: str) -> list[str]:
    """The types named in a comma-separated text, each once, in its order. Raises SettingsError."""
    known = known_types()
    named = list(dict.fromkeys(name.strip().upper() for name in text.split(",") if name.strip()))
    unknown = [name for name in named if name.removesuffix(PURE) not in known]
    if unknown or not named:
        problem = f"no type {unknown[0]!r} is known" if unknown else "no type is named"
        raise SettingsError(f"{problem}; name any of {', '.join(known)}, with {PURE} behind it for all tensors alike")
    return named


def _nothing(_label: str, _total: int) -> AbstractContextManager[Advance]:
    return nullcontext(lambda count: None)


def make(
    model: Path,
    out: Path,
    types: Sequence[str],
    *,
    calibration: Calibration | None = None,
    threads: int | None = None,
    requantize: bool = False,
    progress: Progress = _nothing,
) -> Iterator[Level]:
    """Make FOLDER/STEM-TYPE.gguf for each of `types`, giving each level when it is there. Raises SettingsError.

    `requantize` allows a model whose numbers have been rounded already. `threads` is by default the physical cores less one.
    """
    source = read_source(model, requantize=requantize)
    with _alone(out):
        folder = Folder(out, source, threads=threads or default_threads(), progress=progress)
        for name in types:
            yield folder.level(name, calibration)


class Folder:
    """The levels of `source` in the folder `out`, which is this process's alone, and its manifest. Raises SettingsError."""

    def __init__(self, out: Path, source: Source, *, threads: int, progress: Progress) -> None:
        self._out, self._source, self._threads, self._progress = out, source, threads, progress
        self._manifest = self._read_manifest()
        self._remove_leftovers()

    def level(self, name: str, calibration: Calibration | None) -> Level:
        """The level of that type: the one that is there, or made now."""
        importance = (
            self._importance(calibration) if calibration and name.removesuffix(PURE) not in IGNORES_IMPORTANCE else None
        )
        level = self._kept(name, importance) or self._made(name, importance)
        self._record("levels", {**self._manifest["levels"], name: level.to_json()})
        return level

    def _kept(self, name: str, importance: str | None) -> Level | None:
        """The level, if its file is whole and what would be made now."""
        entry = self._manifest["levels"].get(name, {})
        made_by = entry.get("versions", {}).get(_LLAMA_CPP)
        if (made_by, entry.get("importance")) != (_version(_LLAMA_CPP), importance) or not self._is_whole(entry):
            return None
        try:
            return Level(type=name, **entry, kept=True)
        except TypeError:  # someone else has written it
            return None

    def _made(self, name: str, importance: str | None) -> Level:
        matrix = str(self._out.absolute() / IMPORTANCE) if importance else ""
        target, started_s = self._out / f"{self._source.path.stem}-{name}.gguf", time.monotonic()
        with replacing(target) as part, self._progress(name, len(self._source.types)) as advance:
            kind, pure = known_types()[name.removesuffix(PURE)], name.endswith(PURE)
            done = self._run("quantise", part, advance, ftype=kind, pure=pure, importance=matrix, what=f" as {name}")
            types = self._checked(part, name)
        return Level(
            type=name,
            **_written(target, started_s),
            tensors=counted(types),
            fallbacks=done["fallbacks"],
            importance=importance,
            versions=_versions(),
        )

    def _importance(self, calibration: Calibration) -> str:
        """The digest of the matrix of `calibration`, computed where the one in the folder is not that."""
        asked = {
            "calibration": {"sha256": _digest(calibration.file), "rows": calibration.rows},
            "most_tokens": MOST_TOKENS,
            "prompt_version": PROMPT_VERSION,
            _LLAMA_CPP: _version(_LLAMA_CPP),
        }
        entry = self._manifest.get("importance", {})
        if any(entry.get(key) != value for key, value in asked.items()) or not self._is_whole(entry):
            entry = self._calibrated(calibration) | asked
            self._record("importance", entry)
        return str(entry["sha256"])

    def _calibrated(self, calibration: Calibration) -> dict[str, Any]:
        """The manifest's entry of the matrix, written now."""
        texts = calibration_texts(calibration.file, rows=calibration.rows)
        target, started_s = self._out / IMPORTANCE, time.monotonic()
        with replacing(target) as part, self._progress("calibrating", len(texts)) as advance:
            done = self._run("measure", part, advance, texts=texts, what="")
        return {**_written(target, started_s), "calibrated_on": calibration.file.name, "rows": len(texts), **done}

    def _run(self, task: str, part: Path, advance: Advance, *, what: str, **given: object) -> dict[str, Any]:
        """What the task returns that writes `part`; `what` goes into the sentence where it fails."""
        model = str(self._source.path.absolute())
        try:
            done = run(task, on_progress=advance, model=model, out=str(part.absolute()), threads=self._threads, **given)
        except TaskFailed as error:
            _probe(part)
            no_matrix = "matrix" in str(error) and not given.get("importance")
            remedy = "give its data with --calibrate FILE" if no_matrix else "name another model or type"
            raise SettingsError(f"{self._source.path} cannot be quantised{what} ({error}); {remedy}") from None
        self._source.check_unchanged()
        return done

    def _checked(self, part: Path, name: str) -> dict[str, str]:
        """The tensors of a file that was written, which are the source's, by name and type. Raises SettingsError."""
        try:
            types = tensor_types(open_gguf(part))
        except ValueError as error:
            raise SettingsError(
                f"{self._source.path} as {name} cannot be read back ({error}); name another type"
            ) from None
        if types.keys() != self._source.types.keys():
            raise SettingsError(f"{self._source.path} as {name} lacks tensors; name another type")
        return types

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        """Whether the file of the entry is there with its size and digest."""
        file = self._out / str(entry.get("file"))
        try:
            return file.stat().st_size == entry.get("size_bytes") and file_digest(file) == entry.get("sha256")
        except OSError:
            return False

    def _read_manifest(self) -> dict[str, Any]:
        """What is known of the folder. Raises SettingsError where it is another model's."""
        mine = self._source.to_json()
        found = read_manifest(self._out) if (self._out / MANIFEST).exists() else {"source": mine, "levels": {}}
        other = found["source"]
        if other["sha256"] != mine["sha256"]:
            raise SettingsError(
                f"{self._out} holds levels of another model ({other['file']}); remove it, or name another --out"
            )
        return {**found, "format": _FORMAT, "source": mine}

    def _record(self, key: str, value: object) -> None:
        manifest = {**self._manifest, key: value}
        if manifest == self._manifest:
            return
        with replacing(self._out / MANIFEST) as part:
            part.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self._manifest = manifest

    def _remove_leftovers(self) -> None:
        """Remove what a run that was killed had begun to write."""
        levels = "|".join(known_types())
        mine = rf"{re.escape(self._source.path.stem)}-({levels})({PURE})?\.gguf|{re.escape(MANIFEST)}|{re.escape(IMPORTANCE)}"
        for path in self._out.iterdir():
            if re.fullmatch(rf"\.({mine})\.[0-9a-f]{{8}}\.tmp", path.name):
                with suppress(OSError):
                    path.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `make` has filled. Raises SettingsError where it has none."""
    path = folder / MANIFEST
    manifest = read_json(path, remedy="fill the folder with `querylift quantize make`")
    if manifest.get("format") != _FORMAT or not {"source", "levels"} <= manifest.keys():
        raise SettingsError(f"{path} is no manifest of quantised files; name another folder")
    return manifest


def _written(file: Path, started_s: float) -> dict[str, Any]:
    took_s = round(time.monotonic() - started_s, 1)
    return {"file": file.name, "size_bytes": file.stat().st_size, "sha256": file_digest(file), "seconds": took_s}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); name a file that exists") from None


def _probe(part: Path) -> None:
    """Raise OSError where a file cannot be written on with: llama.cpp does not say why it failed."""
    with part.open("ab") as stream:
        stream.write(bytes(_PROBE_BYTES))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder, made where it is not there, for the block; the kernel lets go of it when the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made ({error.strerror}); name another --out") from None
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(
            f"{folder} is being written by another process; wait for it, or name another --out"
        ) from None
    except OSError:
        return  # a file system without locks
