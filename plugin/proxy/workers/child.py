"""A forked process of a proxy with several workers, as the supervisor sees it."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from querylift.plugin.child_process import die_with_parent, name_process
from querylift.plugin.errors import QueryliftError

_log = logging.getLogger("querylift")
STOP_SIGNAL = signal.SIGUSR1
"""Tells a child to finish. It is not SIGTERM, which a service manager may send to all processes at once."""
SUPERVISED_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD})
"""The supervisor blocks these and takes them one at a time. A child unblocks them before it does anything."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a child is for. `run` serves until the process gets STOP_SIGNAL, and calls its argument once it serves."""

    name: str
    run: Callable[[Callable[[], None]], None]


class ChildFailed(QueryliftError):
    """A child could not start. The message is the sentence of its error."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Child:
    """A running child. `start_child` makes one."""

    def __init__(self, role: Role, pid: int, report_file: int, started_s: float) -> None:
        self.role = role
        self.pid = pid
        self.started_s = started_s
        self._report_file = report_file
        self._report = b""

    def check_ready(self) -> bool:
        """Whether the child serves. Does not wait."""
        try:
            while part := os.read(self._report_file, 65_536):
                self._report += part
        except BlockingIOError:
            pass
        return self._report == b"ready"

    def take_failure(self) -> ChildFailed | None:
        """Return the error that ended the child, or None when it reported none. Call this after the child has ended."""
        self.check_ready()
        os.close(self._report_file)
        if not self._report.startswith(b"{"):
            return None
        report = json.loads(self._report)
        return ChildFailed(report["sentence"], report["exit_code"])

    def send_signal(self, number: int) -> None:
        """Send a signal. A child that has ended and was not reaped yet takes it too, without effect."""
        os.kill(self.pid, number)


def start_child(role: Role, *, now_s: float) -> Child:
    """Fork a child for `role`. This process must have no thread beside this one, and must block SUPERVISED_SIGNALS."""
    reader, writer = os.pipe()
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        exit_code = 1
        try:
            os.close(reader)
            exit_code = _run_role(role, writer, parent_pid)
        finally:
            os._exit(exit_code)  # the frames below are the supervisor's, and must not clean up in this process
    os.close(writer)
    os.set_blocking(reader, False)
    return Child(role, pid, reader, now_s)


def _run_role(role: Role, report_file: int, parent_pid: int) -> int:
    """Run the role in this new process, and return its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the supervisor decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)
    die_with_parent(parent_pid, STOP_SIGNAL)
    name_process(f"ql {role.name}")
    try:
        role.run(lambda: _write_report(report_file, b"ready"))
    except QueryliftError as error:
        _write_report(report_file, json.dumps({"sentence": str(error), "exit_code": error.exit_code}).encode())
        return error.exit_code
    except BaseException:
        _log.exception("%s has a fault", role.name)
        return 1
    return 0


def _write_report(report_file: int, report: bytes) -> None:
    os.write(report_file, report[:60_000])  # a pipe takes so much at once
