"""llama-cpp-python's own server with the small model, which stands for any OpenAI-compatible endpoint."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import find_free_ports
from querylift.plugin.generators.llama.model_file import find_packaged_model

_LOG_CHARS = 4000


@contextmanager
def run_llama_server(folder: Path) -> Iterator[str]:
    """Run the server until the block ends, with its log in `folder`. Give its URL, which ends in /v1.

    The test fails with exit status and log when the server does not start or crashes. The test is skipped where llama.cpp
    was compiled with AMX, because the server has no option that keeps it from those kernels.
    """
    _skip_with_amx()
    (port,) = find_free_ports(1)
    command = [sys.executable, "-W", "ignore", "-m", "llama_cpp.server", "--model", str(find_packaged_model())]
    command += ["--port", str(port), "--n_ctx", "1024", "--n_threads", "1", "--chat_format", "chatml"]
    with run_server(command, f"http://127.0.0.1:{port}/v1/models", folder / "log"):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def run_server(command: list[str], url: str, log_path: Path, *, timeout_s: float = 120) -> Iterator[None]:
    """Run `command` from when `url` answers until the block ends. Fail with its exit status and log when it crashes."""
    with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            deadline_s = time.monotonic() + timeout_s
            while not _is_reachable(url):
                if server.poll() is not None or time.monotonic() > deadline_s:
                    raise AssertionError(_describe_state(server, log_path))
                time.sleep(0.1)
            try:
                yield
            except Exception as error:
                if _ends_within(server, seconds=2):
                    raise AssertionError(_describe_state(server, log_path)) from error
                raise
        finally:
            server.kill()


def _ends_within(server: subprocess.Popen[bytes], *, seconds: float) -> bool:
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _describe_state(server: subprocess.Popen[bytes], log_path: Path) -> str:
    state = "still starts" if server.returncode is None else f"ended with status {server.returncode}"
    return f"the server {state}; its log ends:\n{log_path.read_text(errors='replace')[-_LOG_CHARS:]}"


def _is_reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _skip_with_amx() -> None:
    from llama_cpp import llama_print_system_info

    from querylift.plugin.generators.llama.model import has_amx_kernels

    if has_amx_kernels(llama_print_system_info()):
        pytest.skip("this llama-cpp-python was compiled with AMX, and its server crashes; `make` compiles it without")
