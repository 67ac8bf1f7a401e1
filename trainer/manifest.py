"""What a stage was made from: inputs' digests, settings, seed, time, versions. Written when the stage begins and when it ends.

A stage whose manifest says "done" with the same inputs, settings and seed is not run again; one that was begun with others is
refused, so that two runs never mix in one output.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from index_tools.trec import replacing
from plugin.errors import SettingsError

_PACKAGES = ("querylift", "torch", "transformers", "trl", "peft", "accelerate", "openai", "llama-cpp-python")


class Manifest:
    """The manifest of `out`: FILE.manifest.json beside a file, manifest.json in a folder.

    `inputs` names the files and folders that are read; `settings` is plain JSON. Raises SettingsError where an input is
    absent, or where `out` was begun with other inputs, settings or seed.
    """

    def __init__(
        self, out: Path, *, stage: str, inputs: Mapping[str, Path], settings: Mapping[str, Any], seed: int | None = None
    ) -> None:
        self.path = place(out)
        self._out = out
        self._asked: dict[str, Any] = {
            "stage": stage,
            "inputs": {name: {"path": str(path), "sha256": digest(path)} for name, path in inputs.items()},
            "settings": json.loads(json.dumps(settings, default=str)),
            "seed": seed,
        }
        self._before = _read(self.path)
        self._check()

    @property
    def done(self) -> bool:
        """Whether this very stage has run to its end and its output is still there."""
        return bool(self._before.get("done")) and self._out.exists()

    @property
    def results(self) -> Mapping[str, Any]:
        """What the finished stage reported."""
        return dict(self._before.get("results", {}))

    @contextmanager
    def running(self) -> Iterator[dict[str, Any]]:
        """Write the manifest as begun; what the block puts into the given dict is its results, written when it ends well."""
        results: dict[str, Any] = {}
        begun = {**self._asked, "started": _now(), "versions": versions(), "done": False}
        started_s = time.monotonic()
        self._write(begun)
        yield results
        self._write({**begun, "done": True, "took_s": round(time.monotonic() - started_s, 1), "results": results})
        self._before = {**begun, "done": True, "results": results}

    def _check(self) -> None:
        if not self._before:
            return
        changed = _differences(self._before, self._asked)
        if changed:
            raise SettingsError(
                f"{self._out} was begun with another {changed}; remove it to start over, or name another output"
            )

    def _write(self, manifest: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as stream:
            stream.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")


def place(out: Path) -> Path:
    """Where the manifest of `out` is: an output with a suffix is a file, one without is a folder."""
    return out.with_name(out.name + ".manifest.json") if out.suffix and not out.is_dir() else out / "manifest.json"


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder: of the names and bytes of the files directly in it, its manifest aside."""
    if not path.is_dir():
        return _file_digest(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name != "manifest.json")
    lines = [f"{file.name} {_file_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Python and the packages that decide what a stage gives, where they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); name a file that exists") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error}); remove it to start over") from None
    return manifest if isinstance(manifest, dict) else {}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words: "" where nothing does. A file that has moved but is the same counts as the same."""
    if before.get("stage") != now["stage"]:
        return f"stage ({before.get('stage')}, now {now['stage']})"
    then = {name: found.get("sha256") for name, found in dict(before.get("inputs", {})).items()}
    for name, found in now["inputs"].items():
        if then.get(name) != found["sha256"]:
            return f"input ({name}: {found['path']})"
    if then.keys() != now["inputs"].keys():
        return "set of inputs"
    settings = dict(before.get("settings", {}))
    for name in sorted({*settings, *now["settings"]}):
        if settings.get(name) != now["settings"].get(name):
            return f"setting ({name} {settings.get(name)}, now {now['settings'].get(name)})"
    return "" if before.get("seed") == now["seed"] else f"seed ({before.get('seed')}, now {now['seed']})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
