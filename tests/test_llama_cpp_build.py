"""How llama.cpp is compiled and run: without AMX, whose kernels crash, and with a word when its server ends."""

from __future__ import annotations

import platform
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import find_free_ports
from tests.helpers.llama_server import run_server
from tests.helpers.paths import ROOT

BIN = Path(sys.executable).parent
PROJECT = """\
cmake_minimum_required(VERSION 3.21)
project(llama_cpp)
add_library(probe OBJECT probe.c)
target_compile_options(probe PRIVATE -march=sapphirerapids)
"""
PROBE = """\
#ifdef __AMX_INT8__
#error "compiled with AMX"
#endif
"""


def compile_project(folder: Path, *options: str) -> str:
    """Compile the project for a CPU with AMX. Return the output of the compiler, "" when all is well."""
    build = folder / "build"
    command = [BIN / "cmake", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={BIN / 'ninja'}", "-S", folder, "-B", build]
    subprocess.run([*map(str, command), *options], check=True, capture_output=True)
    result = subprocess.run([BIN / "cmake", "--build", build], capture_output=True, text=True)
    return result.stdout if result.returncode else ""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has AMX")
def test_the_set_up_compiles_without_amx_even_for_a_cpu_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PROJECT, encoding="utf-8")
    (tmp_path / "probe.c").write_text(PROBE, encoding="utf-8")
    if "compiled with AMX" not in (output := compile_project(tmp_path)):
        pytest.skip(f"this compiler has no AMX: {output}")
    option = f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={ROOT / 'requirements/without_amx.cmake'}"
    assert compile_project(tmp_path, option) == ""


def test_a_compiler_that_does_not_know_amx_gets_no_option_for_it(tmp_path: Path) -> None:
    options = (ROOT / "requirements/without_amx.cmake").read_text(encoding="utf-8")
    include = tmp_path / "unknown.cmake"
    include.write_text(options.replace("-mno-amx", "-mno-such-unit"), encoding="utf-8")
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.rpartition("target")[0], encoding="utf-8")
    (tmp_path / "probe.c").write_text("int probe;\n", encoding="utf-8")
    assert compile_project(tmp_path, f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={include}") == ""


def test_make_and_the_docker_image_use_it(tmp_path: Path) -> None:
    command = ["make", "--dry-run", "--directory", str(ROOT), f"VENV={tmp_path}/venv", f"{tmp_path}/venv/.demo"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("CMAKE_ARGS") and line.endswith("-r requirements/demo.txt")]
    assert f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={ROOT}/requirements/without_amx.cmake'" in line
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    assert 'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF"' in dockerfile


def test_a_server_that_ends_fails_its_test_with_exit_status_and_log(tmp_path: Path) -> None:
    crash = [sys.executable, "-c", "import os; print('loading', flush=True); os.kill(os.getpid(), 11)"]
    with pytest.raises(AssertionError, match=r"^the server ended with status -11; its log ends:\nloading\n$"):
        with run_server(crash, "http://127.0.0.1:9/v1/models", tmp_path / "log"):
            pass


CRASHING_SERVER = """\
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            os._exit(139)
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_that_ends_at_a_request_fails_its_test_likewise(tmp_path: Path) -> None:
    (port,) = find_free_ports(1)
    command = [sys.executable, "-c", CRASHING_SERVER, str(port)]
    with pytest.raises(
        AssertionError, match=r'ended with status 139; its log ends:\n(.*\n)*.*"GET /models HTTP/1.1" 204'
    ):
        with run_server(command, f"http://127.0.0.1:{port}/models", tmp_path / "log"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/crash", timeout=5)
