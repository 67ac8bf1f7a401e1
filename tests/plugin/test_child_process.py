"""A process that Querylift starts runs this package, no module of the working folder, and knows no secret."""

import asyncio
import tempfile
import time
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import run_proxy
from querylift.plugin.child_process import build_worker_environment
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.quantize.levels import worker_process
from tests.helpers.llama import run_drill

SECRETS = {
    "QUERYLIFT_HTTP__API_KEY": "s3cret-1",
    "QUERYLIFT_ENGINE_PASSWORD": "s3cret-2",
    "OPENAI_API_KEY": "s3cret-3",
    "AWS_SECRET_ACCESS_KEY": "s3cret-4",
    "LLAMA_API_KEY": "s3cret-5",
    "NVIDIA_API_KEY": "s3cret-6",
    "DATABASE_URL": "postgres://:s3cret-7@host",
}


@pytest.fixture
def hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose modules are named like ours and like those of the standard library."""
    for name in ("querylift", "plugin", "json", "uvicorn"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f"open({str(tmp_path / 'was-run')!r}, 'w').close()\nraise SystemExit(9)"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_proxy_process_runs_no_module_of_the_working_folder(hostile_folder: Path) -> None:
    with run_proxy({"engine": "http://127.0.0.1:9"}) as proxy:
        assert proxy.read_health()["status"] == "engine-down"
    assert not (hostile_folder / "was-run").exists()


@pytest.mark.model
def test_the_models_worker_runs_no_module_of_the_working_folder_and_knows_no_secret(
    hostile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    async def drill(generator: LlamaGenerator) -> None:
        await asyncio.sleep(0)
        assert "s3cret" not in Path(f"/proc/{generator.pid}/environ").read_text()

    run_drill(drill)
    assert not (hostile_folder / "was-run").exists()


def test_the_quantising_worker_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with tempfile.TemporaryFile() as stderr, worker_process._start_worker(stderr) as process:
        variables = _read_environment(process.pid)
        process.kill()
    assert "s3cret" not in variables
    assert "PYTHONPATH=" in variables


def _read_environment(pid: int) -> str:
    """Return the environment of a process, once it has become the command that it was started for."""
    for _ in range(200):
        if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return Path(f"/proc/{pid}/environ").read_text()
        time.sleep(0.01)
    raise AssertionError("the worker did not start")


def test_a_worker_gets_the_variables_that_it_needs() -> None:
    variables = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "OMP_WAIT_POLICY": "active",
        "LC_ALL": "C.UTF-8",
        **SECRETS,
    }
    environment = build_worker_environment(variables)
    assert {name for name in environment if name not in variables} == {"PYTHONPATH", "GGML_NO_BACKTRACE"}
    assert environment["OMP_WAIT_POLICY"] == "active"
    assert environment.keys() & SECRETS.keys() == set()
