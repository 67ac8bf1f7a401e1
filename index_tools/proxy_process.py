"""Run `querylift serve` as a process of its own, for the demo, the benchmarks and the tests."""

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

from querylift.plugin.errors import EngineError


@dataclass(frozen=True, slots=True)
class Served:
    """A proxy that answers: where clients and operators reach it, its process, what it writes."""

    url: str
    admin_url: str
    process: subprocess.Popen[bytes]
    config: Path
    log: Path

    def health(self) -> dict[str, Any]:
        """What the admin page says."""
        with urllib.request.urlopen(f"{self.admin_url}/_querylift/health", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@contextmanager
def serving(settings: Mapping[str, Any], *, timeout_s: float = 60) -> Iterator[Served]:
    """A proxy with `settings` on free loopback ports, stopped on exit. Raises EngineError where it does not come up."""
    with tempfile.TemporaryDirectory(prefix="querylift-serve-") as folder:
        listen, admin = (f"127.0.0.1:{port}" for port in free_ports(2))
        config, log = Path(folder, "querylift.toml"), Path(folder, "log")
        config.write_text(to_toml({**settings, "listen": listen, "admin": admin}), encoding="utf-8")
        command = [sys.executable, "-m", "querylift", "serve", "--config", str(config)]
        with log.open("wb") as sink:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=_environment())
        served = Served(f"http://{listen}", f"http://{admin}", process, config, log)
        try:
            _wait(served, timeout_s)
            yield served
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 15) -> None:
    """SIGTERM, and SIGKILL where that is not heeded."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def to_toml(settings: Mapping[str, Any]) -> str:
    """Scalars, lists and tables of scalars as TOML: a JSON scalar or list is one in TOML too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    for name, table in settings.items():
        if isinstance(table, Mapping):
            lines += _table((name,), table)
    return "\n".join(lines) + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    heading = ".".join(json.dumps(part) for part in path)
    scalars = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, Mapping)]
    inner = [line for k, v in table.items() if isinstance(v, Mapping) for line in _table((*path, k), v)]
    return [f"\n[{heading}]", *scalars, *inner]


def _environment() -> dict[str, str]:
    """This process's environment without settings that would override the file's."""
    return {k: v for k, v in os.environ.items() if not k.startswith("QUERYLIFT_") or k == "QUERYLIFT_CACHE"}


def _wait(served: Served, timeout_s: float) -> None:
    give_up_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_s:
        if served.process.poll() is not None:
            break
        try:
            served.health()
            return
        except (OSError, urllib.error.URLError, ValueError):
            time.sleep(0.05)
    said = served.log.read_text(errors="replace").strip().splitlines()
    raise EngineError(f"the proxy did not come up: {said[-1] if said else 'it said nothing'}")
