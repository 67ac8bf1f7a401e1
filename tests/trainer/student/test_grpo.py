"""A student learns from the engine's rewards while it writes, on a corpus on which one word helps."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.expansion import MAX_TOKENS, build_prompt
from querylift.trainer.candidates import Candidate
from querylift.trainer.commands.grpo import grpo as grpo_command
from querylift.trainer.rewards.engine_reward import EngineReward
from querylift.trainer.rewards.scoring import score_candidates
from querylift.trainer.student import grpo, libraries, loss_curves, models, sampling, shared_training
from querylift.trainer.student.group_sampling import CANDIDATE_FIELD
from querylift.trainer.training_config import LoraOptions, TrainingConfig, parse_training_config
from tests.helpers.grpo import (
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
from tests.helpers.relay import Relay
from tests.helpers.rewards import NO_ENGINE_URL, open_relay

pytestmark = pytest.mark.engine

DEFAULT_CONFIG = make_grpo_config()
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


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


def write_arguments(
    weather: Weather, folder: Path, config: TrainingConfig = DEFAULT_CONFIG, *, options: Mapping[str, str] = NO_OPTIONS
) -> list[str]:
    """Return the arguments of the command. `options` replaces some."""
    config_file = write_config_file(folder / "grpo.toml", config)
    values = {
        "engine": weather.url,
        "model": str(weather.student),
        "index": INDEX,
        "weight": "0.4",
        "training": str(config_file),
        "held-out": "none",
        "out": str(folder / "grpo"),
    } | {name: value for name, value in options.items() if name != "queries"}
    queries = options.get("queries", f"{weather.corpus}:train")
    return [queries, *(part for name, value in values.items() for part in (f"--{name}", value))]


def run_command(arguments: list[str]) -> str:
    return CliRunner().invoke(grpo_command, arguments, catch_exceptions=False).output


def make_trainer(weather: Weather, reward: EngineReward, folder: Path, config: TrainingConfig) -> Any:
    """Return a trainer on all topics, for a student on its own."""
    model, tokenizer = models.load_model_and_tokenizer(weather.student)
    queries = grpo.make_training_queries({topic: f"what is {topic}" for topic in TOPICS})
    return grpo.make_trainer(model, tokenizer, config, queries, [], reward=reward, out=folder, seed=0)


def train_quietly(trainer: Any) -> None:
    with libraries.hide_harmless_warnings():
        trainer.train()


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
    assert "7 training queries, 3 validation queries, 8 samples for each, on " in output
    assert "step     1/12  reward +0." in output and "validation reward +0." in output
    assert max(len(line) for line in output.splitlines() if line.startswith("step")) <= 80
    results = json.loads((tmp_path / "grpo" / "manifest.json").read_text(encoding="utf-8"))["results"]
    rewarding = results["rewarding"]
    assert rewarding["samples"] == 12 * 7 * 8 + 2 * 3  # twelve updates of seven queries, and two validations
    assert rewarding["searches"] > 10 and rewarding["rejected"] == 0 and len(rewarding["index_fingerprint"]) == 64
    assert f"{rewarding['searches']:,} searches made, {rewarding['cached_searches']:,} from the cache" in output
    assert (tmp_path / "grpo" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "grpo" / "checkpoints").exists()
    assert run_command(write_arguments(weather, tmp_path)).startswith(f"{tmp_path / 'grpo'} is done\n")


class RecordingReward(EngineReward):
    """Keeps what the trainer asked about, and what it was told."""

    batches: list[tuple[list[Candidate], list[float]]]

    @classmethod
    def record(cls, reward: EngineReward) -> RecordingReward:
        recording = cls(**{field.name: getattr(reward, field.name) for field in fields(reward)})
        recording.batches = []
        return recording

    def compute_rewards(self, candidates: Sequence[Candidate]) -> list[float]:
        rewards = EngineReward.compute_rewards(self, candidates)
        self.batches.append((list(candidates), rewards))
        return rewards


def test_the_trainer_sees_the_rewards_of_the_texts_that_sample_would_write(weather: Weather, tmp_path: Path) -> None:
    config = make_grpo_config(epochs=1, batch_size=40)
    with open_weather_reward(weather.corpus, weather.url) as plain_reward:
        reward = RecordingReward.record(plain_reward)
        trainer = make_trainer(weather, reward, tmp_path, config)
        train_quietly(trainer)
        ((candidates, rewards),) = reward.batches
        with open_weather_reward(weather.corpus, weather.url) as other_reward:
            scored = score_candidates(
                candidates,
                engine=other_reward.engine,
                settings=other_reward.settings,
                labels=other_reward.labels,
                options=OPTIONS,
            ).scored
    assert [item.reward.value for item in scored] == rewards and len(rewards) == 10 * 8
    logged = trainer.state.log_history[0]
    assert logged["reward"] == pytest.approx(sum(rewards) / 80, abs=1e-6)
    groups = [rewards[start : start + 8] for start in range(0, 80, 8)]
    assert logged["frac_reward_zero_std"] == pytest.approx(sum(len(set(group)) == 1 for group in groups) / 10)
    assert [candidate.query_id for candidate in candidates[::8]] != sorted(TOPICS)  # the queries were shuffled
    assert {candidate.query_id for candidate in candidates} == set(TOPICS)
    model, tokenizer = models.load_model_and_tokenizer(weather.student, attention="eager")
    requests = [
        sampling.SampleRequest(c.query_id, c.query, number, tokenizer(build_prompt(c.query))["input_ids"])
        for number, c in enumerate(candidates)
    ]
    samples = sampling.sample_requests(
        model,
        tokenizer,
        requests,
        parse_training_config({}).sample,
        max_tokens=MAX_TOKENS,
        seed=0,
        stop_ids=sampling.find_stop_ids(tokenizer),
    )
    texts = {sample.number: (sample.text, sample.ended) for sample in samples}
    assert [texts[number] for number in range(80)] == [(c.text, c.ended) for c in candidates]


def test_the_tokens_that_are_learned_are_those_that_were_written(weather: Weather, tmp_path: Path) -> None:
    with open_weather_reward(weather.corpus, weather.url) as reward:
        trainer = make_trainer(weather, reward, tmp_path, make_grpo_config(batch_size=40))
        trainer.model.train()
        prompt = build_prompt("what is rain")
        columns = trainer.rollout_func([prompt] * 8, trainer)
        tokenizer = trainer.processing_class
        stop_ids = sampling.find_stop_ids(tokenizer).tolist()
        for ids, candidate in zip(columns["completion_ids"], columns[CANDIDATE_FIELD], strict=True):
            assert 0 < len(ids) <= MAX_TOKENS and candidate.ended == (ids[-1] in stop_ids)
            assert tokenizer.decode(ids[:-1] if candidate.ended else ids) == candidate.text
        assert columns["prompt_ids"] == [tokenizer(prompt)["input_ids"]] * 8
        assert len({candidate.text for candidate in columns[CANDIDATE_FIELD]}) > 1
        trainer.model.eval()
        served = trainer.rollout_func([prompt] * 2, trainer)
        assert served["completion_ids"][0] == served["completion_ids"][1]  # the likeliest tokens


def test_an_update_makes_better_texts_of_a_query_likelier_and_worse_ones_less_likely(
    weather: Weather, tmp_path: Path
) -> None:
    options = {"warmup_share": 0.0, "scheduler": "constant_with_warmup", "learning_rate": 1e-3}
    config = make_grpo_config(epochs=1, batch_size=40, **options)
    with open_weather_reward(weather.corpus, weather.url) as plain_reward:
        reward = RecordingReward.record(plain_reward)
        trainer = make_trainer(weather, reward, tmp_path, config)
        train_quietly(trainer)
    before, tokenizer = models.load_model_and_tokenizer(weather.student)
    after = trainer.model.merge_and_unload().eval()
    ((candidates, rewards),) = reward.batches
    margins = []
    for start in range(0, 80, 8):
        group = sorted(zip(rewards[start : start + 8], range(start, start + 8), strict=True))
        if group[0][0] < group[-1][0]:
            worst, best = candidates[group[0][1]], candidates[group[-1][1]]
            prompt_ids = tokenizer(build_prompt(best.query))["input_ids"]
            gains = [
                compute_log_prob(after, prompt_ids, ids) - compute_log_prob(before, prompt_ids, ids)
                for ids in (tokenizer(text.text)["input_ids"] for text in (best, worst))
            ]
            margins.append(gains[0] - gains[1])
    assert len(margins) >= 5 and sum(margin > 0 for margin in margins) / len(margins) > 0.8


def test_a_run_that_the_engine_left_goes_on_from_its_checkpoint_as_if_nothing_had_happened(
    weather: Weather, tmp_path: Path
) -> None:
    """Two updates learn from each batch, and the student is held to the one before training."""
    config = make_grpo_config(epochs=4, iterations=2, beta=0.05, save_steps=2)
    unbroken_folder, folder = tmp_path / "unbroken", tmp_path / "broken"
    for path in (unbroken_folder, folder):
        path.mkdir()
    run_command(write_arguments(weather, unbroken_folder, config))
    out = folder / "grpo"
    with open_relay(weather.url) as relay:
        watcher = threading.Thread(target=cut_after_checkpoint, args=(relay, out))
        watcher.start()
        with pytest.raises(EngineError, match=r"gave up after 0\.1 s; run the same command again, finished searches"):
            run_command(write_arguments(weather, folder, config, options={"engine": relay.url, "patience": "0.1"}))
        watcher.join()
    checkpoint = shared_training.find_last_checkpoint(out)
    assert checkpoint is not None
    state_file = shared_training.checkpoint_folder(out) / "index-state"
    state = state_file.read_text(encoding="utf-8")
    state_file.write_text("the state before something was written", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"has changed since .* was begun, .*; remove the folder to start over"):
        run_command(write_arguments(weather, folder, config))
    state_file.write_text(state, encoding="utf-8")
    output = run_command(write_arguments(weather, folder, config))
    assert f"from {checkpoint}" in output and f"{out}: 8 steps, resumed at " in output
    assert not shared_training.checkpoint_folder(out).exists()
    results, expected = (
        json.loads((path / "grpo" / "manifest.json").read_text(encoding="utf-8"))["results"]
        for path in (folder, unbroken_folder)
    )
    assert results["rewarding"]["samples"] == expected["rewarding"]["samples"] == 4 * 7 * 8 + 2 * 3
    assert results["rewarding"]["without_end"] == expected["rewarding"]["without_end"]
    assert results["validation"]["reward"] == pytest.approx(expected["validation"]["reward"], abs=1e-3)
    weights, expected_weights = (
        load_file(path / "grpo" / "adapter_model.safetensors") for path in (folder, unbroken_folder)
    )
    for name, values in weights.items():
        torch.testing.assert_close(values, expected_weights[name], atol=1e-3, rtol=1e-3)


def cut_after_checkpoint(relay: Relay, out: Path) -> None:
    """Cut the connection to the engine once there is a checkpoint."""
    while shared_training.find_last_checkpoint(out) is None:
        time.sleep(0.01)
    relay.cut_after_bytes = 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "other"}, r"no query of .*:other has a relevant document in corpus/other; name another split, or"),
        ({"index": "absent"}, r"has no index 'absent'; build it with `querylift index`, or name another with --index"),
        (
            {"held-out": "{corpus}:train"},
            r"10 training queries are in an evaluation split: 'clouds' is 'clouds' of corp",
        ),
        (
            {"held-out": "{corpus}:shared", "held-out-by": "document"},
            r"document 'rain-relevant' of 'rain' is relevant to 'drizzle' of corpus:shared \(the same id\); split by",
        ),
        ({"engine": NO_ENGINE_URL}, r"no search engine answers at http://127\.0\.0\.1:9; start one with"),
        ({"limit": "5"}, r"an update needs 7 queries, and there are \d to train on; name a larger split, or set"),
        ({"mix": "ndcg=much"}, r"--mix is 'ndcg=much'; write MEASURE=SHARE"),
    ],
    ids=["no labels", "no index", "held out", "held out by document", "no engine", "too few queries", "no share"],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(
    weather: Weather, tmp_path: Path, options: dict[str, str], sentence: str
) -> None:
    split = options.get("split", "train")
    values = {name: value.format(corpus=weather.corpus) for name, value in options.items() if name != "split"}
    with pytest.raises(SettingsError, match=sentence) as raised:
        run_command(write_arguments(weather, tmp_path, options=values | {"queries": f"{weather.corpus}:{split}"}))
    assert "\n" not in str(raised.value) and raised.value.exit_code == 2


def test_a_reference_model_needs_an_adapter(weather: Weather, tmp_path: Path) -> None:
    config = make_grpo_config(beta=0.1).model_copy(update={"lora": LoraOptions(rank=0)})
    with (
        open_weather_reward(weather.corpus, weather.url) as reward,
        pytest.raises(SettingsError, match=r"grpo\.beta is 0\.1 with lora\.rank 0, which leaves no reference model"),
    ):
        make_trainer(weather, reward, tmp_path, config)


def test_every_weight_can_be_trained(weather: Weather, tmp_path: Path) -> None:
    config = make_grpo_config(epochs=1, batch_size=40).model_copy(update={"lora": LoraOptions(rank=0)})
    with open_weather_reward(weather.corpus, weather.url) as reward:
        trainer = make_trainer(weather, reward, tmp_path, config)
        train_quietly(trainer)
        columns = trainer.rollout_func([build_prompt("what is rain")], trainer)
    assert trainer.state.global_step == 1 and reward.counts["samples"] == 80
    assert columns[CANDIDATE_FIELD][0].params == {"sample": 80}  # the numbers go on
