"""An nginx that answers every request with the same search answer, for measuring what stands before it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

HITS = 8


def build_stub_server(port: int) -> str:
    """Return the server block of an nginx that gives every request on `port` the same search answer."""
    return STUB.format(port=port, answer=build_search_answer())


def build_search_answer() -> str:
    """Return a search answer of about 2 KB."""
    source = {"title": "urllib.request: Extensible library for opening URLs", "text": "opens URLs " * 13}
    hits = [{"_index": "docs", "_id": str(i), "_score": 9.5 - i / 8, "_source": source} for i in range(HITS)]
    total = {"value": 218, "relation": "eq"}
    answer = {"took": 3, "timed_out": False, "hits": {"total": total, "max_score": 9.5, "hits": hits}}
    return json.dumps(answer, separators=(",", ":"))


@contextlib.contextmanager
def run_nginx(folder: Path, server: str) -> Iterator[int]:
    """Run one nginx process with the server block `server` in `folder`, and yield its process id."""
    folder.mkdir()
    (folder / "nginx.conf").write_text(NGINX.replace("FOLDER", str(folder)).replace("SERVER", server), encoding="utf-8")
    with run_command(["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", str(folder / "log")]) as pid:
        yield pid


@contextlib.contextmanager
def run_command(command: list[str]) -> Iterator[int]:
    """Run `command` until the block ends, and yield its process id."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


NGINX = """
daemon off;
master_process off;
pid FOLDER/pid;
events {}
http {
    access_log off;
    keepalive_requests 100000000;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    scgi_temp_path FOLDER/scgi;
    uwsgi_temp_path FOLDER/uwsgi;
    SERVER
}
"""
STUB = """
    server {{
        listen 127.0.0.1:{port};
        default_type application/json;
        location / {{ return 200 '{answer}'; }}
    }}
"""
