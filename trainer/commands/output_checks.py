"""Check the output file of a command before the work begins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from querylift.plugin.errors import SettingsError


def check_output_file(out: Path, *, inputs: Iterable[Path]) -> None:
    """Create the folder of `out`. Raise SettingsError when `out` is a folder or one of the inputs, or cannot be created."""
    if out.is_dir():
        raise SettingsError(f"--out is {str(out)!r}, a folder; name a file, such as {out / 'out.jsonl'}")
    if any(out.resolve() == path.resolve() for path in inputs):
        raise SettingsError(f"--out is {str(out)!r}, which is also read; name another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"--out is {str(out)!r}, whose folder cannot be made ({error.strerror}); name another"
        ) from None
