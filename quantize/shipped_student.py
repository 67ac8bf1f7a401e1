"""Make one small file of the shipped student's adapter and its base.

The one file writes faster than the two, and is less exact. An adapter costs two more products for each weight and token.
The packaged base is Q4_1, for which llama.cpp has no fast kernel for several rows at once.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import replace_file
from querylift.plugin.generators.llama.model_file import get_prepared_student_path
from querylift.quantize.adapters.merge_adapter import merge_adapter
from querylift.quantize.levels.make_levels import make_levels

LEVEL_TYPE = "IQ4_NL-PURE"
"""The smallest level that the gate accepted. docs/log.md has the table, and why it is not the default."""


def prepare_student_file(base: Path, adapter: Path) -> Path:
    """Return the path of the GGUF file that holds `base` with `adapter` merged in. Make it when it does not exist yet.

    Raises SettingsError when a file cannot be read, merged or written.
    """
    target = get_prepared_student_path(base, adapter)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work_folder = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))
    except OSError as error:
        raise SettingsError(
            f"{target.parent} cannot be written ({error.strerror}); name another folder in QUERYLIFT_CACHE"
        ) from None
    try:
        merged_model = work_folder / "student.gguf"
        merge_adapter(base, adapter, merged_model)
        for level in make_levels(merged_model, work_folder / "levels", [LEVEL_TYPE]):
            with replace_file(target) as part:
                (work_folder / "levels" / level.file).replace(part)
    finally:
        shutil.rmtree(work_folder, ignore_errors=True)
    return target
