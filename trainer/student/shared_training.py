"""Steps that supervised fine-tuning, DPO and GRPO share: arguments, checkpoints, the training run and the saved result.

One machine with several GPUs trains with `accelerate launch --multi_gpu -m querylift train sft ...`. Every process trains on
its share of each batch. Only the first process writes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from querylift.plugin.errors import SettingsError
from querylift.trainer.cards.card import write_card
from querylift.trainer.manifest import CARD_NAME, Manifest
from querylift.trainer.student import libraries, model_bases, models, schedule
from querylift.trainer.student.reporters import check_reporters, place_tensorboard_files
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.training_config import FineTuningConfig, LoraOptions, TrainingLoopOptions

if TYPE_CHECKING:
    from querylift.trainer.student.evaluation_callback import EvaluationCallback

Say = Callable[[str], None]
"""Prints a line for the user."""


class TrainingExample(Protocol):
    """An example that a trainer of TRL can learn from."""

    def to_row(self) -> dict[str, Any]:
        """Return a row for TRL's trainer."""
        ...


def make_trainer_arguments(
    config: FineTuningConfig, options: TrainingLoopOptions, *, out: Path, seed: int, examples: int, validate: bool
) -> dict[str, Any]:
    """Return the `TrainingArguments` that all stages share, as keyword arguments. `examples` counts training rows.

    bf16 means autocast: the weights stay in the format that they were loaded in. Rows of similar length share a batch.
    Raises SettingsError when a package of `report_to` is not installed.
    """
    check_reporters(config.report_to)
    on_gpu = libraries.choose_device() == "cuda"
    updates = schedule.count_updates(options, examples=examples, processes=count_processes())
    save_steps = schedule.choose_save_steps(options.save_steps, updates=updates)
    save = {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {"save_strategy": "no"}
    validation = (
        {"eval_strategy": "steps", "eval_steps": options.validation_steps} if validate else {"eval_strategy": "no"}
    )
    return {
        "output_dir": str(checkpoint_folder(out)),
        "seed": seed,
        "num_train_epochs": options.epochs,
        "learning_rate": schedule.choose_learning_rate(
            options.learning_rate, updates=updates, trains_all_weights=config.lora.rank == 0
        ),
        "lr_scheduler_type": options.scheduler,
        "warmup_steps": options.warmup_share,  # below 1 it is a share of the steps
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation,
        "activation_checkpointing": options.activation_checkpointing and on_gpu,
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch_fused",
        "bf16": libraries.choose_number_format(config.model.compute) == "bfloat16",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,  # the collators take the columns they need; `length` is for the sampler
        "logging_steps": options.logging_steps,
        "logging_nan_inf_filter": False,
        "save_total_limit": 2,  # a kill may leave the newest one incomplete
        **save,
        **validation,
        "report_to": list(config.report_to),
        "disable_tqdm": True,
    }


def make_lora_config(options: LoraOptions) -> Any:
    """Return PEFT's configuration, or None when every weight is trained."""
    if options.rank == 0:
        return None
    from peft import LoraConfig

    target = options.target if isinstance(options.target, str) else list(options.target)
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=target,
        task_type="CAUSAL_LM",
    )


def checkpoint_folder(out: Path) -> Path:
    """The folder of the checkpoints. It is removed when the run succeeds."""
    return out / "checkpoints"


def find_last_checkpoint(out: Path) -> Path | None:
    """Return the complete checkpoint with the highest step, or None."""
    checkpoints = sorted(checkpoint_folder(out).glob("checkpoint-*"), key=_parse_step)
    return next((path for path in reversed(checkpoints) if _is_complete(path)), None)


def _parse_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_complete(checkpoint: Path) -> bool:
    """Whether the checkpoint holds the trainer's state, which is written last."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def make_training_manifest(
    out: Path,
    stage: str,
    files: Sequence[Path],
    config: FineTuningConfig,
    *,
    base: str | Path,
    seed: int,
    other_settings: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return the manifest of a training stage: its input files, base, settings and seed.

    When `base` is an adapter, the models below it are inputs too. Raises SettingsError when `files` is empty.
    """
    if not files:
        raise SettingsError(f"{stage} has nothing to train on; name one JSONL file or more")
    inputs = {f"rows {number}": path for number, path in enumerate(files, 1)}
    return make_model_manifest(
        out, stage, inputs, config, sections=(stage,), base=base, seed=seed, other_settings=other_settings
    )


def make_model_manifest(
    out: Path,
    stage: str,
    inputs: Mapping[str, Path],
    config: FineTuningConfig,
    *,
    sections: Collection[str],
    base: str | Path,
    seed: int,
    other_settings: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return the manifest of a model that is trained from `base`. The `sections` of `config` decide the result."""
    inputs = {**inputs, **model_bases.list_model_inputs(base, name="base")}
    settings: dict[str, Any] = config.model_dump(mode="json", include={"model", "lora", *sections})
    settings |= other_settings or {}
    settings["model"]["base"] = "an input" if "base" in inputs else str(base)
    return Manifest(
        out,
        stage=stage,
        inputs=inputs,
        settings=settings,
        seed=seed,
        is_folder=True,
        essential_files=model_bases.ESSENTIAL_FILES,
    )


def train_once(manifest: Manifest, train: Callable[[], TrainingResult], *, out: Path, say: Say) -> TrainingResult:
    """Return the result of `train`, or the recorded result when the stage is complete.

    Only the first process writes the manifest, and then the student's card.
    """
    libraries.check_training_packages()
    libraries.silence_libraries()
    if manifest.is_done:
        if is_first_process() and not (out / CARD_NAME).exists():  # a run may have been killed before it wrote the card
            write_card(out)
        say(f"{out} is done")
        return TrainingResult(**manifest.results)
    if manifest.damaged_output:
        say(f"{out} was done, but its {manifest.damaged_output} is missing or has changed; it is made again")
    with ExitStack() as stack:
        stack.enter_context(libraries.hide_harmless_warnings())
        results = stack.enter_context(manifest.record_run()) if is_first_process() else {}
        result = train()
        results.update(asdict(result))
    if is_first_process():
        write_card(out)
    _leave_process_group()
    return result


def is_first_process() -> bool:
    """Whether this process writes: it is the only one, or the first that `accelerate launch` started."""
    return bool(_get_process_state().is_main_process)


def count_processes() -> int:
    """The number of processes that train together."""
    return int(_get_process_state().num_processes)


@contextmanager
def let_first_process_go_first() -> Iterator[None]:
    """Run the block in the first process, and only then in the others."""
    with _get_process_state().main_process_first():
        yield


def _get_process_state() -> Any:
    """Return accelerate's state. Without `cpu=True`, accelerate takes every process on a CPU for the only one."""
    from accelerate import PartialState

    return PartialState(cpu=libraries.choose_device() == "cpu")


def _leave_process_group() -> None:
    """Wait until the first process has written. A process that ends earlier would end the others too."""
    state = _get_process_state()
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()


def silence_other_processes(say: Say) -> Say:
    """Return `say` in the first process, and a function that prints nothing in the others."""
    return say if is_first_process() else lambda line: None


def store_random_base(
    base: str | Path, model: Any, tokenizer: Any, config: FineTuningConfig, *, out: Path
) -> str | Path:
    """Return the base that the adapter in `out` should name.

    It is `base`. A model that was made on the spot is saved beside its adapter: another machine may not make the same one.
    """
    if str(base) not in model_bases.RANDOM_BASES or not config.lora.rank:
        return base
    if is_first_process():
        models.save_model(model, tokenizer, out / "base")
    return out / "base"


def install_cpu_head(trainer: Any, *, temperature: float = 1.0) -> None:
    """Replace TRL's fused head by ours on a CPU. On a GPU, TRL's own head is the fast one."""
    if trainer.args.device.type == "cpu":
        from querylift.trainer.student.cpu_head import use_cpu_head

        use_cpu_head(trainer.model, temperature=temperature)


def train_and_save(
    trainer: Any,
    tokenizer: Any,
    *,
    out: Path,
    base: str | Path,
    examples: int,
    left_out: int,
    say: Say,
    evaluation: EvaluationCallback | None = None,
) -> TrainingResult:
    """Train, and save the model into `out`. `examples` and `left_out` go into the result."""
    result = replace(
        run_trainer(trainer, out=out, say=say, evaluation=evaluation), examples=examples, left_out=left_out
    )
    save_trained_model(trainer, tokenizer, out, base=base)
    return result


def run_trainer(trainer: Any, *, out: Path, say: Say, evaluation: EvaluationCallback | None = None) -> TrainingResult:
    """Train from the last checkpoint, or from the start, and validate. The result counts no examples.

    The model ends with the weights that `evaluation` chooses, or with the last ones.
    """
    from transformers.trainer_callback import PrinterCallback

    from querylift.trainer.student.loss_curves import CurveRecorder, compute_mean_loss

    recorder = CurveRecorder(out, say=say)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(recorder)
    if evaluation is not None:
        trainer.add_callback(evaluation)
    place_tensorboard_files(trainer, out)
    checkpoint = find_last_checkpoint(out)
    resumed_at = _parse_step(checkpoint) if checkpoint else 0
    if checkpoint:
        say(f"resumed at step {resumed_at}, from {checkpoint}")
    output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    last_step = trainer.state.global_step
    chosen_step = evaluation.load_chosen_weights() if evaluation else last_step
    validation = _validate(trainer, chosen_step)
    if is_first_process():
        recorder.draw_chart()
    loss = compute_mean_loss(trainer.state.log_history, resumed_at=resumed_at)
    return TrainingResult(
        folder=str(out),
        examples=0,
        left_out=0,
        steps=last_step,
        resumed_at=resumed_at,
        loss=float(output.training_loss if loss is None else loss),
        validation=validation,
        evaluation=evaluation.summarise(chosen_step) if evaluation else {},
    )


def _validate(trainer: Any, step: int) -> dict[str, float]:
    """Return the validation values of `step`, {} without validation rows. They are computed if not logged."""
    if trainer.eval_dataset is None:
        return {}
    logged = [logs for logs in trainer.state.log_history if "eval_loss" in logs and logs["step"] == step]
    values = logged[-1] if logged else trainer.evaluate()
    ignored = ("runtime", "per_second", "epoch", "num_tokens", "step")
    return {
        key.removeprefix("eval_"): float(value)
        for key, value in values.items()
        if key.startswith("eval_")
        and isinstance(value, float | int)
        and math.isfinite(value)
        and not any(word in key for word in ignored)
    }


def save_trained_model(trainer: Any, tokenizer: Any, out: Path, *, base: str | Path) -> None:
    """Write the trained adapter or whole model into `out`, and remove the checkpoints."""
    if not is_first_process():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        models.save_adapter(model, tokenizer, out, base=base)
    else:
        models.save_model(model, tokenizer, out)
    shutil.rmtree(checkpoint_folder(out), ignore_errors=True)


def make_dataset(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return the rows as a dataset of the `datasets` library, in memory."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_list([dict(row) for row in rows])
