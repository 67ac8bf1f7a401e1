"""A training run that was killed continues from its last checkpoint, and ends as if it had never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch
from safetensors.torch import load_file
from transformers import TrainerState

from querylift.trainer.student import loss_curves, model_bases, sft, shared_training
from tests.helpers.lessons import write_passage_file
from tests.helpers.paths import ROOT
from tests.helpers.training import make_tiny_config, print_nothing

MANY_STEPS: dict[str, object] = {
    "epochs": 60,
    "batch_size": 4,
    "save_steps": 10,
    "logging_steps": 7,
    "validation_steps": 30,
}
_TRAINING_PROGRAM = """
import json, sys
from pathlib import Path
from querylift.trainer.student import sft
from querylift.trainer.training_config import parse_training_config
if __name__ == "__main__":
    out, passages, config = sys.argv[1:]
    sft.train_on_passages([Path(passages)], parse_training_config(json.loads(config)), out=Path(out), say=print)
"""


def test_a_killed_run_ends_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Up to rounding: the validation loss, the mean loss, every point of the curves and the weights, to 1e-3."""
    passages, config = write_passage_file(tmp_path / "rows.jsonl"), make_tiny_config(sft=MANY_STEPS)
    out, unbroken_out = tmp_path / "out", tmp_path / "unbroken"
    unbroken = sft.train_on_passages([passages], config, out=unbroken_out, say=print_nothing)
    _kill_after_a_checkpoint([str(out), str(passages), config.model_dump_json()])
    checkpoint = shared_training.find_last_checkpoint(out)
    assert checkpoint is not None
    # A kill leaves such a folder while a checkpoint is written.
    incomplete_checkpoint = shared_training.checkpoint_folder(out) / "checkpoint-9999"
    incomplete_checkpoint.mkdir()
    lines: list[str] = []
    result = sft.train_on_passages([passages], config, out=out, say=lines.append)
    assert result.resumed_at == int(checkpoint.name.removeprefix("checkpoint-")) >= 10
    assert f"resumed at step {result.resumed_at}, from {checkpoint}" in lines
    assert result.steps == 120  # 7 rows by fours, 60 times: as many as without the kill
    assert result.loss == pytest.approx(unbroken.loss, abs=1e-3)
    assert result.validation["loss"] == pytest.approx(unbroken.validation["loss"], abs=1e-3)
    (steps, losses), (unbroken_steps, unbroken_losses) = _read_losses(out), _read_losses(unbroken_out)
    assert steps == unbroken_steps == [step for step in range(1, 121) if step % 7 == 0 or step % 10 == 0]
    assert losses == pytest.approx(unbroken_losses, abs=1e-3)
    _assert_same_weights(out, unbroken_out)
    assert not shared_training.checkpoint_folder(out).exists() and model_bases.is_adapter(out)


def _read_losses(folder: Path) -> tuple[list[int], list[float]]:
    rows = [row for row in loss_curves.read_curves(folder / "curves.jsonl") if "loss" in row]
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def _assert_same_weights(folder: Path, expected_folder: Path) -> None:
    weights, expected = (load_file(path / "adapter_model.safetensors") for path in (folder, expected_folder))
    assert weights.keys() == expected.keys()
    for name, values in weights.items():
        torch.testing.assert_close(values, expected[name], atol=1e-3, rtol=1e-3)


def _kill_after_a_checkpoint(arguments: list[str]) -> None:
    root = str(ROOT)
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAINING_PROGRAM, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while shared_training.find_last_checkpoint(Path(arguments[0])) is None:
            assert process.poll() is None and time.monotonic() < deadline, "the run ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_the_mean_loss_weighs_windows_by_steps_and_leaves_out_a_cut_window() -> None:
    history = [{"step": 4, "loss": 8.0}, {"step": 4, "eval_loss": 1.0}, {"step": 8, "loss": 4.0}]
    longer_history = [*history, {"step": 10, "loss": 1.0}]
    assert loss_curves.compute_mean_loss(longer_history, resumed_at=0) == (4 * 8 + 4 * 4 + 2 * 1) / 10
    assert loss_curves.compute_mean_loss(history, resumed_at=4) == 6.0
    assert loss_curves.compute_mean_loss(history, resumed_at=6) == 8.0
    assert loss_curves.compute_mean_loss([{"step": 9, "train_loss": 1.0}], resumed_at=0) is None


def test_a_point_whose_window_was_cut_is_left_out_of_the_curves(tmp_path: Path) -> None:
    """A checkpoint of an earlier release may lie within a window. Checkpoints of this release end one."""
    history: list[dict[str, float]] = [{"step": 5, "loss": 9.0}]
    state = TrainerState(global_step=7, max_steps=20, log_history=history)
    recorder = loss_curves.CurveRecorder(tmp_path, say=print_nothing)
    recorder.on_train_begin(None, state, None)
    for step, loss in ((10, 1.0), (15, 2.0)):
        state.global_step = step
        recorder.on_log(None, state, None, {"loss": loss})
    assert loss_curves.read_curves(tmp_path / "curves.jsonl") == [{"step": 15, "loss": 2.0}]
