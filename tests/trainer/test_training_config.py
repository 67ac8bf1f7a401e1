"""A training configuration is validated when it is read. The packaged ones explain every value."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.training_config import (
    TrainingConfig,
    list_packaged_configs,
    load_training_config,
    parse_training_config,
)
from tests.helpers.paths import ROOT

CONFIGS = ROOT / "trainer" / "configs"
STAGES = ("model", "lora", "sft", "sample", "dpo", "evaluation", "card")


def test_the_packaged_configurations_are_found_by_name() -> None:
    names = ("index-words", "paper", "qwen3-0.6b", "qwen3-4b", "smoke", "smollm2-135m", "teacher-pool")
    assert list_packaged_configs() == names
    assert load_training_config(Path("smollm2-135m")).model.base == "smollm2-135m"
    assert load_training_config(Path("smoke")).model.base == "made:llama"


def test_without_a_file_the_defaults_apply() -> None:
    assert load_training_config(None) == TrainingConfig()


@pytest.mark.parametrize("name", list_packaged_configs())
def test_every_value_of_a_packaged_configuration_has_a_comment(name: str) -> None:
    lines = (CONFIGS / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if "=" in line.partition("#")[0]]
    assert len(values) > 40
    assert [line for line in values if len(line.partition(" # ")[2]) < 10] == []
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("name", list_packaged_configs())
def test_a_packaged_configuration_shows_every_setting_of_every_training_stage(name: str) -> None:
    tables = tomllib.loads((CONFIGS / f"{name}.toml").read_text(encoding="utf-8"))
    defaults = TrainingConfig().model_dump()
    assert {stage: set(tables[stage]) for stage in STAGES} == {stage: set(defaults[stage]) for stage in STAGES}


def test_the_configuration_for_a_cpu_shows_every_setting_of_grpo() -> None:
    tables = tomllib.loads((CONFIGS / "smollm2-135m.toml").read_text(encoding="utf-8"))
    assert set(tables["grpo"]) == set(TrainingConfig().grpo.model_dump())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed = -1", "seed is -1: input should be greater than or equal to 0"),
        ("[sft]\nlearning_rat = 1", "sft.learning_rat is not a setting; trainer/configs shows them all"),
        ("[sft]\nmax_words = 40", "sft.max_words is not a setting; trainer/configs shows them all"),
        ("[sft]\nvalidation_share = 1.0", "sft.validation_share is 1.0"),
        ('[dpo]\nloss = "kto"', "dpo.loss is 'kto'"),
        ('[dpo]\nmargin_offset = 1.0\nloss = "ipo"', "margin_offset has no clear meaning with loss 'ipo'; use sigmoid"),
        ("[dpo]\nlabel_smoothing = 0.1", "dpo: label_smoothing does nothing with loss 'sigmoid'; use robust"),
        ('[dpo]\nloss = "exo_pair"', "loss exo_pair needs a label_smoothing above 0"),
        ('[evaluation]\nkeep = "first"', "evaluation.keep is 'first'"),
        ("[evaluation]\nevery_steps = 0", "evaluation.every_steps is 0"),
        ('report_to = ["comet"]', "report_to.0 is 'comet'"),
        ("[grpo]\nsamples = 1", "grpo.samples is 1: input should be greater than or equal to 2"),
        (
            "[grpo]\nsamples = 6",
            "grpo: batch_size x gradient_accumulation is 64, which is no multiple of samples = 6",
        ),
        ('[grpo]\nloss = "cispo"', "grpo.loss is 'cispo'"),
        ("[grpo]\ntemperature = 0", "grpo.temperature is 0"),
        ('[model]\ndtype = "float16"', "model.dtype is 'float16'"),
        ("[lora]\nrank = ", "is not TOML"),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load_training_config(file)
    assert sentence in str(raised.value) and "mine.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named_with_the_packaged_ones() -> None:
    with pytest.raises(
        SettingsError,
        match=r"gone\.toml does not exist; name a configuration file, or one of index-words, paper, qwen3",
    ):
        load_training_config(Path("gone.toml"))


def test_a_training_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_training_config({}).seed = 1


def test_weights_in_bfloat16_are_refused_when_every_weight_is_trained() -> None:
    with pytest.raises(
        SettingsError, match=r'^c: model.dtype is "bfloat16" and lora.rank is 0: .*set model.dtype = "float32"'
    ):
        parse_training_config({"model": {"dtype": "bfloat16"}, "lora": {"rank": 0}}, source="c")
