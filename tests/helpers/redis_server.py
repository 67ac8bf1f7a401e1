"""A real Valkey or Redis for a test."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import find_free_ports

SERVER_PATH = shutil.which("valkey-server") or shutil.which("redis-server")


@dataclass(frozen=True)
class RedisServer:
    """A running server, with its port, its URL without a password, and its process."""

    port: int
    url: str
    process: subprocess.Popen[bytes]

    def send_command(self, *words: str) -> str:
        """Send one command, and return the beginning of the server's answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{parts}".encode())
            return connection.recv(65_536).decode()


@contextmanager
def run_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server with these command-line options until the block ends. Skip the test where none is installed."""
    if SERVER_PATH is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    port = find_free_ports(1)[0]
    command = [SERVER_PATH, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        server = RedisServer(port, f"redis://127.0.0.1:{port}", process)
        try:
            _wait_until_reachable(server)
            yield server
        finally:
            process.kill()


def _wait_until_reachable(server: RedisServer) -> None:
    for _ in range(400):
        try:
            server.send_command("PING")
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("the server did not come up")
