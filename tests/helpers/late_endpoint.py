"""An OpenAI-compatible endpoint that answers when a test lets it, and searches with pages through a proxy."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

EXPANSION_WORDS = "urlopen fetches"


class LateEndpoint:
    """A server that answers no request before `release` is set. `asked_count` counts the requests."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked_count = 0
        self.url = ""


@contextmanager
def run_late_endpoint() -> Iterator[LateEndpoint]:
    """Run the server in threads of its own during the block."""
    endpoint = LateEndpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            endpoint.asked_count += 1
            endpoint.release.wait(30)
            message = {"message": {"role": "assistant", "content": EXPANSION_WORDS}, "finish_reason": "stop"}
            body = json.dumps({"choices": [message]}).encode()
            with suppress(ConnectionError):  # the proxy may have ended
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


def find_outcome(proxy_url: str, query: str = "download a page", *, start: int = 0) -> str:
    """Send a search on the index `docs` on a new connection, and return its outcome. `start` is the first hit's number."""
    body = {"query": {"match": {"text": query}}, "from": start, "size": 10}
    request = urllib.request.Request(
        f"{proxy_url}/docs/_search", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        answer.read()
        return str(answer.headers["X-Querylift"])


def wait_for_outcome(proxy_url: str, outcome: str, *, start: int = 0) -> None:
    """Search again and again until the outcome is `outcome`."""
    give_up_s = time.monotonic() + 20
    while (last_outcome := find_outcome(proxy_url, start=start)) != outcome:
        assert time.monotonic() < give_up_s, last_outcome
        time.sleep(0.02)
