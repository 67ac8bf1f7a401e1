"""Several workers are one proxy to clients and to operators. Each test runs real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.proxy_process import RunningProxy, find_free_ports, format_toml, run_proxy
from tests.helpers.late_endpoint import find_outcome, run_late_endpoint
from tests.helpers.llama import is_running
from tests.helpers.workers import is_broken, keep_connections, kill_workers, list_processes, send_search, wait_until

pytestmark = pytest.mark.engine
BOTH_WORKERS = {"ql worker 1", "ql worker 2"}


@pytest.fixture
def settings(docs: str, tmp_path: Path) -> dict[str, Any]:
    """Give settings of two workers that expand by a table."""
    table = tmp_path / "table.jsonl"
    table.write_text('{"query": "download a page", "text": "urlopen fetches"}\n', encoding="utf-8")
    return {
        "workers": 2,
        "engine": docs,
        "generator": f"table:{table}",
        "index": {"docs": {}},
        "cache": {"file": str(tmp_path / "shared.cache")},
    }


@pytest.fixture
def proxy(settings: dict[str, Any]) -> Iterator[RunningProxy]:
    with run_proxy(settings) as proxy:
        yield proxy


def _read_admin_page(proxy: RunningProxy, path: str, **headers: str) -> str:
    request = urllib.request.Request(proxy.admin_url + path, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.read().decode())


def _count_searches(proxy: RunningProxy) -> float:
    lines = _read_admin_page(proxy, "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("querylift_searches_total"))


def test_eight_connections_are_spread_over_two_workers(proxy: RunningProxy) -> None:
    with keep_connections(proxy, 8) as connections:
        os.kill(list_processes(proxy)["ql worker 1"], signal.SIGKILL)
        wait_until(lambda: any(map(is_broken, connections)))
        assert 3 <= sum(map(is_broken, connections)) <= 5


def test_a_killed_worker_is_replaced_and_no_new_connection_fails(proxy: RunningProxy) -> None:
    killed_pid = list_processes(proxy)["ql worker 2"]
    os.kill(killed_pid, signal.SIGKILL)
    wait_until(lambda: not is_running(killed_pid))
    outcomes = [find_outcome(proxy.url) for _ in range(8)]  # one worker is left
    wait_until(lambda: proxy.read_health()["workers_answering"] == 2)
    outcomes += [find_outcome(proxy.url) for _ in range(8)]
    assert set(outcomes) == {"expanded", "cached"}
    assert list_processes(proxy).keys() >= BOTH_WORKERS


def test_the_metrics_of_all_workers_are_added_up_and_outlive_a_worker(proxy: RunningProxy) -> None:
    with keep_connections(proxy, 8) as connections:
        for connection in connections:
            send_search(connection)
    assert _count_searches(proxy) == 16
    os.kill(list_processes(proxy)["ql worker 1"], signal.SIGKILL)
    wait_until(lambda: proxy.read_health()["workers_answering"] == 1)
    assert _count_searches(proxy) == 16


def test_sighup_reaches_every_worker_and_those_that_come_later(proxy: RunningProxy) -> None:
    text = proxy.config.read_text(encoding="utf-8")
    proxy.config.write_text("enabled = false\n" + text, encoding="utf-8")
    with keep_connections(proxy, 4) as connections:
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: proxy.log.read_text().count("the settings were read again") == 2)
        assert {send_search(connection) for connection in connections} == {"skipped;off"}
    kill_workers(proxy)
    with keep_connections(proxy, 4) as connections:
        assert {send_search(connection) for connection in connections} == {"skipped;off"}


def test_sigterm_lets_a_search_finish_that_is_under_way(settings: dict[str, Any]) -> None:
    with run_late_endpoint() as endpoint:
        late_settings = settings | {"generator": f"http:{endpoint.url}", "budget_ms": 20_000}
        with run_proxy(late_settings) as proxy:
            outcomes: list[str] = []
            client = threading.Thread(target=lambda: outcomes.append(find_outcome(proxy.url)))
            client.start()
            wait_until(lambda: endpoint.asked_count)
            proxy.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not _accepts_connections(proxy))
            with pytest.raises(
                urllib.error.HTTPError, match="503"
            ):  # the admin page says so until the search is answered
                _read_admin_page(proxy, "/_querylift/ready")
            endpoint.release.set()
            client.join()
            assert (outcomes, proxy.process.wait(20)) == (["expanded"], 0)


def _accepts_connections(proxy: RunningProxy) -> bool:
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_admin_page_explains_by_one_worker(proxy: RunningProxy) -> None:
    explanation = json.loads(_read_admin_page(proxy, "/_querylift/explain?index=docs&q=download+a+page"))
    assert explanation["expansion"] == {"text": "urlopen fetches"}
    health = proxy.read_health()
    assert (health["status"], health["workers"], health["workers_answering"]) == ("ok", 2, 2)


def test_a_worker_that_hangs_makes_the_proxy_neither_dead_nor_unready(proxy: RunningProxy) -> None:
    hanging_pid = list_processes(proxy)["ql worker 1"]
    os.kill(hanging_pid, signal.SIGSTOP)
    assert json.loads(_read_admin_page(proxy, "/_querylift/live")) == {"status": "alive"}
    assert json.loads(_read_admin_page(proxy, "/_querylift/ready")) == {"status": "ready"}
    explanation = json.loads(_read_admin_page(proxy, "/_querylift/explain?index=docs&q=download+a+page"))
    assert explanation["outcome"] == "expanded"
    assert find_outcome(proxy.url) in ("expanded", "cached")  # the other worker takes new connections
    os.kill(hanging_pid, signal.SIGCONT)


def test_the_admin_page_of_all_workers_asks_for_the_token(settings: dict[str, Any]) -> None:
    with run_proxy(settings | {"admin_token": "t0ken"}) as proxy:
        for path in ("/metrics", "/_querylift/explain?index=docs&q=a"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                _read_admin_page(proxy, path)
        assert "querylift_searches_total" in _read_admin_page(proxy, "/metrics", Authorization="Bearer t0ken")


def test_no_process_outlives_a_supervisor(proxy: RunningProxy) -> None:
    pids = list_processes(proxy).values()
    assert len(pids) == 3
    proxy.process.kill()
    wait_until(lambda: not any(map(is_running, pids)))


def _run_serve(folder: Path, settings: dict[str, Any], **environment: str) -> tuple[int, str]:
    """Run `serve`, which must not start. Return its exit code and what it printed after the log lines."""
    (folder / "querylift.toml").write_text(format_toml(settings), encoding="utf-8")
    command = [sys.executable, "-m", "querylift", "serve"]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    return result.returncode, result.stderr.splitlines()[-1]


def _choose_addresses() -> dict[str, Any]:
    listen, admin = (f"127.0.0.1:{port}" for port in find_free_ports(2))
    return {"listen": listen, "admin": admin}


def test_what_is_wrong_with_workers_is_one_sentence(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= _choose_addresses()
    for value in (0, 65):
        exit_code, sentence = _run_serve(tmp_path, settings | {"workers": value})
        assert (exit_code, sentence.startswith(f"querylift: querylift.toml: workers is {value}: ")) == (2, True)
    no_cache = {key: value for key, value in settings.items() if key != "cache"}
    (tmp_path / "file").touch()
    exit_code, sentence = _run_serve(tmp_path, no_cache, QUERYLIFT_CACHE=str(tmp_path / "file" / "cache"))
    assert (exit_code, sentence) == (
        2, f"querylift: workers is 2, which needs a cache for all of them, and {tmp_path}/file/cache cannot be written "
        "(Not a directory); set cache.file or cache.url",
    )  # fmt: skip
    long_folder = tmp_path / ("x" * 100)
    long_folder.mkdir()
    exit_code, sentence = _run_serve(tmp_path, settings, TMPDIR=str(long_folder))
    assert (exit_code, "TMPDIR is too long for Unix sockets" in sentence) == (2, True)


def test_a_worker_that_cannot_start_stops_all_with_its_sentence(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= _choose_addresses() | {"generator": f"table:{tmp_path}/gone.jsonl"}
    exit_code, sentence = _run_serve(tmp_path, settings)
    assert exit_code == 2
    assert sentence.startswith("querylift: ") and "gone.jsonl" in sentence


def test_a_second_proxy_does_not_take_the_admin_page_of_the_first(proxy: RunningProxy, tmp_path: Path) -> None:
    admin = proxy.admin_url.removeprefix("http://")
    exit_code, sentence = _run_serve(tmp_path, {"workers": 2, "admin": admin, "listen": _choose_addresses()["listen"]})
    assert (exit_code, sentence) == (
        2, f"querylift: cannot listen on {admin}: Address already in use; name another address"
    )  # fmt: skip
    assert proxy.read_health()["workers_answering"] == 2


def test_a_cache_file_for_all_workers_is_made_where_none_is_set(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path / "made"))
    del settings["cache"]
    with run_proxy(settings) as proxy, keep_connections(proxy, 6) as connections:
        assert {send_search(connection) for connection in connections} == {"cached"}
        address = proxy.url.removeprefix("http://").replace(":", "-")
    assert f"workers-{address}.cache" in {path.name for path in (tmp_path / "made").iterdir()}


def test_an_admin_page_that_ends_is_replaced(proxy: RunningProxy) -> None:
    os.kill(list_processes(proxy)["ql admin page"], signal.SIGKILL)
    wait_until(lambda: "a new admin page starts" in proxy.log.read_text())
    assert proxy.read_health()["status"] == "ok"  # the supervisor holds the address, and the question waits
