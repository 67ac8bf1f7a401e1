"""The configuration of the adaptation: a TOML file with one section for each step. It is validated when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from querylift.trainer.training_config import (
    ConfigSection,
    FineTuningConfig,
    PreferenceOptions,
    SamplingOptions,
    TrainingLoopOptions,
    read_config_file,
    validate_config,
)

CONFIG_FOLDER = "configs/judge"
"""The folder of the packaged configurations, inside the package `querylift.trainer`."""
DEFAULT_MAX_DOCUMENTS = 20_000

_Weight = Annotated[float, Field(ge=0, le=1000)]
_Count = Annotated[int, Field(ge=1)]


class PretrainOptions(TrainingLoopOptions):
    """`[pretrain]`: language modelling on the texts of documents, which are packed into blocks of `block_tokens`."""

    block_tokens: Annotated[int, Field(ge=8)] = 1024
    max_documents: _Count = DEFAULT_MAX_DOCUMENTS


class AnswerSftOptions(TrainingLoopOptions):
    """`[sft]`: supervised fine-tuning on the answers of annotations.

    A document is cut until its prompt has at most `max_prompt_tokens`. A longer answer than `max_answer_tokens` is left out.
    """

    max_prompt_tokens: _Count = 1536
    max_answer_tokens: _Count = 384


class AnswerSamplingOptions(SamplingOptions):
    """`[sample]`: how the teacher samples its own answers before DPO. Answers at temperature 0 would all be the same."""

    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    batch_size: _Count = 32
    max_tokens: _Count = 384


class AnswerDpoOptions(PreferenceOptions):
    """`[dpo]`: direct preference optimisation on pairs of answers.

    The best and the worst answer to a prompt are a pair when their rewards differ by `min_margin` or more. With
    `include_annotation`, the annotation's own answer can be the best one.
    """

    max_prompt_tokens: _Count = 1536
    min_margin: Annotated[float, Field(gt=0, le=1)] = 0.1
    include_annotation: bool = True


class RewardOptions(ConfigSection):
    """`[reward]`: the weight of each dimension of an answer's reward, and the bounds of its reasoning in words."""

    label: _Weight = 0.4
    consistency: _Weight = 0.15
    grounding: _Weight = 0.15
    length: _Weight = 0.1
    format: _Weight = 0.2
    min_words: _Count = 10
    max_words: _Count = 80

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each dimension, by its name."""
        return self.model_dump(exclude={"min_words", "max_words"})

    @model_validator(mode="after")
    def _check_weights_and_bounds(self) -> RewardOptions:
        if not any(self.weights.values()):
            raise ValueError(f"all weights are 0; set one of {', '.join(self.weights)} above 0")
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}; set it lower")
        return self


class AdaptationConfig(FineTuningConfig):
    """A whole configuration file of `querylift judge adapt`."""

    pretrain: PretrainOptions = PretrainOptions()
    sft: AnswerSftOptions = AnswerSftOptions()
    sample: AnswerSamplingOptions = AnswerSamplingOptions()
    reward: RewardOptions = RewardOptions()
    dpo: AnswerDpoOptions = AnswerDpoOptions()


def load_adaptation_config(path: Path | None) -> AdaptationConfig:
    """Read the configuration at `path`, or the packaged one of that name (`judge-smoke`). None gives the defaults.

    Raises SettingsError when the file cannot be read or a value is wrong.
    """
    if path is None:
        return parse_adaptation_config({})
    return parse_adaptation_config(read_config_file(path, folder=CONFIG_FOLDER), source=str(path))


def parse_adaptation_config(values: Mapping[str, Any], *, source: str = "settings") -> AdaptationConfig:
    """Validate `values`. Raises SettingsError with `source`, the key, its value and the remedy."""
    return validate_config(AdaptationConfig, values, source=source, folder=CONFIG_FOLDER)
