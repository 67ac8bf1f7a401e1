"""The configuration of a judge's training: a TOML file that is validated when it is read.

arXiv 2510.11056 describes the method, Contrastive Reasoning Self-Distillation. It does not publish temperature, weights,
stop-gradient or batch size. The defaults here are our own choices, so a judge trained with them replicates nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from querylift.index_tools.fast_expander.encoder_conversion import PACKAGED_ENCODER_NAME
from querylift.index_tools.judging.judge_folder import Reading
from querylift.trainer.training_config import ConfigSection, read_config_file, validate_config

CONFIG_FOLDER = "configs/judge_student"
"""The folder of the packaged configurations of `querylift judge train`, inside the package `trainer`."""

_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Count = Annotated[int, Field(ge=1)]
_Tokens = Annotated[int, Field(ge=3, le=512)]
Method = Literal["crsd", "standard", "soft", "kl"]


class StudentOptions(ConfigSection):
    """`[student]`: the base, how it reads a pair, and how much of each text it reads.

    Only the `trained_layers` upper layers learn. The embeddings and the layers below keep their weights.
    """

    base: str = PACKAGED_ENCODER_NAME
    reading: Reading = "apart"
    trained_layers: _Count = 2
    query_tokens: _Tokens = 32
    document_tokens: _Tokens = 96
    reasoning_tokens: _Tokens = 80


class JudgeTrainingOptions(ConfigSection):
    """`[training]`: which pairs the judge learns from, and how.

    `method` is one of: `crsd`, the whole method; `standard`, the pass without reasoning alone; `soft`, that pass with the
    teacher's criteria as soft labels; `kl`, both passes, with their probabilities pulled together and not their vectors.
    At most `max_pairs` pairs are drawn, in equal numbers of each grade as far as these reach. Fewer pairs are all used.
    """

    method: Method = "crsd"
    epochs: _Count = 1
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: _Positive = 2e-5
    classifier_learning_rate: _Positive = 1e-3
    weight_decay: _NotNegative = 0.01
    warmup_share: _Share = 0.1
    max_grad_norm: _Positive = 1.0
    max_pairs: Annotated[int, Field(ge=2)] = 4000
    seed: Annotated[int, Field(ge=0)] = 0


class LossOptions(ConfigSection):
    """`[loss]`: the terms of the loss beside the cross-entropy of the standard pass, which weighs 1.

    `contrast_weight` is that of the InfoNCE term, or of the KL term of the method `kl`. `direction` says whose vectors are
    pulled: `to_reasoning` contrasts each standard vector with all reasoning vectors of the batch, `both` does the reverse too.
    `stop_gradient` keeps the reasoning pass from moving towards the standard pass.
    """

    reasoning_weight: _NotNegative = 1.0
    contrast_weight: _NotNegative = 0.1
    temperature: _Positive = 0.1
    direction: Literal["to_reasoning", "both"] = "to_reasoning"
    stop_gradient: bool = True


class JudgeConfig(ConfigSection):
    """The whole file. Every section may be left out."""

    student: StudentOptions = StudentOptions()
    training: JudgeTrainingOptions = JudgeTrainingOptions()
    loss: LossOptions = LossOptions()


def load_judge_config(path: Path | None, **training_changes: Any) -> JudgeConfig:
    """Read the configuration at `path`, or the packaged one of that name (`judge-minilm`). None gives the defaults.

    `training_changes` replace settings of `[training]`. A change of None changes nothing. Raises SettingsError when the file
    cannot be read or a value is wrong.
    """
    values = read_config_file(path, folder=CONFIG_FOLDER) if path else {}
    changes = {key: value for key, value in training_changes.items() if value is not None}
    if isinstance(values.get("training", {}), dict):
        values["training"] = values.get("training", {}) | changes
    return validate_config(JudgeConfig, values, source=str(path or "the options"), folder=CONFIG_FOLDER)
