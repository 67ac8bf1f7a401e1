"""The shipped student and its base as one small file, which writes faster than both apart and is less exact.

An adapter costs two products more for each weight and token, and llama.cpp's fast kernels for several rows at once are not for
Q4_1, which the packaged base is.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.llama.model_file import prepared_student
from querylift.quantize.adapters.merge_adapter import merge
from querylift.quantize.files import replacing
from querylift.quantize.levels.make_levels import make

TYPE = "IQ4_NL-PURE"
"""The smallest that the gate accepted; docs/log.md has its table, and why it is not served by default."""


def prepare(base: Path, adapter: Path) -> Path:
    """The prepared file, made where it is not there yet. Raises SettingsError."""
    target = prepared_student(base, adapter)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))
    except OSError as error:
        raise SettingsError(
            f"{target.parent} cannot be written: {error.strerror}; name another in QUERYLIFT_CACHE"
        ) from None
    try:
        merged = work / "student.gguf"
        merge(base, adapter, merged)
        for level in make(merged, work / "levels", [TYPE]):
            with replacing(target) as part:
                (work / "levels" / level.file).replace(part)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
