"""A configuration of the adaptation is validated when it is read. The packaged ones explain every value."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.adaptation.adaptation_config import (
    CONFIG_FOLDER,
    AdaptationConfig,
    RewardOptions,
    load_adaptation_config,
)
from querylift.trainer.training_config import list_packaged_configs
from tests.helpers.paths import ROOT

NAMES = ("judge-qwen3-4b", "judge-smoke")


def _read_lines(name: str) -> list[str]:
    return (ROOT / "trainer" / CONFIG_FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()


def test_the_packaged_configurations_are_found_by_name_and_are_apart_from_those_of_the_student() -> None:
    assert list_packaged_configs(CONFIG_FOLDER) == NAMES
    assert not set(NAMES) & set(list_packaged_configs())
    assert load_adaptation_config(Path("judge-smoke")).model.base == "made:llama"
    assert load_adaptation_config(Path("judge-qwen3-4b")).model.dtype == "bfloat16"


def test_without_a_file_the_defaults_apply() -> None:
    assert load_adaptation_config(None) == AdaptationConfig()


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_configuration_shows_every_setting_with_a_comment(name: str) -> None:
    lines = _read_lines(name)
    defaults = AdaptationConfig().model_dump()
    tables = tomllib.loads("\n".join(lines))
    assert {key: set(value) for key, value in tables.items() if key != "seed"} == {
        key: set(value) for key, value in defaults.items() if key != "seed"
    }
    values = [line for line in lines if "=" in line.partition("#")[0]]
    assert [line for line in values if len(line.partition(" # ")[2]) < 10] == []
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[pretrain]\nblock_token = 64", "pretrain.block_token is not a setting; trainer/configs/judge shows them all"),
        ("[pretrain]\nblock_tokens = 4", "pretrain.block_tokens is 4: input should be greater than or equal to 8"),
        ("[train]\nepochs = 1", "train is not a setting; trainer/configs/judge shows them all"),
        ("[sample]\ntemperature = 0", "sample.temperature is 0: input should be greater than 0"),
        ("[dpo]\nmin_margin = 0", "dpo.min_margin is 0"),
        ("[reward]\nlabel = -1", "reward.label is -1: input should be greater than or equal to 0"),
        (
            "[reward]\nlabel = 0\nconsistency = 0\ngrounding = 0\nlength = 0\nformat = 0",
            "reward: all weights are 0; set one of label, consistency, grounding, length, format above 0",
        ),
        ("[reward]\nmin_words = 9\nmax_words = 8", "reward: min_words 9 is above max_words 8; set it lower"),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load_adaptation_config(file)
    assert sentence in str(raised.value) and "mine.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named_with_the_packaged_ones() -> None:
    with pytest.raises(SettingsError, match="or one of judge-qwen3-4b, judge-smoke"):
        load_adaptation_config(Path("smoke"))


def test_the_weights_are_the_settings_that_are_no_bounds() -> None:
    assert list(RewardOptions().weights) == ["label", "consistency", "grounding", "length", "format"]
