"""The training commands switch telemetry and progress bars off before they import the libraries that read the switches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

# Prints the switches as they are when tqdm is imported, which transformers does.
_SCRIPT = """
import os, sys

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == "tqdm":
            print(os.environ.get("HF_HUB_DISABLE_TELEMETRY"), os.environ.get("TQDM_DISABLE"))
            sys.meta_path.remove(self)

sys.meta_path.insert(0, Watcher())
from querylift.plugin.commands.main import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["sft", "gone.jsonl", "--out", "out", "--held-out", "none"],
        ["dpo", "gone.jsonl", "--model", "m", "--out", "out", "--held-out", "none"],
        ["merge", "gone", "--out", "out"],
    ],
    ids=["sft", "dpo", "merge"],
)
def test_a_command_is_quiet_before_it_imports_tqdm(tmp_path: Path, arguments: list[str]) -> None:
    switches = ("HF_HUB_DISABLE_TELEMETRY", "TQDM_DISABLE")
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    process = subprocess.run(
        [sys.executable, "-c", _SCRIPT, "train", *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2, process.stderr
    assert process.stdout.splitlines()[:1] == ["1 1"]
