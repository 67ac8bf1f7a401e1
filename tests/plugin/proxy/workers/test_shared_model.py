"""Two workers expand by one language model, and its restarts are counted once."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import RunningProxy, run_proxy
from tests.helpers.workers import keep_connections, list_processes, send_search, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.model]


def test_two_workers_run_one_model_and_count_its_restart_once(docs: str, tmp_path: Path) -> None:
    settings = {
        "engine": docs,
        "workers": 2,
        "generator": "llama",
        "index": {"docs": {}},
        "budget_ms": 20_000,
        "cache": {"file": str(tmp_path / "shared.cache")},
    }
    with run_proxy(settings, timeout_s=120) as proxy:
        with keep_connections(proxy, 4) as connections:
            assert {send_search(connection) for connection in connections} == {"cached"}
        (model_pid,) = _list_child_pids(list_processes(proxy)["ql models"])
        os.kill(model_pid, signal.SIGKILL)
        wait_until(lambda: 'querylift_generator_restarts_total{generator="llama"} 1.0' in _read_metrics(proxy))
        wait_until(lambda: proxy.read_health()["generator_restarts"] == 1)


def _list_child_pids(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _read_metrics(proxy: RunningProxy) -> str:
    with urllib.request.urlopen(f"{proxy.admin_url}/metrics", timeout=20) as answer:
        return str(answer.read().decode())
