"""A student learns from the engine's rewards while it writes, on a corpus on which one word helps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch
from click.testing import CliRunner

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import EngineError, QueryliftError, SettingsError
from querylift.plugin.expansion import MAX_TOKENS, build_prompt
from querylift.plugin.settings import parse_settings
from querylift.trainer.candidates import Candidate
from querylift.trainer.commands.grpo import grpo as grpo_command
from querylift.trainer.rewards.engine_reward import EngineReward
from querylift.trainer.rewards.scoring import score_candidates
from querylift.trainer.student import grpo, loss_curves, models, sampling, shared_training
from querylift.trainer.student.group_sampling import CANDIDATE_FIELD, GroupSampler
from querylift.trainer.training_config import TrainingConfig, parse_training_config
from tests.helpers.grpo import (
    BAD,
    GOOD,
    INDEX,
    OPTIONS,
    build_weather_index,
    make_grpo_config,
    open_weather_reward,
    teach_weather_student,
    write_config_file,
    write_weather_corpus,
)
from tests.helpers.lessons import TOPICS
from tests.helpers.paths import ROOT
from tests.helpers.rewards import NO_ENGINE_URL, open_relay

pytestmark = pytest.mark.engine


class Weather(NamedTuple):
    """A corpus and its index, and a student that writes good and bad passages for it."""

    corpus: Path
    url: str
    student: Path


@pytest.fixture(scope="module")
def weather(opensearch: str, tmp_path_factory: pytest.TempPathFactory) -> Weather:
    folder = tmp_path_factory.mktemp("weather")
    corpus = write_weather_corpus(folder / "corpus")
    build_weather_index(corpus, opensearch)
    return Weather(corpus, opensearch, teach_weather_student(folder))


def write_arguments(weather: Weather, folder: Path, config: TrainingConfig | None = None, **options: str) -> list[str]:
    """Return the arguments of the command. `options` replaces some."""
    config_file = write_config_file(folder / "grpo.toml", config or make_grpo_config())
    values = {
        "engine": weather.url,
        "model": str(weather.student),
        "index": INDEX,
        "weight": "0.4",
        "training": str(config_file),
        "held-out": "none",
        "out": str(folder / "grpo"),
    } | {name.replace("_", "-"): value for name, value in options.items() if name != "queries"}
    queries = options.get("queries", f"{weather.corpus}:train")
    return [queries, *(part for name, value in values.items() for part in (f"--{name}", value))]


def run_command(arguments: list[str]) -> str:
    return CliRunner().invoke(grpo_command, arguments, catch_exceptions=False).output


def make_trainer(weather: Weather, reward: EngineReward, folder: Path, config: TrainingConfig) -> Any:
    """Return a trainer on all topics, for a student on its own."""
    model, tokenizer = models.load_model_and_tokenizer(weather.student)
    queries = grpo.make_training_queries({topic: f"what is {topic}" for topic in TOPICS})
    return grpo.make_trainer(model, tokenizer, config, queries, [], reward=reward, out=folder, seed=0)


def compute_log_prob(model: Any, prompt_ids: list[int], ids: list[int]) -> float:
    """Return the log-probability of the tokens `ids` after the prompt."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())


def test_the_student_learns_to_write_the_word_that_helps(weather: Weather, tmp_path: Path) -> None:
    output = run_command(write_arguments(weather, tmp_path))
    rows = loss_curves.read_curves(tmp_path / "grpo" / "curves.jsonl")
    rewards = [row["reward"] for row in rows if "reward" in row]
    served = [row["eval_reward"] for row in rows if "eval_reward" in row]
    assert len(rewards) == 12 and sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert served[-1] == pytest.approx(1 - 0.43, abs=0.01)  # the relevant document rises from rank 4 to rank 1
    assert "8 training queries, 2 validation queries, 8 samples for each, on " in output
    assert "step     1/12  reward +0." in output and "validation reward +0." in output
    assert max(len(line) for line in output.splitlines() if line.startswith("step")) <= 80
    results = json.loads((tmp_path / "grpo" / "manifest.json").read_text(encoding="utf-8"))["results"]
    rewarding = results["rewarding"]
    assert rewarding["samples"] == 12 * 8 * 8 + 2 * 2  # twelve updates of eight queries, and two validations
    assert rewarding["searches"] > 10 and rewarding["rejected"] == 0 and len(rewarding["index_fingerprint"]) == 64
    assert f"{rewarding['searches']:,} searches made, {rewarding['cached_searches']:,} from the cache" in output
    assert (tmp_path / "grpo" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "grpo" / "checkpoints").exists()
    assert run_command(write_arguments(weather, tmp_path)).startswith(f"{tmp_path / 'grpo'} is done\n")
