"""Run `querylift warm` and `export-table` in a folder, with an endpoint that stands for the model."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("QUERYLIFT_")}
INDEX_TABLE = '[index.docs]\nfields = ["title", "text"]\n'


def make_popen_options(*arguments: str, **environment: str) -> dict[str, Any]:
    """The keyword arguments for `subprocess.Popen` or `run` that run `querylift` with these arguments."""
    return {
        "args": [sys.executable, "-m", "querylift", *arguments],
        "env": ENVIRONMENT | environment,
        "text": True,
        "encoding": "utf-8",
    }


def run_querylift(
    folder: Path, *arguments: str, stdin: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run `querylift` in `folder` to its end."""
    options = make_popen_options(*arguments, **environment)
    return subprocess.run(cwd=folder, input=stdin, capture_output=True, timeout=280, check=False, **options)


def write_settings(folder: Path, generator: str, *, cache: bool = True, tables: str = "") -> None:
    """Write querylift.toml with the index docs, and with a cache file if `cache` is set."""
    cache_table = '\n[cache]\nfile = "kept.db"\n' if cache else ""
    text = f'generator = "{generator}"\n{tables}{INDEX_TABLE}{cache_table}'
    (folder / "querylift.toml").write_text(text, encoding="utf-8")


def write_log(folder: Path, *lines: str) -> None:
    """Write the query log log.txt."""
    (folder / "log.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read_cache_values(folder: Path) -> list[str]:
    """The values in the cache file now, without the one that tests whether the cache works."""
    if not (folder / "kept.db").exists():
        return []
    database = sqlite3.connect(folder / "kept.db", timeout=10)
    try:
        return [row[0] for row in database.execute("SELECT value FROM kept WHERE key != 'warming'")]
    except sqlite3.OperationalError:  # it is being made
        return []
    finally:
        database.close()


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Whether the condition came true within the time."""
    ends_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_s:
        if condition():
            return True
        time.sleep(0.02)
    return False


def accept_interrupts() -> None:
    """A process that a shell starts in the background ignores SIGINT. Undo that, so that Ctrl-C reaches the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Endpoint:
    """An OpenAI-compatible endpoint. It answers the first `max_answers` requests and leaves later ones waiting.

    It answers a query that contains `failing_word` with status 500.
    """

    def __init__(self) -> None:
        self.max_answers = 10**9
        self.failing_word = "no such words"
        self.asked_queries: list[str] = []
        self.answered_queries: list[str] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.answer(self, body["messages"][-1]["content"].partition("query: ")[2])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.generator = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, query: str) -> None:
        """Answer one request, or wait until the endpoint closes."""
        with self._lock:
            self.asked_queries.append(query)
            must_wait = len(self.answered_queries) >= self.max_answers
            if not must_wait:
                self.answered_queries.append(query)
        if must_wait:
            self._closed.wait(60)
            return
        content = json.dumps({"choices": [{"message": {"content": f"a passage on {query}"}}]}).encode()
        handler.send_response(500 if self.failing_word in query else 200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the command was stopped
            handler.wfile.write(content)

    def close(self) -> None:
        """Release the waiting requests and stop."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
