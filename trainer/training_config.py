"""The training configuration: a TOML file with one section for each stage. It is validated when it is read.

A new stage needs a class for its section here, and a field of `TrainingConfig`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from querylift.plugin.errors import SettingsError

_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Count = Annotated[int, Field(ge=1)]
HeldOutBy = Literal["query", "document"]
"""What is held out of training: the queries of evaluation splits, or also the documents that are relevant to them."""
Reporter = Literal["tensorboard", "trackio", "wandb", "mlflow"]
"""A program that shows the values of a training, by the name of its package and of its reporter in transformers."""
_FOLDER = "configs"
"""The folder of the packaged configurations of `querylift train`, inside this package."""


class ConfigSection(BaseModel):
    """A section of the file. It refuses unknown keys, and is frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelOptions(ConfigSection):
    """`[model]`: the base, and the number formats of its weights and of the computation.

    `compute = "auto"` is bfloat16 on a GPU, and on a CPU that has instructions for it. Elsewhere it is float32.
    """

    base: str = "smollm2-135m"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compute: Literal["auto", "float32", "bfloat16"] = "auto"


class LoraOptions(ConfigSection):
    """`[lora]`: the adapter (arXiv 2106.09685). Rank 0 trains every weight instead."""

    rank: Annotated[int, Field(ge=0)] = 32
    alpha: _Positive = 32
    dropout: _Share = 0.0
    target: str | tuple[str, ...] = "all-linear"


class TrainingLoopOptions(ConfigSection):
    """The settings of every training of a language model. A step is one update of the weights.

    The learning rate "auto" depends on the number of updates: see `querylift.trainer.student.schedule`.
    """

    epochs: _Positive = 1
    learning_rate: _Positive | Literal["auto"] = 1e-4
    batch_size: _Count = 32
    gradient_accumulation: _Count = 1
    activation_checkpointing: bool = False
    warmup_share: _Share = 0.05
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: _Positive = 1.0
    validation_share: _Share = 0.05
    validation_steps: _Count = 50
    logging_steps: _Count = 10
    save_steps: Annotated[int, Field(ge=0)] = 100


class PreferenceOptions(TrainingLoopOptions):
    """Direct preference optimisation (arXiv 2305.18290). `loss` is one of TRL's `loss_type`s.

    With a `margin_offset`, two passages must differ more, the more their rewards differ (arXiv 2402.10571): the loss sees the
    margin less `margin_offset` times the difference of the rewards.
    """

    learning_rate: _Positive | Literal["auto"] = "auto"
    batch_size: _Count = 16
    beta: _Positive = 0.1
    loss: Literal[
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down"
    ] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    margin_offset: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _check_loss(self) -> PreferenceOptions:
        if self.label_smoothing and self.loss not in ("robust", "exo_pair"):
            raise ValueError(f"label_smoothing does nothing with loss {self.loss!r}; use robust, or set it to 0")
        if self.margin_offset and self.loss not in ("sigmoid", "hinge", "robust", "exo_pair"):
            raise ValueError(f"margin_offset has no clear meaning with loss {self.loss!r}; use sigmoid, or set it to 0")
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss exo_pair needs a label_smoothing above 0; 0.001 is usual")
        return self


class GrpoOptions(TrainingLoopOptions):
    """`[grpo]`: group relative policy optimisation (arXiv 2402.03300). `loss` is one of TRL's `loss_type`s.

    A batch holds samples, not queries. All samples of an update are written before it.
    """

    learning_rate: _Positive | Literal["auto"] = "auto"
    batch_size: _Count = 16
    gradient_accumulation: _Count = 4
    warmup_share: _Share = 0.1
    logging_steps: _Count = 1
    save_steps: Annotated[int, Field(ge=0)] = 25
    samples: Annotated[int, Field(ge=2)] = 8
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    top_k: _Count = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 0.0
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    iterations: _Count = 1
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @property
    def queries_per_update(self) -> int:
        """The queries whose samples make one update in one process."""
        return self.batch_size * self.gradient_accumulation // self.samples

    @model_validator(mode="after")
    def _check_whole_groups(self) -> GrpoOptions:
        rows = self.batch_size * self.gradient_accumulation
        if rows % self.samples:
            raise ValueError(
                f"batch_size x gradient_accumulation is {rows}, which is no multiple of samples = {self.samples}; "
                "an update needs all samples of each of its queries"
            )
        return self


class SamplingOptions(ConfigSection):
    """`[sample]`: how a language model samples several texts after one prompt.

    A student writes at most `MAX_TOKENS` of `querylift.plugin.expansion`, because no more is served.
    """

    samples: _Count = 8
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_k: _Count = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    batch_size: _Count = 128


class EvaluationOptions(ConfigSection):
    """`[evaluation]`: how `sft`, `dpo` and `grpo` evaluate the student while it trains. `--evaluate-on` names the split.

    `keep = "best"` makes the best step the result: by nDCG@10 on the split, or without a split by the validation loss.
    """

    weight: Annotated[float, Field(gt=0, le=10)] = 0.2
    limit: _Count = 100
    every_steps: _Count = 100
    keep: Literal["last", "best"] = "last"
    patience: Annotated[int, Field(ge=0)] = 0


class CardOptions(ConfigSection):
    """`[card]`: what the card of a student says and no manifest knows.

    `license` is that of the student. `licenses` has those of sources, of teachers and of the base, by name.
    """

    license: str = ""
    licenses: dict[str, str] = {}


class ExpanderTrainingOptions(ConfigSection):
    """`[expander]`: training of a fast expander's matrix, in the stages `index`, `judged` and `preferences`."""

    per_document: _Count = 5
    max_documents: _Count = 20_000
    neighbours: _Count = 20
    temperature: _Positive = 0.08
    epochs: _Count = 6
    learning_rate: _Positive = 2e-2
    batch_size: _Count = 256
    judged_epochs: _Count = 5
    judged_learning_rate: _Positive = 5e-3
    judged_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    samples: Annotated[int, Field(ge=2)] = 8
    weights: tuple[_Positive, ...] = (0.2, 0.4)
    recall_share: Annotated[float, Field(ge=0)] = 0.5
    margin: _Positive = 0.05
    beta: _Positive = 0.1
    preference_epochs: _Count = 4
    preference_learning_rate: _Positive = 3e-3


class PipelineStep(ConfigSection):
    """`[[step]]`: one stage of the pipeline, with the arguments and options of its command.

    A list repeats an option; true and false switch it on and off. A step with `per_seed` runs once for each seed.
    """

    stage: str
    arguments: tuple[str, ...] = ()
    options: dict[str, bool | int | float | str | list[str] | list[float]] = {}
    per_seed: bool = False


class FineTuningConfig(ConfigSection):
    """The parts of a configuration that SFT and DPO need, whatever the model is to write.

    `report_to` names programs that get the values of each training. No value goes to any by default.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    report_to: tuple[Reporter, ...] = ()
    model: ModelOptions = ModelOptions()
    lora: LoraOptions = LoraOptions()
    sft: TrainingLoopOptions = TrainingLoopOptions()
    dpo: PreferenceOptions = PreferenceOptions()

    @model_validator(mode="after")
    def _check_number_format(self) -> Self:
        if self.lora.rank == 0 and self.model.dtype == "bfloat16":
            raise ValueError(
                'model.dtype is "bfloat16" and lora.rank is 0: weights in bfloat16 lose small updates; '
                'set model.dtype = "float32"'
            )
        return self


class TrainingConfig(FineTuningConfig):
    """A whole configuration file of `querylift train`.

    `variables` stand in the steps as `{name}`. Those in `required` have no default, and must be given to a run.
    """

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = ()
    held_out: tuple[str, ...] = ()
    held_out_by: HeldOutBy = "query"
    variables: dict[str, str] = {}
    required: tuple[str, ...] = ()
    step: tuple[PipelineStep, ...] = ()
    sample: SamplingOptions = SamplingOptions()
    grpo: GrpoOptions = GrpoOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    card: CardOptions = CardOptions()
    expander: ExpanderTrainingOptions = ExpanderTrainingOptions()


AnyConfig = TypeVar("AnyConfig", bound=ConfigSection)
"""The class of a configuration file."""


def load_training_config(path: Path | None) -> TrainingConfig:
    """Read the configuration at `path`, or the packaged one of that name (`smoke`). None gives the defaults.

    Raises SettingsError when the file cannot be read or a value is wrong.
    """
    if path is None:
        return parse_training_config({})
    return parse_training_config(read_config_file(path), source=str(path))


def parse_training_config(values: Mapping[str, Any], *, source: str = "settings") -> TrainingConfig:
    """Validate `values`. Raises SettingsError with `source`, the key, its value and the remedy."""
    return validate_config(TrainingConfig, values, source=source)


def validate_config(
    config_class: type[AnyConfig], values: Mapping[str, Any], *, source: str, folder: str = _FOLDER
) -> AnyConfig:
    """Return `values` as a `config_class`. `folder` is named as the place that shows every setting.

    Raises SettingsError with `source`, the key, its value and the remedy.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"{source}: {_describe_error(error.errors(include_url=False)[0], folder)}") from None


def list_packaged_configs(folder: str = _FOLDER) -> tuple[str, ...]:
    """Return the names of the configurations that come with the package in `folder`."""
    names = [file.name for file in files("querylift.trainer").joinpath(folder).iterdir()]
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def read_config_file(path: Path, *, folder: str = _FOLDER) -> dict[str, Any]:
    """Return the values of the TOML file at `path`, or of the packaged one of that name in `folder`.

    Raises SettingsError when it cannot be read.
    """
    try:
        if not path.is_file() and str(path) in list_packaged_configs(folder):
            text = files("querylift.trainer").joinpath(folder, f"{path}.toml").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8-sig")
        return tomllib.loads(text)
    except FileNotFoundError:
        names = ", ".join(list_packaged_configs(folder))
        raise SettingsError(f"{path} does not exist; name a configuration file, or one of {names}") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); name a configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}; correct that line") from None


def _describe_error(error: Any, folder: str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key} is not a setting; trainer/{folder} shows them all"
    problem = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {problem}" if key else problem
    return f"{key} is {error.get('input')!r}: {problem[0].lower()}{problem[1:]}"
