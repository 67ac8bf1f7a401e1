"""The values of a training go to the programs of `report_to`, and to none by default."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.plugin.errors import SettingsError
from querylift.trainer.student import sft
from querylift.trainer.student.reporters import check_reporters
from querylift.trainer.training_config import TrainingConfig
from tests.helpers.lessons import write_passage_file
from tests.helpers.training import make_tiny_config, print_nothing

_MADE_TRACKIO = """
import contextvars, json, os
class _Variables:
    current_space_id = contextvars.ContextVar("space", default=None)
context_vars, config, __version__ = _Variables(), {}, "0.30.0"
class _Config(dict):
    def update(self, values, allow_val_change): dict.update(self, values)
config = _Config()
def _write(kind, values):
    with open(os.environ["MADE_TRACKIO_FILE"], "a") as stream:
        stream.write(json.dumps([kind, values], default=str) + "\\n")
def init(**options): _write("init", options)
def log(values, **options): _write("log", values)
def finish(): _write("finish", {})
"""
"""A package with the calls that transformers makes, which writes them to a file."""


def make_config(*reporters: str) -> TrainingConfig:
    return TrainingConfig.model_validate(make_tiny_config().model_dump() | {"report_to": reporters})


@pytest.fixture
def trackio_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if importlib.util.find_spec("trackio") is not None:
        pytest.skip("the real trackio is installed")
    (tmp_path / "trackio.py").write_text(_MADE_TRACKIO, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MADE_TRACKIO_FILE", str(tmp_path / "calls.jsonl"))
    yield tmp_path / "calls.jsonl"
    sys.modules.pop("trackio", None)


def train(folder: Path, config: TrainingConfig) -> None:
    sft.train_on_passages([write_passage_file(folder / "rows.jsonl")], config, out=folder / "sft", say=print_nothing)


def test_every_value_goes_to_the_program_that_is_named(trackio_file: Path, tmp_path: Path) -> None:
    train(tmp_path, make_config("trackio"))
    calls = [json.loads(line) for line in trackio_file.read_text(encoding="utf-8").splitlines()]
    assert calls[0][0] == "init" and calls[0][1]["space_id"] is None
    logged = set().union(*(values for kind, values in calls if kind == "log"))
    assert {"train/loss", "eval/loss"} <= logged


def test_no_value_goes_anywhere_by_default(trackio_file: Path, tmp_path: Path) -> None:
    train(tmp_path, make_config())
    assert not trackio_file.exists()


def test_a_program_that_is_not_installed_is_named_with_its_command(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is not None:
        pytest.skip("tensorboard is installed")
    sentence = "report_to names tensorboard, which is not installed; run `pip install tensorboard`, or take it out of report_to"
    with pytest.raises(SettingsError, match=sentence):
        train(tmp_path, make_config("tensorboard"))
    check_reporters(())
