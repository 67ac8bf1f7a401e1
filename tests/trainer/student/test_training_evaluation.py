"""A student is evaluated while it trains: nDCG@10 is logged, the best step is kept, and training may stop early."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch
from safetensors.torch import load_file

from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.settings import Settings, parse_settings
from querylift.trainer.rewards.labels import Labels
from querylift.trainer.student import dpo, loss_curves, models, sft, shared_training
from querylift.trainer.student.search_evaluation import SearchEvaluator, SearchScores
from querylift.trainer.student.training_result import TrainingResult, format_result
from querylift.trainer.training_config import TrainingConfig, parse_training_config
from tests.helpers.lessons import write_pair_file, write_passage_file
from tests.helpers.rewards import NO_ENGINE_URL
from tests.helpers.training import print_nothing
from tests.helpers.weather_search import index_weather, make_weather_evaluator, write_weather_corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedEvaluator(SearchEvaluator):
    """Gives the scores of a list, one at each evaluation, and notes the model's weights. An error in the list is raised."""

    name: str = "made:split"
    queries: dict[str, str] = field(default_factory=dict)
    labels: Labels = field(default_factory=lambda: Labels({}, "made"))
    settings: Settings = field(default_factory=lambda: parse_settings({}))
    index: str = "made"
    weight: float = 0.2
    batch_size: int = 8
    scores: list[float | BaseException]
    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def evaluate(self, model: Any, tokenizer: Any) -> SearchScores:
        score = self.scores.pop(0)
        if isinstance(score, BaseException):
            raise score
        self.weights.append({name: w.detach().clone() for name, w in model.named_parameters() if w.requires_grad})
        return SearchScores(score, 0.25)


def make_config(rank: int = 4, **evaluation: object) -> TrainingConfig:
    """Return a configuration of 10 steps, with an evaluation and a checkpoint after every second one."""
    loop = {
        "epochs": 5,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "validation_share": 0.2,
        "save_steps": 2,
    }
    return parse_training_config(
        {
            "model": {"base": "made:llama", "compute": "float32"},
            "lora": {"rank": rank},
            "sft": loop,
            "dpo": loop,
            "evaluation": {"every_steps": 2, **evaluation},
        }
    )


def train(
    folder: Path, config: TrainingConfig, evaluator: SearchEvaluator | None, say: Any = print_nothing
) -> TrainingResult:
    passages = write_passage_file(folder / "rows.jsonl")
    return sft.train_on_passages([passages], config, out=folder / "sft", evaluator=evaluator, say=say)


def assert_saved_weights(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """PEFT leaves out the name of the adapter when it saves."""
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved.keys() == {name.replace(".default", "") for name in expected}
    for name, weight in expected.items():
        torch.testing.assert_close(saved[name.replace(".default", "")], weight, atol=0, rtol=0)


@pytest.fixture
def weather(opensearch: str, tmp_path: Path) -> Iterator[SearchEvaluator]:
    folder = write_weather_corpus(tmp_path / "weather")
    with index_weather(folder, opensearch):
        yield make_weather_evaluator(folder, opensearch)


@pytest.mark.engine
def test_a_student_that_learns_to_help_its_queries_rises_on_the_engine(
    weather: SearchEvaluator, tmp_path: Path
) -> None:
    config = make_config(keep="best", every_steps=20).model_copy(
        update={"sft": make_config().sft.model_copy(update={"epochs": 40, "save_steps": 0})}
    )
    lines: list[str] = []
    result = train(tmp_path, config, weather, lines.append)
    rows = [row for row in loss_curves.read_curves(tmp_path / "sft/curves.jsonl") if "eval_ndcg_at_10" in row]
    assert [row["step"] for row in rows] == [0, 20, 40, 60, 80]
    assert {row["eval_plain_ndcg_at_10"] for row in rows} == {result.evaluation["plain_ndcg_at_10"]}
    assert result.evaluation["ndcg_at_10"] == max(row["eval_ndcg_at_10"] for row in rows) > rows[0]["eval_ndcg_at_10"]
    assert f"step     0/80  nDCG@10 {rows[0]['eval_ndcg_at_10']:.3f}  without expansion" in "\n".join(lines)
    model, tokenizer = models.load_model_and_tokenizer(tmp_path / "sft")
    assert weather.evaluate(model, tokenizer).ndcg_at_10 == result.evaluation["ndcg_at_10"]


@pytest.mark.parametrize("rank", [4, 0])
def test_the_best_step_becomes_the_result(tmp_path: Path, rank: int) -> None:
    evaluator = ScriptedEvaluator(scores=[0.1, 0.2, 0.6, 0.3, 0.6, 0.5])
    result = train(tmp_path, make_config(rank, keep="best"), evaluator)
    assert result.evaluation == {
        "step": 4,
        "best_step": 4,
        "ndcg_at_10": 0.6,
        "plain_ndcg_at_10": 0.25,
        "evaluations": 6,
        "skipped": 0,
    }
    assert result.steps == 10
    logged = [row for row in loss_curves.read_curves(tmp_path / "sft/curves.jsonl") if "eval_loss" in row]
    assert [row["step"] for row in logged] == [0, 2, 4, 6, 8, 10]
    assert result.validation["loss"] == next(row["eval_loss"] for row in logged if row["step"] == 4)
    assert not (tmp_path / "sft/checkpoints").exists()
    if rank:
        assert_saved_weights(tmp_path / "sft", evaluator.weights[2])
    else:
        model, _ = models.load_model_and_tokenizer(tmp_path / "sft")
        for name, weight in evaluator.weights[2].items():
            torch.testing.assert_close(model.get_parameter(name), weight, atol=0, rtol=0)
    assert format_result(result).splitlines()[-1] == "weights of step 4, nDCG@10 0.600, without expansion 0.250"


def test_the_last_weights_are_the_result_unless_the_best_are_asked_for(tmp_path: Path) -> None:
    evaluator = ScriptedEvaluator(scores=[0.1, 0.2, 0.6, 0.3, 0.4, 0.5])
    result = train(tmp_path, make_config(), evaluator)
    assert (result.evaluation["step"], result.evaluation["best_step"], result.evaluation["ndcg_at_10"]) == (10, 4, 0.5)
    assert_saved_weights(tmp_path / "sft", evaluator.weights[-1])


def test_training_stops_after_evaluations_without_improvement(tmp_path: Path) -> None:
    lines: list[str] = []
    result = train(tmp_path, make_config(patience=2), ScriptedEvaluator(scores=[0.1, 0.3, 0.2, 0.3]), lines.append)
    assert result.steps == 6 and result.evaluation["evaluations"] == 4
    assert "no improvement in 2 evaluations since step 2; training stops" in lines
    assert [row["step"] for row in loss_curves.read_curves(tmp_path / "sft/curves.jsonl") if "loss" in row] == [2, 4, 6]


def test_a_run_that_was_stopped_remembers_the_best_step_of_before(tmp_path: Path) -> None:
    config = make_config(keep="best")
    first = ScriptedEvaluator(scores=[0.1, 0.6, 0.3, KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, first)
    result = train(tmp_path, config, ScriptedEvaluator(scores=[0.5, 0.4, 0.2]))
    assert result.resumed_at == 4 and result.evaluation["evaluations"] == 6
    assert (result.evaluation["step"], result.evaluation["ndcg_at_10"]) == (2, 0.6)
    assert_saved_weights(tmp_path / "sft", first.weights[1])


def test_weights_that_no_checkpoint_knows_are_not_taken_for_the_best(tmp_path: Path) -> None:
    """Step 6 was the best of the first run, but it was killed before the checkpoint of step 8."""
    sft = make_config().sft.model_copy(update={"save_steps": 4, "epochs": 8})
    config = make_config(keep="best").model_copy(update={"sft": sft})
    first = ScriptedEvaluator(scores=[0.1, 0.6, 0.3, 0.9, KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, first)
    checkpoints = shared_training.checkpoint_folder(tmp_path / "sft")
    assert sorted(path.name for path in checkpoints.glob("best-*")) == ["best-2.safetensors", "best-6.safetensors"]
    result = train(tmp_path, config, ScriptedEvaluator(scores=[0.2] * 6))
    assert result.evaluation["step"] == 2
    assert_saved_weights(tmp_path / "sft", first.weights[1])


def test_an_engine_that_goes_away_costs_evaluations_and_not_the_training(tmp_path: Path) -> None:
    lines: list[str] = []
    evaluator = ScriptedEvaluator(scores=[0.1, EngineError("the engine is away"), 0.4, EngineError("again"), 0.2, 0.3])
    result = train(tmp_path, make_config(keep="best"), evaluator, lines.append)
    assert result.steps == 10
    assert (result.evaluation["evaluations"], result.evaluation["skipped"], result.evaluation["step"]) == (4, 2, 4)
    assert "step 2: not evaluated, and the training goes on: the engine is away" in lines
    assert format_result(result).endswith("; the engine did not answer 2 evaluations")


def test_an_engine_that_was_never_there_ends_the_training_before_its_first_step(tmp_path: Path) -> None:
    evaluator = make_weather_evaluator(write_weather_corpus(tmp_path / "weather"), NO_ENGINE_URL)
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:9"):
        train(tmp_path, make_config(), evaluator)
    assert not list((tmp_path / "sft").glob("checkpoints/checkpoint-*"))


def test_without_a_split_the_validation_loss_decides(tmp_path: Path) -> None:
    loop = make_config().dpo.model_copy(update={"learning_rate": 0.2, "validation_steps": 2, "save_steps": 0})
    config = make_config(keep="best").model_copy(update={"dpo": loop})
    sft.train_on_passages(
        [write_passage_file(tmp_path / "rows.jsonl")], make_config(), out=tmp_path / "sft", say=print_nothing
    )
    pairs, out = write_pair_file(tmp_path / "pairs.jsonl"), tmp_path / "dpo"
    result = dpo.train_on_pairs([pairs], config, model=tmp_path / "sft", out=out, say=print_nothing)
    losses = {
        row["step"]: row["eval_loss"] for row in loss_curves.read_curves(out / "curves.jsonl") if "eval_loss" in row
    }
    assert sorted(losses) == [0, 2, 4, 6, 8, 10]
    assert losses[result.evaluation["step"]] == min(losses.values()) == result.validation["loss"]


def test_weights_cannot_be_chosen_by_nothing(tmp_path: Path) -> None:
    loop = make_config().sft.model_copy(update={"validation_share": 0.0})
    config = make_config(keep="best").model_copy(update={"sft": loop})
    with pytest.raises(SettingsError, match="name a split with --evaluate-on, or set validation_share above 0"):
        train(tmp_path, config, None)


def test_an_output_that_was_begun_with_another_evaluation_is_refused(tmp_path: Path) -> None:
    train(tmp_path, make_config(), ScriptedEvaluator(scores=[0.1] * 6))
    other = replace(ScriptedEvaluator(scores=[]), index="other")
    with pytest.raises(SettingsError, match=r"was begun with another setting \(evaluation"):
        train(tmp_path, make_config(), other)
