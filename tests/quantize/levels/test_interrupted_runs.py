"""A run that fails, is killed, or meets another run leaves only complete files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from querylift.plugin.errors import SettingsError
from querylift.quantize.levels.make_levels import make_levels
from tests.helpers.gguf_models import list_file_names, make_levels_by_type, write_random_gguf

COMMAND = [sys.executable, "-m", "querylift", "quantize", "make"]


def start_make(model: Path, out: Path, types: str) -> subprocess.Popen[str]:
    """Start `querylift quantize make` in a process of its own."""
    command = [*COMMAND, str(model), "--types", types, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], object], *, process: subprocess.Popen[str]) -> None:
    """Wait until `condition` is true. Fail when the process ends before."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def find_worker_pid(process: subprocess.Popen[str]) -> int:
    """Return the process id of the worker, as soon as there is one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: children.read_text().split(), process=process)
    return int(children.read_text().split()[0])


def test_on_a_full_disc_the_complete_levels_remain(tiny_model: Path, tmp_path: Path) -> None:
    """Files are limited to 900 KiB: Q4_0 fits, Q8_0 does not."""
    limited_command = ["bash", "-c", 'ulimit -f 900; exec "$@"', "_", *COMMAND]
    command = [*limited_command, str(tiny_model), "--types", "Q4_0,Q8_0", "--out", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2
    problem = f"{tmp_path}/tiny-Q8_0.gguf cannot be written: File too large; name another place"
    assert process.stderr == f"querylift: {problem}\n"
    assert list_file_names(tmp_path) == ["manifest.json", "tiny-Q4_0.gguf"]
    assert [level.is_reused for level in make_levels(tiny_model, tmp_path, ["Q4_0", "Q8_0"])] == [True, False]


def test_a_killed_run_leaves_no_partial_level_and_no_worker_and_the_next_run_continues(
    tiny_model: Path, tmp_path: Path
) -> None:
    with start_make(tiny_model, tmp_path, "Q8_0,Q4_0") as process:
        wait_until(lambda: list(tmp_path.glob(".tiny-Q4_0.gguf.*.tmp")), process=process)
        worker_pid = find_worker_pid(process)
        process.kill()
    while Path(f"/proc/{worker_pid}/stat").exists() and " Z " not in Path(f"/proc/{worker_pid}/stat").read_text():
        time.sleep(0.01)
    lock_file, temporary_file, *complete_files = list_file_names(tmp_path)
    assert lock_file == ".lock"  # the kernel has released it, and the next run removes it
    assert temporary_file.startswith(".tiny-Q4_0.gguf.")
    assert complete_files == ["manifest.json", "tiny-Q8_0.gguf"]
    assert [level.is_reused for level in make_levels(tiny_model, tmp_path, ["Q8_0"])] == [True]
    assert list_file_names(tmp_path) == ["manifest.json", "tiny-Q8_0.gguf"]
    assert [level.is_reused for level in make_levels(tiny_model, tmp_path, ["Q8_0", "Q4_0"])] == [True, False]
    assert list_file_names(tmp_path) == ["manifest.json", "tiny-Q4_0.gguf", "tiny-Q8_0.gguf"]


def test_a_crash_of_llama_cpp_is_reported_in_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    with start_make(tiny_model, tmp_path, "Q8_0,Q4_0") as process:
        wait_until(lambda: list(tmp_path.glob(".tiny-Q4_0.gguf.*.tmp")), process=process)
        os.kill(find_worker_pid(process), signal.SIGABRT)
        stdout, stderr = process.communicate()
    assert process.returncode == 2
    assert stdout.startswith("Q8_0 ")
    reason = "SIGABRT ended llama.cpp: it printed no reason"
    assert stderr == f"querylift: {tiny_model} cannot be quantised as Q4_0 ({reason}); name another model or type\n"
    assert list_file_names(tmp_path) == ["manifest.json", "tiny-Q8_0.gguf"]


def test_two_runs_cannot_write_into_one_folder(tiny_model: Path, tmp_path: Path) -> None:
    levels = make_levels(tiny_model, tmp_path, ["Q8_0", "Q4_0"])
    next(levels)
    with pytest.raises(
        SettingsError, match="is being written by another process; wait for it to end, or name another output"
    ):
        make_levels_by_type(tiny_model, tmp_path, "Q4_0")
    assert next(levels).type == "Q4_0"


def test_a_model_that_changes_during_the_run_is_refused(tmp_path: Path) -> None:
    model, folder = write_random_gguf(tmp_path / "tiny.gguf"), tmp_path / "out"
    levels = make_levels(model, folder, ["Q8_0", "Q4_0"])
    next(levels)
    os.utime(model, (1, 1))
    with pytest.raises(SettingsError, match=r"tiny\.gguf changed during the run; run the command again"):
        next(levels)
    assert list_file_names(folder) == ["manifest.json", "tiny-Q8_0.gguf"]
