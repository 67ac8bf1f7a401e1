"""Several processes train one student, as on a machine with several GPUs. Only the first writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.trainer.student import loss_curves, model_bases
from tests.helpers.lessons import write_pair_file, write_passage_file
from tests.helpers.paths import ROOT
from tests.helpers.weather_search import INDEX, index_weather, write_weather_corpus

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
logging_steps = 1
validation_steps = 4
save_steps = 4
validation_share = 0.2
"""


def _train_in_two_processes(folder: Path, *arguments: object) -> str:
    """Return the output of both processes."""
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
    process = subprocess.run(
        [*command, *options], env=environment, cwd=root, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_two_processes_train_one_student_and_only_one_writes_and_prints(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    student = tmp_path / "sft"
    output = _train_in_two_processes(tmp_path, "sft", write_passage_file(tmp_path / "rows.jsonl"), "--out", student)
    # Eight rows, two by two in two processes: two steps an epoch.
    assert output.count("training passages") == output.count(f"{student}: 24 steps") == 1
    losses = [row["loss"] for row in loss_curves.read_curves(student / "curves.jsonl") if "loss" in row]
    assert len(losses) == 8 and losses[-1] < losses[0] / 2
    assert model_bases.is_adapter(student) and not (student / "checkpoints").exists()

    dpo_folder = tmp_path / "dpo"
    output = _train_in_two_processes(
        tmp_path, "dpo", write_pair_file(tmp_path / "p.jsonl"), "--model", student, "--out", dpo_folder
    )
    assert output.count("training pairs") == output.count(f"{dpo_folder}: 8 steps") == 1
    rows = [row for row in loss_curves.read_curves(dpo_folder / "curves.jsonl") if "loss" in row]
    # Before the first update the student is the reference, so that each row must have found its own reference.
    assert rows[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-5) == rows[0]["rewards/rejected"]
    assert rows[-1]["rewards/accuracies"] > 0.9


@pytest.mark.engine
def test_only_the_first_of_two_processes_evaluates_and_both_stop(tmp_path: Path, opensearch: str) -> None:
    evaluation = '[evaluation]\nkeep = "best"\nevery_steps = 4\npatience = 2\n'
    (tmp_path / "c.toml").write_text(CONFIG.replace("1e-2", "1e-9") + evaluation, encoding="utf-8")
    corpus, student = write_weather_corpus(tmp_path / "weather"), tmp_path / "sft"
    rows = write_passage_file(tmp_path / "rows.jsonl")
    place = ["--evaluate-on", f"{corpus}:watch", "--index", INDEX, "--engine", opensearch]
    with index_weather(corpus, opensearch):
        output = _train_in_two_processes(tmp_path, "sft", rows, "--out", student, *place)
    # At such a rate nothing changes, so step 0 stays the best.
    assert output.count("no improvement in 2 evaluations since step 0; training stops") == 1
    assert output.count("nDCG@10") == 4  # steps 0, 4 and 8, and the result
    results = json.loads((student / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert (results["steps"], results["evaluation"]["step"], results["evaluation"]["evaluations"]) == (8, 0, 3)
    assert model_bases.is_adapter(student) and not (student / "checkpoints").exists()
