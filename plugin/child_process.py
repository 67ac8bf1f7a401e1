"""How Python is started again: with this very package, without the working folder, and without secrets.

Every such process gets the option -P, so that no module of the working folder is run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

from querylift.plugin.files import PACKAGE_FOLDER

_KEPT_NAMES = frozenset(
    "PATH HOME USER LANG LANGUAGE TZ TMPDIR TEMP TMP LD_LIBRARY_PATH LD_PRELOAD LLAMA_CPP_LIB_PATH NVIDIA_VISIBLE_DEVICES "
    "NVIDIA_DRIVER_CAPABILITIES".split()
)
_KEPT_PREFIXES = ("LC_", "PYTHON", "OMP_", "GOMP_", "KMP_", "GGML_", "CUDA_", "HIP_", "HSA_", "ROCR_", "MALLOC_")
"""Beginnings of variables about Python, threads, memory and graphics cards. None of them holds a password."""


def build_python_path() -> str:
    """Return a PYTHONPATH that begins with the folder of this package."""
    return os.pathsep.join(filter(None, [str(PACKAGE_FOLDER.parent), os.environ.get("PYTHONPATH", "")]))


def build_worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process that runs llama.cpp, made from the one of this process.

    It holds only variables that such a process can need. A password or an API key is left out, whatever its name is.
    llama.cpp starts no debugger when it crashes. Its threads sleep while they wait for each other, unless the user chose
    otherwise: on a busy machine, two threads that spin take ten times as long.
    """
    kept_variables = {
        name: value for name, value in environment.items() if name in _KEPT_NAMES or name.startswith(_KEPT_PREFIXES)
    }
    own_variables = {"PYTHONPATH": build_python_path(), "GGML_NO_BACKTRACE": "1"}
    return {"OMP_WAIT_POLICY": "passive", **kept_variables, **own_variables}


def die_with_parent(parent_pid: int, signal_number: int) -> None:
    """Let Linux send `signal_number` to this process when its parent `parent_pid` dies, in whatever way."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal_number))
    if os.getppid() != parent_pid:
        os._exit(0)


def name_process(name: str) -> None:
    """Let tools such as `top` show `name` for this process, cut after 15 bytes."""
    if sys.platform == "linux":
        pr_set_name = 15
        ctypes.CDLL(None).prctl(pr_set_name, name.encode()[:15])


def describe_exit_code(code: int | None) -> str:
    """Return how a process ended. A negative code is the signal that ended it."""
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"
