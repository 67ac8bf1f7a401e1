"""Workers share an expander that the supervisor has loaded, until its folder is built again."""

from __future__ import annotations

import http.client
import json
import os
import shutil
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import run_proxy
from querylift.plugin.generators.fast_expander import open_expander_model, preload_expander_model
from tests.helpers.expanders import write_expander, write_tiny_encoder
from tests.helpers.folders import edit_json_file
from tests.helpers.workers import keep_connections


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("expander")
    return write_expander(work / "topics.expander", write_tiny_encoder(work / "encoder"))


def test_a_loaded_expander_is_used_until_its_folder_is_built_again(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    preload_expander_model(copy)
    _, model = open_expander_model(copy)
    assert open_expander_model(copy)[1] is model
    edit_json_file(copy / "expander.json", {"built": "2026-02-02"})
    assert open_expander_model(copy)[1] is not model


@pytest.mark.engine
def test_each_worker_expands_with_the_expander_that_was_loaded_once(folder: Path, docs: str, tmp_path: Path) -> None:
    settings = {
        "engine": docs,
        "workers": 2,
        "generator": f"expander:{folder}",
        "index": {"topics": {}},
        "budget_ms": 5000,
        "cache": {"file": str(tmp_path / "shared.cache")},
    }
    with run_proxy(settings) as proxy:
        assert len(os.listdir(f"/proc/{proxy.process.pid}/task")) == 1  # a thread would not live on in a worker
        with keep_connections(proxy, 8) as connections:  # four of them on each worker
            outcomes = [
                _search_topics(connection, f"telescopes and moons {i}") for i, connection in enumerate(connections)
            ]
        assert outcomes == ["expanded"] * 8


def _search_topics(connection: http.client.HTTPConnection, query: str) -> str | None:
    body = json.dumps({"query": {"match": {"contents": query}}})
    path = "/topics/_search?ignore_unavailable=true"
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.headers["X-Querylift"]
