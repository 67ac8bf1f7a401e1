"""Query records in a file, one JSON object a line."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from querylift.plugin.errors import SettingsError
from querylift.plugin.proxy.query_records.record_queue import PlaceDown

PRIVATE_MODE = 0o600


class FilePlace:
    """Appends lines to the file `path`, which is created for its owner alone.

    The file is opened for each batch, so that a file that was moved away is followed by a new one. It is locked meanwhile,
    because several processes may share it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = f"the file {path}"

    async def write_lines(self, lines: Sequence[str]) -> tuple[int, str]:
        """Append the lines, all or none. Raises PlaceDown."""
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            await asyncio.to_thread(_append_whole, self._path, data)
        except OSError as error:
            raise PlaceDown(f"the file cannot be written ({error.strerror or error})") from error
        return 0, ""

    async def close(self) -> None:
        """Do nothing: the file is open only while a batch is written."""


def check_record_file(path: Path) -> None:
    """Create the file if there is none. Raises SettingsError when it cannot be written."""
    try:
        _append_whole(path, b"")
    except OSError as error:
        raise SettingsError(
            f"log.searches_file is {path}, which cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from None


def _append_whole(path: Path, data: bytes) -> None:
    """Append `data`, or leave the file as it was. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size_bytes = os.fstat(descriptor).st_size
        try:
            written_bytes = 0
            while written_bytes < len(data):
                written_bytes += os.write(descriptor, data[written_bytes:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size_bytes)  # the disc is full, and a part of a line helps nobody
            raise
    finally:
        os.close(descriptor)
