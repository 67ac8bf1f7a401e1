"""A process that has served and ends while others still start is replaced. Each test runs a supervisor of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from querylift.plugin.child_process import build_python_path

SUPERVISE = """
import os, pathlib, signal, sys, time
from querylift.plugin.proxy.workers.child import Role
from querylift.plugin.proxy.workers.supervisor import Supervisor

stages, pid_file = sys.argv[1], pathlib.Path(sys.argv[2])

def serve_once_and_then_for_long(announce_ready):
    announce_ready()
    if not pid_file.exists():
        pid_file.write_text(str(os.getpid()))
        return
    print("it serves again", flush=True)
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()

def start_after_the_first_has_ended(announce_ready):
    while not pid_file.exists() or pathlib.Path("/proc", pid_file.read_text()).exists():
        time.sleep(0.01)
    announce_ready()
    signal.pause()

brief = Role("brief", serve_once_and_then_for_long)
late = Role("late", start_after_the_first_has_ended)
Supervisor(
    start_stages={"one": [[brief]], "two": [[brief], [late]]}[stages],
    stop_stages=[[brief, late]],
    essential=[brief],
    on_start_stopping=lambda: None,
    on_reload=lambda: None,
    on_end=lambda role, pid: None,
).run(lambda: print("all have served", flush=True))
"""


@pytest.mark.parametrize("stages", ["one", "two"])
def test_a_process_that_served_and_ends_during_the_start_is_replaced(stages: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-P", "-c", SUPERVISE, stages, str(tmp_path / "pid")],
        env={"PYTHONPATH": build_python_path()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, "all have served\nit serves again\n")
    assert "a new brief starts in 0.5 s" in ended.stderr
