"""The log of `querylift serve`: every line has a time, or every line is JSON."""

import json
import logging
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.proxy_process import RunningProxy, run_proxy
from querylift.plugin.proxy.log_format import JsonFormatter, TextFormatter
from tests.helpers.expanders import write_expander, write_tiny_encoder

BODY = json.dumps({"query": {"match": {"contents": "sailing boats"}}}).encode()
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?:INFO|WARNING) querylift ")


@pytest.fixture(scope="module")
def expander(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expander, because loading one loads libraries that print."""
    folder = tmp_path_factory.mktemp("log")
    return write_expander(folder / "topics.expander", write_tiny_encoder(folder / "encoder"))


def _serve_and_read_log(expander: Path, **log: object) -> list[str]:
    """Serve a search, read the settings again, and return the lines of the log."""
    settings: dict[str, Any] = {
        "engine": "http://127.0.0.1:9",
        "index": {"topics": {}},
        "log": {"searches": True, **log},
    }
    with run_proxy(settings | {"generator": f"expander:{expander}"}) as proxy:
        request = urllib.request.Request(f"{proxy.url}/topics/_search", BODY, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError):  # no engine answers
            urllib.request.urlopen(request, timeout=20)
        proxy.process.send_signal(signal.SIGHUP)
        return _wait_for_line(proxy, "the settings were read again")


def _wait_for_line(proxy: RunningProxy, text: str) -> list[str]:
    for _ in range(500):
        lines = proxy.log.read_text().splitlines()
        if any(text in line for line in lines):
            return lines
        time.sleep(0.02)
    raise AssertionError(lines)


def test_every_line_has_a_time_and_the_record_of_a_search_is_json_without_a_prefix(expander: Path) -> None:
    lines = _serve_and_read_log(expander)
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert [record["query_attributes"]["outcome"] for record in records] == ["error"]
    assert all(TIME.match(line) for line in lines if not line.startswith("{"))
    assert "faiss" not in "".join(lines)


def test_with_the_format_json_every_line_is_an_object(expander: Path) -> None:
    objects = [json.loads(line) for line in _serve_and_read_log(expander, format="json")]
    messages = [line["message"] for line in objects if "message" in line]
    assert "the settings were read again" in messages
    assert any(message.startswith("serving http://") for message in messages)
    assert [line["query_attributes"]["outcome"] for line in objects if "query_attributes" in line] == ["error"]
    assert all("timestamp" in line for line in objects)


def test_with_the_format_json_the_sentence_that_ends_serve_is_an_object_too(tmp_path: Path) -> None:
    (tmp_path / "querylift.toml").write_text(
        'generator = "table:gone.jsonl"\n[log]\nformat = "json"\n', encoding="utf-8"
    )
    command = [sys.executable, "-m", "querylift", "serve"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    last_line = json.loads(result.stderr.splitlines()[-1])
    assert (result.returncode, last_line["level"]) == (2, "CRITICAL")
    assert last_line["message"].startswith("'gone.jsonl' cannot be read")


def _make_record(message: str, error: Exception | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord("querylift", logging.WARNING, "a.py", 1, message, (), exc_info)


def test_a_name_with_a_line_end_begins_no_line_of_its_own() -> None:
    line = TextFormatter("%(levelname)s %(message)s").format(_make_record("refused on docs\nWARNING all is well"))
    assert line == r"WARNING refused on docs\nWARNING all is well"


def test_an_exception_stays_inside_its_json_line() -> None:
    line = JsonFormatter().format(_make_record("a fault", ValueError("x")))
    assert "\n" not in line
    assert json.loads(line)["exception"] == "ValueError: x"
