"""A proxy with several workers: its processes, and connections that stay open."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from querylift.index_tools.proxy_process import RunningProxy

SEARCH = json.dumps({"query": {"match": {"text": "download a page"}}})


def list_processes(proxy: RunningProxy) -> dict[str, int]:
    """Return the process ids of the proxy's children by name, such as `ql worker 1`."""
    pid = proxy.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = {child: Path(f"/proc/{child}/comm").read_text().strip() for child in children}
    return {name: int(child) for child, name in names.items() if name.startswith("ql ")}


@contextmanager
def keep_connections(proxy: RunningProxy, count: int) -> Iterator[list[http.client.HTTPConnection]]:
    """Yield connections to the proxy, each of which has answered a search. They are closed at the end."""
    address = proxy.url.removeprefix("http://")
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(closing(http.client.HTTPConnection(address, timeout=20)))
            send_search(connection)
            connections.append(connection)
        yield connections


def send_search(connection: http.client.HTTPConnection) -> str | None:
    """Send a search, and return its outcome."""
    connection.request("POST", "/docs/_search", SEARCH, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    return answer.headers["X-Querylift"]


def is_broken(connection: http.client.HTTPConnection) -> bool:
    """Whether the proxy has ended the connection."""
    sock: socket.socket = connection.sock
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        sock.settimeout(20)


def kill_workers(proxy: RunningProxy) -> None:
    """Kill both workers. What they listened on goes on taking connections, which wait for the next workers."""
    for name, pid in list_processes(proxy).items():
        if name.startswith("ql worker"):
            os.kill(pid, signal.SIGKILL)


def wait_until(is_true: Callable[[], Any]) -> None:
    """Return once `is_true` returns a true value."""
    give_up_s = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)
