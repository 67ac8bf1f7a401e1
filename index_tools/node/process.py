"""The operating system's side of a node: start its process, ask it, recognise it, record it in a state file, and stop it.

The operating system reuses pids, so a pid alone does not identify a process. A process belongs to a node as long as its
command line has the node's identifying flag.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.files import replace_file

_TERMINATE_WAIT_S = 20.0  # the engine itself gives its closing threads ten seconds
_KILL_WAIT_S = 10.0
# These variables of the user would change the JVM, and its "Picked up ..." line would come first in the log.
_JVM_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")


@dataclass(frozen=True)
class Node:
    """The record of a node. `url` is empty while the node starts."""

    engine: str
    version: str
    url: str
    pid: int
    data_dir: Path
    log: Path


# --- starting


@dataclass(frozen=True)
class Guard:
    """Ties a process and its folder to this process, by a pipe that closes when this process ends."""

    folder: Path
    read_end: int


@contextmanager
def create_guard(folder: Path) -> Iterator[Guard]:
    """Give a guard for one process. It lasts until the block ends."""
    read_end, write_end = os.pipe()
    try:
        yield Guard(folder, read_end)
    finally:
        os.close(read_end)
        os.close(write_end)


def spawn_process(command: list[str], log: Path, guard: Guard | None) -> int:
    """Start a command in a session of its own and return its pid. Its output goes to `log`.

    A Popen would warn when it is dropped before its child ends.
    """
    if guard:
        code = "from querylift.index_tools.node.process import exec_guarded_command; exec_guarded_command()"
        command = [sys.executable, "-P", "-c", code, str(guard.folder), *command]
    environment = {key: value for key, value in os.environ.items() if key not in _JVM_VARIABLES}
    write_flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 1, str(log), write_flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_DUP2, guard.read_end, 0) if guard else (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
    ]
    return os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True)


def exec_guarded_command() -> NoReturn:
    """Become the command in sys.argv[2:]. A child process kills it when standard input closes.

    PR_SET_PDEATHSIG would act when the starting *thread* ends. A pipe closes when the whole process ends, even by
    kill -9.
    """
    pid = os.getpid()
    if os.fork() == 0:
        _kill_when_input_closes(pid, Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])


def _kill_when_input_closes(pid: int, folder: Path) -> NoReturn:
    while os.getppid() == pid:
        readable, _, _ = select.select([0], [], [], 1.0)
        if readable and not os.read(0, 1):
            break
    if os.getppid() == pid:
        os.kill(pid, signal.SIGKILL)
        while os.getppid() == pid:
            time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


# --- readiness


def read_bound_url(ports_file: Path) -> str | None:
    """Return the loopback URL that the engine wrote to its ports file. Return None before that."""
    try:
        addresses = ports_file.read_text().split()
    except OSError:
        return None
    return next((f"http://{address}" for address in addresses if address.startswith("127.0.0.1:")), None)


def is_healthy(url: str) -> bool:
    """Return whether the engine answers with health yellow or green."""
    # Not urllib: it would use a configured web proxy.
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/_cluster/health")
        answer = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return isinstance(answer, dict) and answer.get("status") in {"yellow", "green"}


# --- the cause of an end

_CAUSES = (
    r"^Terminating due to (.*)",
    r"^Error occurred during initialization of .*\n(.*)",
    r"^((?:Unrecognized|Invalid|Improperly specified) .*)",
    r"^Error: (.*)",
    r"^\[[^]]*\]\[(?:ERROR|FATAL)\]\[[^]]*\] *(.*)",
    r"^(\w+Error: .*)",
)
_EXCEPTION = r"Exception <a '[^']*'\{[^}]*\}(?:: (.*?))?>?(?: \(0x.*)?$"


def reap_ended_child(pid: int) -> str | None:
    """Reap our child if it ended, and return how it ended. Return None while it runs."""
    ended_pid, wait_status = os.waitpid(pid, os.WNOHANG)
    code = os.waitstatus_to_exitcode(wait_status)
    if not ended_pid:
        return None
    return f"ended with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def find_logged_cause(log: Path) -> str | None:
    """Return the message in a log that says why the process ended, or None."""
    matches = (re.search(pattern, read_log(log), re.MULTILINE) for pattern in _CAUSES)
    return next((match[1].strip() for match in matches if match), None)


def find_thrown_cause(exceptions_log: Path, frame: str) -> str | None:
    """Return the message of the exception that reached a Java frame, or None. -Xlog:exceptions=info writes the log."""
    message = None
    for line in read_log(exceptions_log).splitlines():
        if match := re.search(_EXCEPTION, line):
            message = match[1]
        elif message and frame in line:
            return message
    return None


def read_log(path: Path) -> str:
    """Return the text of a log, '' when there is no file."""
    return path.read_text(errors="replace") if path.exists() else ""


# --- stopping


def stop_node_process(node: Node) -> None:
    """End the node with SIGTERM. Kill it when it still runs after 20 s."""
    _send_signal_and_wait(node, signal.SIGTERM, _TERMINATE_WAIT_S)
    kill_node_process(node)


def kill_node_process(node: Node) -> None:
    """Kill the node if it still runs. Raise EngineError when that fails."""
    _send_signal_and_wait(node, signal.SIGKILL, _KILL_WAIT_S)
    if _is_node_running(node):
        raise EngineError(f"{node.engine} {node.version} (pid {node.pid}) could not be killed; end it yourself")


def _send_signal_and_wait(node: Node, number: signal.Signals, wait_s: float) -> None:
    if not _is_node_running(node):
        return
    with suppress(ProcessLookupError):
        os.kill(node.pid, number)
    deadline_s = time.monotonic() + wait_s
    while _is_node_running(node) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    with suppress(ChildProcessError):  # the node is our child only when this process started it
        os.waitpid(node.pid, os.WNOHANG)


def format_identifying_flag(data_dir: Path) -> str:
    """Return the JVM flag that no other process has. It names the folder for the JVM's temporary files."""
    return f"-Djava.io.tmpdir={data_dir / 'tmp'}"


def _is_node_running(node: Node) -> bool:
    return format_identifying_flag(node.data_dir) in _read_command_line(node.pid)


def _read_command_line(pid: int) -> list[str]:
    """Return the words of a process's command line, [] when the process is gone or a zombie."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        return []
    result = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return result.stdout.split()  # this splits a folder name with a space, but only on systems without /proc


# --- the state file


def read_recorded_node(state_file: Path) -> Node | None:
    """Return the node that a state file names if its process is alive. Return None otherwise, also for a broken file."""
    try:
        values = json.loads(state_file.read_text())
        paths = Path(values["data_dir"]), Path(values["log"])
        node = Node(str(values["engine"]), str(values["version"]), str(values["url"]), int(values["pid"]), *paths)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return node if node.pid > 0 and _is_node_running(node) else None


def write_node_record(state_file: Path, node: Node) -> None:
    """Write the state file in one step, so that no reader sees half of it."""
    with replace_file(state_file) as temporary:
        temporary.write_text(json.dumps(asdict(node), default=str))


def stop_recorded_node(state_file: Path) -> bool:
    """Stop the node that a state file names, and remove the file. Return whether the node was running."""
    node = read_recorded_node(state_file)
    if node:
        stop_node_process(node)
    state_file.unlink(missing_ok=True)
    return node is not None


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Raise SettingsError when the block cannot write to `path` or below it."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error
