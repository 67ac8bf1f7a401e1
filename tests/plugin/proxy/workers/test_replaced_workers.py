"""A worker that takes the place of another serves with the settings that are in use. Each test runs real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.proxy_process import RunningProxy, find_free_ports, format_toml, run_proxy, stop_process
from tests.helpers.late_endpoint import find_outcome
from tests.helpers.workers import keep_connections, kill_workers, list_processes, send_search, wait_until

pytestmark = pytest.mark.engine


def _write_table(path: Path) -> str:
    path.write_text('{"query": "download a page", "text": "urlopen fetches"}\n', encoding="utf-8")
    return f"table:{path}"


@pytest.fixture
def settings(docs: str, tmp_path: Path) -> dict[str, Any]:
    """Give settings of two workers that expand by the table `old.jsonl`."""
    return {
        "workers": 2,
        "engine": docs,
        "generator": _write_table(tmp_path / "old.jsonl"),
        "index": {"docs": {}},
        "cache": {"file": str(tmp_path / "shared.cache")},
    }


@pytest.fixture
def proxy(settings: dict[str, Any]) -> Iterator[RunningProxy]:
    with run_proxy(settings) as proxy:
        yield proxy


def _change_file(proxy: RunningProxy, old: str, new: str, *, sentence: str) -> None:
    """Change the settings file, and wait until both workers have logged `sentence` after SIGHUP."""
    text = proxy.config.read_text(encoding="utf-8")
    assert old in text
    proxy.config.write_text(text.replace(old, new), encoding="utf-8")
    proxy.process.send_signal(signal.SIGHUP)
    wait_until(lambda: proxy.log.read_text().count(sentence) == 2)


def test_a_new_worker_needs_no_file_that_only_the_first_settings_name(proxy: RunningProxy, tmp_path: Path) -> None:
    _write_table(tmp_path / "new.jsonl")
    _change_file(proxy, "old.jsonl", "new.jsonl", sentence="the settings were read again")
    (tmp_path / "old.jsonl").unlink()
    kill_workers(proxy)
    with keep_connections(proxy, 4) as connections:
        assert {send_search(connection) for connection in connections} == {"cached"}
    assert "cannot start" not in proxy.log.read_text()


def test_a_new_worker_starts_with_the_earlier_settings_when_the_new_ones_do_not_work(proxy: RunningProxy) -> None:
    _change_file(proxy, "old.jsonl", "missing.jsonl", sentence="the settings were not applied")
    kill_workers(proxy)
    with keep_connections(proxy, 4) as connections:
        assert {send_search(connection) for connection in connections} == {"cached"}
    assert "starts with the settings before the last SIGHUP: " in proxy.log.read_text()


def test_a_proxy_of_which_no_worker_can_start_ends_with_the_sentence(proxy: RunningProxy, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").unlink()
    kill_workers(proxy)
    assert proxy.process.wait(30) == 2
    assert "old.jsonl" in proxy.log.read_text().splitlines()[-1]


def test_a_signal_to_all_processes_at_once_stops_them_as_one_to_the_first_does(proxy: RunningProxy) -> None:
    assert find_outcome(proxy.url) == "expanded"
    for pid in [*list_processes(proxy).values(), proxy.process.pid]:
        os.kill(pid, signal.SIGTERM)
    assert proxy.process.wait(30) == 0
    log = proxy.log.read_text()
    assert "ended (" not in log
    assert "cannot start" not in log


def test_changed_settings_that_all_processes_share_are_named_once(proxy: RunningProxy) -> None:
    text = proxy.config.read_text(encoding="utf-8")
    (new_port,) = find_free_ports(1)
    proxy.config.write_text(
        text.replace(proxy.admin_url.removeprefix("http://"), f"127.0.0.1:{new_port}"), encoding="utf-8"
    )
    proxy.process.send_signal(signal.SIGHUP)
    wait_until(lambda: proxy.log.read_text().count("the settings were read again") == 2)
    lines = [line for line in proxy.log.read_text().splitlines() if "a restart is needed for" in line]
    assert len(lines) == 1
    assert lines[0].endswith("a restart is needed for: admin")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_that_comes_while_serve_starts_is_remembered(
    workers: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    listen, admin = (f"127.0.0.1:{port}" for port in find_free_ports(2))
    config, log = tmp_path / "querylift.toml", tmp_path / "log"
    values = settings | {"workers": workers, "listen": listen, "admin": admin}
    config.write_text(format_toml(values), encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "querylift", "serve", "--config", str(config)], stderr=output
        )
    try:
        wait_until(lambda: _catches_sighup(process.pid))
        config.write_text("enabled = false\n" + format_toml(values), encoding="utf-8")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "serving http://" in log.read_text())
        wait_until(lambda: find_outcome(f"http://{listen}") == "skipped;off")
    finally:
        stop_process(process)


def _catches_sighup(pid: int) -> bool:
    """Whether the process has a handler for SIGHUP. See proc(5), SigCgt."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught & 1 << (signal.SIGHUP - 1))
