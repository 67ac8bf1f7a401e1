"""The one home for file work: the cache folder, files that are replaced whole, locks, digests and JSON files."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError

PACKAGE_FOLDER = Path(__file__).absolute().parents[1]
"""The folder of the package `querylift`."""


def find_cache_folder() -> Path:
    """Return the folder for what can be fetched or made again.

    It is $QUERYLIFT_CACHE, else $XDG_CACHE_HOME/querylift, else ~/.cache/querylift.
    """
    own_folder = os.environ.get("QUERYLIFT_CACHE")
    shared_folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own_folder).expanduser().absolute() if own_folder else Path(shared_folder).absolute() / "querylift"


# --- files that are replaced whole


@contextmanager
def replace_file(target: Path, *, remedy: str = "name another place") -> Iterator[Path]:
    """Yield a temporary path whose file replaces `target` when the block succeeds. Otherwise the file is removed.

    The file is hidden beside `target` and locked while its process lives. The next run removes the file of a killed process.
    Raises SettingsError, also for an OSError of the block. The sentence ends with `remedy`.
    """
    if target.is_dir():
        raise SettingsError(f"{target} is a folder; name a file to be written")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        _remove_leftovers(target)
        with _create_locked_file(temporary) as descriptor:
            yield temporary
            os.fsync(descriptor)  # some file systems report only now that they are full
            os.replace(temporary, target)
    except OSError as error:
        # numpy raises an OSError without strerror when the disc is full.
        reason = error.strerror or f"the disc took only part of it ({error})"
        raise SettingsError(f"{target} cannot be written: {reason}; {remedy}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def open_for_replacement(target: Path, *, remedy: str = "name another place") -> Iterator[io.BufferedIOBase]:
    """Yield a stream of bytes that replaces `target` when the block succeeds, as `replace_file` does.

    The bytes are compressed where the name ends in `.gz`. The same bytes always make the same file.
    """
    with replace_file(target, remedy=remedy) as temporary, temporary.open("wb") as file:
        if target.suffix != ".gz":
            yield file
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
            yield stream


@contextmanager
def _create_locked_file(path: Path) -> Iterator[int]:
    """Create the file and yield its locked descriptor. Where the file system has no locks, it is not locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):
            _lock_descriptor(descriptor, waits=False)
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote `target`."""
    temporary_name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")
    for path in target.parent.iterdir():
        if temporary_name.fullmatch(path.name) and _is_unlocked(path):
            path.unlink(missing_ok=True)


def _is_unlocked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            _lock_descriptor(file.fileno(), waits=False)
    except OSError:
        return False
    return True


# --- locks


@contextmanager
def hold_lock(path: Path, *, output: Path | None = None) -> Iterator[None]:
    """Hold the lock file `path` during the block. Its folder is created. The file is removed at the end.

    While another process holds the lock, this waits for it. With `output`, it raises SettingsError instead, which says that
    another process is writing this output. It also raises SettingsError where the lock file cannot be created.
    The kernel releases the lock when the process ends in any way. A file system without locks gives none.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked_file(path, waits=output is None)
    except BlockingIOError:
        problem = f"{output} is being written by another process; wait for it to end, or name another output"
        raise SettingsError(problem) from None
    except OSError as error:
        raise SettingsError(f"{output or path} cannot be written ({error.strerror}); name another output") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked_file(path: Path, *, waits: bool) -> int:
    """Return the locked descriptor of `path`. Try again where the last holder removed the file in the meantime."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_descriptor(descriptor, waits=waits)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            return descriptor  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _lock_descriptor(descriptor: int, *, waits: bool) -> None:
    import fcntl  # not on Windows

    fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- contents


def compute_file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hex, cached by path, size and modification time. Raises OSError."""
    facts = path.stat()
    return _compute_digest(path, facts.st_size, facts.st_mtime_ns)


def compute_input_digest(path: Path) -> str:
    """Return the SHA-256 of a file that a user named. Raises SettingsError when it cannot be read."""
    try:
        return compute_file_digest(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); name a file that exists") from None


@lru_cache(maxsize=64)
def _compute_digest(path: Path, size_bytes: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_packaged_file(path: Path, sha256: str, *, package: str, remedy: str) -> None:
    """Raise SettingsError, which ends with `remedy`, unless `path` has this SHA-256.

    The packages that carry weights were made by people whom we do not know. Their files are used only as we know them.
    """
    digest = compute_input_digest(path)
    if digest != sha256:
        raise SettingsError(
            f"{path} of the package {package} is not the file that Querylift knows (its SHA-256 begins with "
            f"{digest[:12]}, not {sha256[:12]}); {remedy}"
        )


def compute_json_digest(value: object) -> str:
    """Return the SHA-256 as hex of a value of JSON, with the keys of objects sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json_object(path: Path, *, remedy: str) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises SettingsError, which ends with `remedy`, when there is none."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path.parent} has no {path.name}; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{path} holds no JSON object; {remedy}")
    return value
