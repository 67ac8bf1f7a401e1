"""Make smaller files of a GGUF model with llama.cpp, one for each quantisation type, and record them in a manifest.

Each file is written under a temporary name, checked, and then moved into place. The manifest is written after each file.
An interrupted run can be repeated: it reuses the files that are complete and were made in the same way from the same model.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.files import compute_file_digest, compute_input_digest, hold_lock, read_json_object, replace_file
from querylift.plugin.generators.llama.model_file import count_free_cores
from querylift.quantize.levels.importance_matrix import MAX_TOKENS_PER_TEXT, read_calibration_texts
from querylift.quantize.levels.level_types import PURE_SUFFIX, TYPES_WITHOUT_IMPORTANCE, get_known_types
from querylift.quantize.levels.source_model import (
    SourceModel,
    count_tensors_by_type,
    open_gguf,
    read_source_model,
    read_tensor_types,
)
from querylift.quantize.levels.worker_process import TaskFailed, run_in_worker

MANIFEST_FILE, IMPORTANCE_FILE = "manifest.json", "importance.gguf"
AdvanceBar = Callable[[int], None]
OpenBar = Callable[[str, int], AbstractContextManager[AdvanceBar]]
"""Opens a progress bar with a label and a total. The bar is called with the count so far."""

_FORMAT = 1
_LLAMA_CPP = "llama-cpp-python"
_PACKAGES = ("querylift", _LLAMA_CPP, "gguf")
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Calibration:
    """The data for an importance matrix: `rows` lines of `file`, a JSON-lines file with query and text."""

    file: Path
    rows: int = 200


@dataclass(frozen=True, slots=True)
class Level:
    """One quantised file.

    `tensors` counts the tensors by their actual type. `fallbacks` counts those whose rows do not fit the type's block size.
    `importance` is the digest of the importance matrix, or None. `is_reused` is true for a file of an earlier run.
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
    is_reused: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the level's entry in the manifest."""
        return {name: value for name, value in asdict(self).items() if name not in ("type", "is_reused")}


def _hide_progress(_label: str, _total: int) -> AbstractContextManager[AdvanceBar]:
    return nullcontext(lambda count: None)


def make_levels(
    model: Path,
    out: Path,
    types: Sequence[str],
    *,
    calibration: Calibration | None = None,
    threads: int | None = None,
    requantize: bool = False,
    progress: OpenBar = _hide_progress,
) -> Iterator[Level]:
    """Make OUT/STEM-TYPE.gguf for each of `types` and yield each level when its file is complete. Raises SettingsError.

    `requantize` allows a model that is already quantised. `threads` defaults to the physical cores less one.
    """
    source = read_source_model(model, requantize=requantize)
    with hold_lock(out / ".lock", output=out):
        folder = LevelFolder(out, source, threads=threads or count_free_cores(), progress=progress)
        for type_name in types:
            yield folder.get_or_make_level(type_name, calibration)


class LevelFolder:
    """The levels of `source` in the folder `out`, with their manifest. The caller holds the folder's lock.

    Raises SettingsError when the folder belongs to another model.
    """

    def __init__(self, out: Path, source: SourceModel, *, threads: int, progress: OpenBar) -> None:
        self._out, self._source, self._threads, self._progress = out, source, threads, progress
        self._manifest = self._load_manifest()
        self._remove_leftovers()

    def get_or_make_level(self, type_name: str, calibration: Calibration | None) -> Level:
        """Return the level of a type. Reuse the file of an earlier run when it is still right."""
        importance = None
        if calibration and type_name.removesuffix(PURE_SUFFIX) not in TYPES_WITHOUT_IMPORTANCE:
            importance = self._prepare_importance_matrix(calibration)
        level = self._find_reusable_level(type_name, importance) or self._make_level(type_name, importance)
        self._record_in_manifest("levels", {**self._manifest["levels"], type_name: level.to_json()})
        return level

    def _find_reusable_level(self, type_name: str, importance: str | None) -> Level | None:
        """Return the level in the manifest when its file is intact and a new one would be made in the same way."""
        entry = self._manifest["levels"].get(type_name, {})
        entry_version = entry.get("versions", {}).get(_LLAMA_CPP)
        if (entry_version, entry.get("importance")) != (_find_version(_LLAMA_CPP), importance):
            return None
        if not self._is_file_intact(entry):
            return None
        try:
            return Level(type=type_name, **entry, is_reused=True)
        except TypeError:  # the entry was edited by hand
            return None

    def _make_level(self, type_name: str, importance: str | None) -> Level:
        matrix = str(self._out.absolute() / IMPORTANCE_FILE) if importance else ""
        target, started_s = self._out / f"{self._source.path.stem}-{type_name}.gguf", time.monotonic()
        with replace_file(target) as part, self._progress(type_name, len(self._source.types)) as advance:
            result = self._run_task(
                "quantise",
                part,
                advance,
                purpose=f" as {type_name}",
                ftype=get_known_types()[type_name.removesuffix(PURE_SUFFIX)],
                pure=type_name.endswith(PURE_SUFFIX),
                importance=matrix,
            )
            tensor_types = self._read_back_types(part, type_name)
        return Level(
            type=type_name,
            **_describe_file(target, started_s),
            tensors=count_tensors_by_type(tensor_types),
            fallbacks=result["fallbacks"],
            importance=importance,
            versions=_collect_versions(),
        )

    def _prepare_importance_matrix(self, calibration: Calibration) -> str:
        """Return the digest of the importance matrix, which is computed when the folder does not hold it yet."""
        origin = {
            "calibration": {"sha256": compute_input_digest(calibration.file), "rows": calibration.rows},
            "most_tokens": MAX_TOKENS_PER_TEXT,
            "prompt_version": PROMPT_VERSION,
            _LLAMA_CPP: _find_version(_LLAMA_CPP),
        }
        entry = self._manifest.get("importance", {})
        if any(entry.get(key) != value for key, value in origin.items()) or not self._is_file_intact(entry):
            entry = self._compute_importance_matrix(calibration) | origin
            self._record_in_manifest("importance", entry)
        return str(entry["sha256"])

    def _compute_importance_matrix(self, calibration: Calibration) -> dict[str, Any]:
        """Write the importance matrix and return its entry for the manifest."""
        texts = read_calibration_texts(calibration.file, rows=calibration.rows)
        target, started_s = self._out / IMPORTANCE_FILE, time.monotonic()
        with replace_file(target) as part, self._progress("calibrating", len(texts)) as advance:
            counts = self._run_task("measure", part, advance, purpose="", texts=texts)
        entry = _describe_file(target, started_s)
        return {**entry, "calibrated_on": calibration.file.name, "rows": len(texts), **counts}

    def _run_task(
        self, task: str, part: Path, advance: AdvanceBar, *, purpose: str, **arguments: object
    ) -> dict[str, Any]:
        """Run a task that writes `part` and return its result. `purpose` completes the error sentence."""
        model, out = str(self._source.path.absolute()), str(part.absolute())
        try:
            result = run_in_worker(task, on_progress=advance, model=model, out=out, threads=self._threads, **arguments)
        except TaskFailed as error:
            _probe_disc_space(part)
            lacks_matrix = "matrix" in str(error) and not arguments.get("importance")
            remedy = "add --calibrate FILE" if lacks_matrix else "name another model or type"
            raise SettingsError(f"{self._source.path} cannot be quantised{purpose} ({error}); {remedy}") from None
        self._source.check_unchanged()
        return result

    def _read_back_types(self, part: Path, type_name: str) -> dict[str, str]:
        """Return the type of each tensor in a new file. Raises SettingsError when its tensors are not the source's."""
        try:
            tensor_types = read_tensor_types(open_gguf(part))
        except ValueError as error:
            raise SettingsError(
                f"{self._source.path} as {type_name} cannot be read back ({error}); name another type"
            ) from None
        if tensor_types.keys() != self._source.types.keys():
            raise SettingsError(f"{self._source.path} as {type_name} lacks tensors; name another type")
        return tensor_types

    def _is_file_intact(self, entry: Mapping[str, Any]) -> bool:
        """Return whether the entry's file exists with the recorded size and digest."""
        file = self._out / str(entry.get("file"))
        try:
            return file.stat().st_size == entry.get("size_bytes") and compute_file_digest(file) == entry.get("sha256")
        except OSError:
            return False

    def _load_manifest(self) -> dict[str, Any]:
        """Return the folder's manifest, or an empty one. Raises SettingsError when it belongs to another model."""
        source = self._source.to_json()
        if not (self._out / MANIFEST_FILE).exists():
            return {"source": source, "levels": {}, "format": _FORMAT}
        manifest = read_manifest(self._out)
        if manifest["source"]["sha256"] != source["sha256"]:
            raise SettingsError(
                f"{self._out} holds levels of another model ({manifest['source']['file']}); "
                "remove the folder, or name another --out"
            )
        return {**manifest, "format": _FORMAT, "source": source}

    def _record_in_manifest(self, key: str, value: object) -> None:
        manifest = {**self._manifest, key: value}
        if manifest == self._manifest:
            return
        with replace_file(self._out / MANIFEST_FILE) as part:
            part.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self._manifest = manifest

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed."""
        types = "|".join(get_known_types())
        level_file = rf"{re.escape(self._source.path.stem)}-({types})({PURE_SUFFIX})?\.gguf"
        own_files = rf"{level_file}|{re.escape(MANIFEST_FILE)}|{re.escape(IMPORTANCE_FILE)}"
        for path in self._out.iterdir():
            if re.fullmatch(rf"\.({own_files})\.[0-9a-f]{{8}}\.tmp", path.name):
                with suppress(OSError):
                    path.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest in a folder that `make_levels` filled. Raises SettingsError when there is none."""
    path = folder / MANIFEST_FILE
    manifest = read_json_object(path, remedy="fill the folder with `querylift quantize make`")
    if manifest.get("format") != _FORMAT or not {"source", "levels"} <= manifest.keys():
        raise SettingsError(f"{path} is not a manifest of quantised files; name another folder")
    return manifest


def _describe_file(file: Path, started_s: float) -> dict[str, Any]:
    elapsed_s = round(time.monotonic() - started_s, 1)
    digest = compute_file_digest(file)
    return {"file": file.name, "size_bytes": file.stat().st_size, "sha256": digest, "seconds": elapsed_s}


def _collect_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {package: _find_version(package) for package in _PACKAGES}


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _probe_disc_space(part: Path) -> None:
    """Raise OSError when `part` cannot grow. llama.cpp does not report why it could not write."""
    with part.open("ab") as stream:
        stream.write(bytes(_PROBE_BYTES))
