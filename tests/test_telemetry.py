"""Nothing leaves the machine that nobody asked for: no library reports, writes an id, or looks a name up."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import find_free_ports
from querylift.plugin.telemetry import SWITCHES
from tests.helpers.expanders import write_expander, write_tiny_encoder
from tests.helpers.paths import ROOT

BODY = json.dumps({"query": {"match": {"contents": "sailing boats"}}}).encode()
STRACE = shutil.which("strace")


def _make_environment(home: Path) -> dict[str, str]:
    """An environment with a home folder of its own, in which every switch says the opposite of ours."""
    names = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    return environment | {"HOME": str(home)} | dict.fromkeys(SWITCHES, "0")


def _trace(trace: Path, *command: str) -> list[str]:
    """Return the command under strace, which records every connection of it and its children. Without strace, the command."""
    if STRACE is None:
        return list(command)
    return [STRACE, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-e", "signal=none", "-o", str(trace), *command]


def _check_connections(trace: Path) -> None:
    """Assert that every connection was to this machine. Skip the rest of the test when there is no record of them."""
    if STRACE is None:
        pytest.skip("strace is not installed, so the connections were not recorded")
    assert _list_foreign_addresses(trace) == []


def _list_foreign_addresses(trace: Path) -> list[str]:
    """Return the internet addresses in a trace that are not on this machine."""
    addresses = re.findall(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', trace.read_text(errors="replace"))
    return [address for pair in addresses for address in pair if address and not re.match(r"127\.|::1$", address)]


@pytest.fixture(scope="module")
def expander(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("telemetry")
    return write_expander(folder / "topics.expander", write_tiny_encoder(folder / "encoder"))


def test_serve_with_an_encoder_writes_no_file_at_home_and_connects_to_nothing_else(
    tmp_path: Path, expander: Path
) -> None:
    listen, admin = (f"127.0.0.1:{port}" for port in find_free_ports(2))
    (tmp_path / "home").mkdir()
    (tmp_path / "querylift.toml").write_text(
        f'engine = "http://127.0.0.1:9"\nlisten = "{listen}"\nadmin = "{admin}"\ngenerator = "expander:{expander}"\n'
        "budget_ms = 60000\n[index.topics]\n",
        encoding="utf-8",
    )
    command = _trace(tmp_path / "trace", sys.executable, "-P", "-m", "querylift", "serve")
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=_make_environment(tmp_path / "home"),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            assert _explain_when_up(admin)["outcome"] == "expanded"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
    assert _list_files(tmp_path / "home") == []
    _check_connections(tmp_path / "trace")


def _explain_when_up(admin: str) -> dict[str, object]:
    url = f"http://{admin}/_querylift/explain?index=topics"
    request = urllib.request.Request(url, BODY, {"Content-Type": "application/json"})
    for _ in range(600):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                explanation: dict[str, object] = json.load(answer)
                return explanation
        except OSError:
            time.sleep(0.05)
    raise AssertionError("serve did not come up")


def _list_files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_the_training_libraries_are_offline_and_silent_whatever_the_environment_says(tmp_path: Path) -> None:
    """TRL reports each training through huggingface_hub, which reads its switches when it is imported."""
    pytest.importorskip("trl")
    code = (
        "from querylift.trainer.student.libraries import silence_libraries; silence_libraries()\n"
        "from huggingface_hub import constants\n"
        "from huggingface_hub.utils import send_telemetry\n"
        "send_telemetry('trl/test', library_name='trl', library_version='1')\n"
        "import time; time.sleep(0.3)\n"
        "print(constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    command = _trace(tmp_path / "trace", sys.executable, "-W", "ignore", "-P", "-c", code)
    (tmp_path / "home").mkdir()
    result = subprocess.run(
        command, cwd=tmp_path, env=_make_environment(tmp_path / "home"), capture_output=True, text=True, timeout=250, check=True
    )  # fmt: skip
    assert result.stdout == "True True\n"
    _check_connections(tmp_path / "trace")


def test_no_module_imports_onnxruntime_without_switching_its_reports_off() -> None:
    import_line = re.compile(r"^\s+(?:import|from) onnxruntime\b", re.MULTILINE)
    packages = ("plugin", "index_tools", "trainer", "quantize", "bench")
    modules = [path for package in packages for path in (ROOT / package).rglob("*") if path.suffix in ("", ".py")]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in modules if path.is_file()}
    importers = {name for name, text in texts.items() if import_line.search(text)}
    assert len(importers) >= 3
    assert {name for name in importers if "switch_off_telemetry()" not in texts[name]} == set()


def test_the_documentation_names_every_switch() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert [name for name in SWITCHES if f"`{name}`" not in text] == []
