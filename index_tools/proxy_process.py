"""Run `querylift serve` as a separate process, for the demo, the benchmarks and the tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.plugin.child_process import build_python_path
from querylift.plugin.errors import EngineError


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy that runs as a separate process: its two URLs, its process, its settings file and its log."""

    url: str
    admin_url: str
    process: subprocess.Popen[bytes]
    config: Path
    log: Path

    def read_health(self) -> dict[str, Any]:
        """Return the health that the admin page reports, also with status 503, when the engine does not answer."""
        try:
            with urllib.request.urlopen(f"{self.admin_url}/_querylift/health", timeout=10) as answer:
                health: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                health = json.load(error)
        return health


@contextmanager
def run_proxy(settings: Mapping[str, Any], *, timeout_s: float = 60) -> Iterator[RunningProxy]:
    """Run a proxy with `settings` on free loopback ports until the block ends.

    Raise EngineError when it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="querylift-serve-") as folder:
        listen, admin = (f"127.0.0.1:{port}" for port in find_free_ports(2))
        config, log = Path(folder, "querylift.toml"), Path(folder, "log")
        config.write_text(format_toml({**settings, "listen": listen, "admin": admin}), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "querylift", "serve", "--config", str(config)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=_make_environment()
            )
        proxy = RunningProxy(f"http://{listen}", f"http://{admin}", process, config, log)
        try:
            _wait_until_healthy(proxy, timeout_s)
            yield proxy
        finally:
            stop_process(process)


def stop_process(process: subprocess.Popen[bytes], *, grace_s: float = 15) -> None:
    """End a process with SIGTERM, and with SIGKILL when it still runs after `grace_s` seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def find_free_ports(count: int) -> list[int]:
    """Return `count` different ports on which nothing listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def format_toml(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML: scalars, lists of scalars, and tables of them.

    JSON writes scalars and lists as TOML does.
    """
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    for name, table in settings.items():
        if isinstance(table, Mapping):
            lines += _format_toml_table((name,), table)
    return "\n".join(lines) + "\n"


def _format_toml_table(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    heading = ".".join(json.dumps(part) for part in path)
    scalars = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, Mapping)]
    inner_lines = [
        line for k, v in table.items() if isinstance(v, Mapping) for line in _format_toml_table((*path, k), v)
    ]
    return [f"\n[{heading}]", *scalars, *inner_lines]


def _make_environment() -> dict[str, str]:
    """Return the environment of this process without the settings that would override those of the file."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("QUERYLIFT_") or k == "QUERYLIFT_CACHE"}
    return {**variables, "PYTHONPATH": build_python_path()}


def _wait_until_healthy(proxy: RunningProxy, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if proxy.process.poll() is not None:
            break
        try:
            proxy.read_health()
            return
        except (OSError, urllib.error.URLError, ValueError):
            time.sleep(0.05)
    lines = proxy.log.read_text(errors="replace").strip().splitlines()
    raise EngineError(f"the proxy did not start: {lines[-1] if lines else 'its log is empty'}")
