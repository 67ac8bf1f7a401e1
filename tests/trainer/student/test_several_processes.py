"""Several processes train one student, as on a machine with several GPUs: each on its share of a batch, and one writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install 'querylift[train]'")

from querylift.trainer.student import loss_curves, models
from tests.helpers.lessons import pairs_file, rows_file
from tests.helpers.paths import ROOT

CONFIG = """
[model]
base = "made:llama"
compute = "float32"
[lora]
rank = 4
[sft]
epochs = 12
learning_rate = 1e-2
batch_size = 2
logging_steps = 4
validation_steps = 8
save_steps = 8
validation_share = 0.2
[dpo]
epochs = 4
learning_rate = 1e-2
batch_size = 2
logging_steps = 2
validation_steps = 4
save_steps = 4
validation_share = 0.2
"""


def _train(folder: Path, *arguments: object) -> str:
    """What two processes print."""
    root = str(ROOT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "querylift.plugin.commands.main",
    ]
    options = ["train", *map(str, arguments), "--config", str(folder / "c.toml"), "--held-out", "none"]
    environment = {**os.environ, "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_one_student_and_one_of_them_writes_and_speaks(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    student = tmp_path / "sft"
    said = _train(tmp_path, "sft", rows_file(tmp_path / "rows.jsonl"), "--out", student)
    # Eight rows, two by two in two processes: two steps an epoch.
    assert said.count("passages to learn") == said.count(f"{student}: 24 steps") == 1
    losses = [row["loss"] for row in loss_curves.read(student / "curves.jsonl") if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0] / 2
    assert models.is_adapter(student) and not (student / "checkpoints").exists()

    preferring = tmp_path / "dpo"
    told = _train(tmp_path, "dpo", pairs_file(tmp_path / "p.jsonl"), "--model", student, "--out", preferring)
    assert told.count("pairs to learn") == told.count(f"{preferring}: 8 steps") == 1
    right = [row["rewards/accuracies"] for row in loss_curves.read(preferring / "curves.jsonl") if "loss" in row]
    assert right[-1] > 0.9
