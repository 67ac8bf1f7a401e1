"""The process of a node: spawned, guarded, asked, told from other processes, remembered in a state file, and stopped.

Pids are used again, so a pid alone names nobody: a process is ours while its command line has the node's `own_flag`.
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

_GRACE_S = 20.0  # the engine itself gives its closing threads ten seconds
_KILL_S = 10.0
# These would change the JVM behind our back, and its "Picked up ..." line would stand first in the log.
_JVM_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")


@dataclass(frozen=True)
class Node:
    """A node that was ready when this record was made."""

    engine: str
    version: str
    url: str
    pid: int
    data_dir: Path
    log: Path


# -- starting, with and without a watchdog ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guard:
    """What ties a process and a folder to this process: a pipe that ends when this process does."""

    folder: Path
    alive: int


@contextmanager
def guarding(folder: Path) -> Iterator[Guard]:
    """A guard for one process, until the block ends."""
    alive, ours = os.pipe()
    try:
        yield Guard(folder, alive)
    finally:
        os.close(alive)
        os.close(ours)


def spawn(command: list[str], log: Path, guard: Guard | None) -> int:
    """Start it in a session of its own and return its pid. (A Popen would warn when it is dropped before its child.)"""
    if guard:
        watched = "from querylift.index_tools.node.process import exec_guarded; exec_guarded()"
        command = [sys.executable, "-P", "-c", watched, str(guard.folder), *command]
    environment = {key: value for key, value in os.environ.items() if key not in _JVM_VARIABLES}
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 1, str(log), write, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_DUP2, guard.alive, 0) if guard else (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
    ]
    return os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True)


def exec_guarded() -> NoReturn:
    """Become the command in sys.argv[2:], watched by a child that kills it once standard input ends.

    Not PR_SET_PDEATHSIG: that fires when the starting *thread* ends. A pipe ends with the whole process, kill -9 included.
    """
    pid = os.getpid()
    if os.fork() == 0:
        _watch(pid, Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])


def _watch(pid: int, folder: Path) -> NoReturn:
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


# -- asking whether it is ready ----------------------------------------------------------------------------------------


def bound_url(ports_file: Path) -> str | None:
    """The loopback URL that the engine wrote down when it bound it; None before."""
    try:
        addresses = ports_file.read_text().split()
    except OSError:
        return None
    return next((f"http://{address}" for address in addresses if address.startswith("127.0.0.1:")), None)


def is_healthy(url: str) -> bool:
    """Whether it answers with health yellow or green. (http.client, since urllib would ask a configured proxy.)"""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/_cluster/health")
        answer = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return isinstance(answer, dict) and answer.get("status") in {"yellow", "green"}


# -- why it ended -------------------------------------------------------------------------------------------------------

_CAUSES = (
    r"^Terminating due to (.*)",
    r"^Error occurred during initialization of .*\n(.*)",
    r"^((?:Unrecognized|Invalid|Improperly specified) .*)",
    r"^Error: (.*)",
    r"^\[[^]]*\]\[(?:ERROR|FATAL)\]\[[^]]*\] *(.*)",
    r"^(\w+Error: .*)",
)
_EXCEPTION = r"Exception <a '[^']*'\{[^}]*\}(?:: (.*?))?>?(?: \(0x.*)?$"


def how_it_ended(pid: int) -> str | None:
    """How our child ended, and reap it; None while it runs."""
    ended, wait_status = os.waitpid(pid, os.WNOHANG)
    code = os.waitstatus_to_exitcode(wait_status)
    if not ended:
        return None
    return f"ended with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def logged_cause(log: Path) -> str | None:
    """The line of a log that says why the process ended, or None."""
    found = (re.search(pattern, read_log(log), re.MULTILINE) for pattern in _CAUSES)
    return next((match[1].strip() for match in found if match), None)


def thrown_cause(exceptions_log: Path, frame: str) -> str | None:
    """The exception that reached a Java frame, from the log that -Xlog:exceptions=info writes, or None."""
    message = None
    for line in read_log(exceptions_log).splitlines():
        if match := re.search(_EXCEPTION, line):
            message = match[1]
        elif message and frame in line:
            return message
    return None


def read_log(path: Path) -> str:
    """What stands in a log; nothing when it is not there."""
    return path.read_text(errors="replace") if path.exists() else ""


# -- stopping -----------------------------------------------------------------------------------------------------------


def stop(node: Node) -> None:
    """End it as it wishes to end, within the seconds that it is given for that."""
    _signal(node, signal.SIGTERM, _GRACE_S)
    kill(node)


def kill(node: Node) -> None:
    """End it at once, when it still runs."""
    _signal(node, signal.SIGKILL, _KILL_S)
    if _is_ours(node):
        raise EngineError(f"{node.engine} {node.version} (pid {node.pid}) could not be killed")


def _signal(node: Node, number: signal.Signals, wait_s: float) -> None:
    if not _is_ours(node):
        return
    with suppress(ProcessLookupError):
        os.kill(node.pid, number)
    deadline_s = time.monotonic() + wait_s
    while _is_ours(node) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    with suppress(ChildProcessError):  # it is our child only when this very process started it
        os.waitpid(node.pid, os.WNOHANG)


def own_flag(data_dir: Path) -> str:
    """The JVM flag that no other process has: the JVM unpacks its native libraries into a folder of the node's own."""
    return f"-Djava.io.tmpdir={data_dir / 'tmp'}"


def _is_ours(node: Node) -> bool:
    return own_flag(node.data_dir) in _command_line(node.pid)


def _command_line(pid: int) -> list[str]:
    """The words of a process's command line; none when it is gone or a zombie."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        return []
    done = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.split()  # a folder with a space is not found again here; Linux has /proc


# -- remembering --------------------------------------------------------------------------------------------------------


def recorded(state: Path) -> Node | None:
    """The node that a state file names, when its process is alive; whatever else stands in the file is nothing."""
    try:
        raw = json.loads(state.read_text())
        paths = Path(raw["data_dir"]), Path(raw["log"])
        node = Node(str(raw["engine"]), str(raw["version"]), str(raw["url"]), int(raw["pid"]), *paths)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return node if node.pid > 0 and _is_ours(node) else None


def record(state: Path, node: Node) -> None:
    """Write the state file, whole or not at all."""
    draft = state.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(asdict(node), default=str))
    draft.replace(state)


def forget(state: Path) -> bool:
    """Stop what a state file names and remove the file; whether something ran."""
    node = recorded(state)
    if node:
        stop(node)
    state.unlink(missing_ok=True)
    return node is not None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes, waiting for them; released by the kernel when this one dies."""
    import fcntl

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever keeps the block from writing below `path` is a SettingsError."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error
