"""A file takes its name only when it is whole; JSON that others wrote."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path whose file takes the place of `target` when the block ends well, and goes otherwise.

    It lies hidden beside `target`, locked while its process lives; what a killed one left goes with the next run. An OSError
    of the block counts as one of writing. Raises SettingsError.
    """
    if target.is_dir():
        raise SettingsError(f"{target} is a folder; name a file to be written")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        _remove_leftovers(target)
        with _locked(part) as descriptor:
            yield part
            os.fsync(descriptor)  # some file systems learn only now that they are full
            os.replace(part, target)
    except OSError as error:
        # numpy raises one without a number where a disc is full.
        reason = error.strerror or f"the disc took only part of it ({error})"
        raise SettingsError(f"{target} cannot be written: {reason}; name another place") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """The object that `path` holds. Raises SettingsError, which ends with `remedy`, where there is none."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path.parent} has no {path.name}; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{path} holds no JSON object; {remedy}")
    return value


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Make the file and hold its lock, where the file system knows locks; the kernel lets go when the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")
    for path in target.parent.iterdir():
        if name.fullmatch(path.name) and _is_free(path):
            path.unlink(missing_ok=True)


def _is_free(path: Path) -> bool:
    """Whether no process holds the lock of `path`."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
