"""What supervised fine-tuning and preference optimisation share: arguments, checkpoints, the run, what is left of it.

On one machine with several GPUs: `accelerate launch --multi_gpu -m querylift train sft ...`; every process trains on its
share of each batch, and only the first writes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.trainer.manifest import Manifest
from querylift.trainer.settings import LoraSettings, Settings, TrainingSettings
from querylift.trainer.student import models

Say = Callable[[str], None]
"""Where lines for a person go."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A stage's result. `resumed_at` is the step of the checkpoint that the run began from, 0 for a fresh one.

    `loss` is the mean of all steps, those before a resume too; losses are means over completion tokens (SFT) or pairs
    (DPO); `validation` is empty where nothing was held out.
    """

    folder: str
    examples: int
    left_out: int
    steps: int
    resumed_at: int
    loss: float
    validation: Mapping[str, float] = field(default_factory=dict)


def arguments(settings: Settings, table: TrainingSettings, *, out: Path, seed: int, validate: bool) -> dict[str, Any]:
    """The `TrainingArguments` that both stages share, as keyword arguments.

    bf16 means autocast: weights stay in the format that they were loaded in. Rows of like length share a batch.
    """
    gpu = models.device() == "cuda"
    save = {"save_strategy": "steps", "save_steps": table.save_steps} if table.save_steps else {"save_strategy": "no"}
    check = {"eval_strategy": "steps", "eval_steps": table.validation_steps} if validate else {"eval_strategy": "no"}
    return {
        "output_dir": str(checkpoints(out)),
        "seed": seed,
        "num_train_epochs": table.epochs,
        "learning_rate": table.learning_rate,
        "lr_scheduler_type": table.scheduler,
        "warmup_steps": table.warmup_share,  # below 1 it is a share of the steps
        "weight_decay": table.weight_decay,
        "max_grad_norm": table.max_grad_norm,
        "per_device_train_batch_size": table.batch_size,
        "per_device_eval_batch_size": table.batch_size,
        "gradient_accumulation_steps": table.gradient_accumulation,
        "activation_checkpointing": table.activation_checkpointing and gpu,
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch_fused",
        "bf16": settings.model.compute == "bfloat16",
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,  # the collators take what they need; `length` is for the sampler
        "logging_steps": table.logging_steps,
        "logging_nan_inf_filter": False,
        "save_total_limit": 2,  # the last may be torn by a kill
        **save,
        **check,
        "max_length": None,  # what is trained on is cut before
        "report_to": [],
        "disable_tqdm": True,
    }


def lora(settings: LoraSettings) -> Any:
    """PEFT's configuration; None for full fine-tuning."""
    if settings.rank == 0:
        return None
    from peft import LoraConfig

    target = settings.target if isinstance(settings.target, str) else list(settings.target)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target,
        task_type="CAUSAL_LM",
    )


def checkpoints(out: Path) -> Path:
    """Where the state of a run under way is kept; it goes when the run ends well."""
    return out / "checkpoints"


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end, by its step."""
    found = sorted(checkpoints(out).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next((path for path in reversed(found) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    """The trainer's state is what is written last."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def manifest(
    out: Path, stage: str, files: Sequence[Path], settings: Settings, *, base: str | Path, seed: int, table: str
) -> Manifest:
    """The manifest of a training stage: what is read, all that `base` lies on, and the settings that matter to it."""
    if not files:
        raise SettingsError(f"{stage} has nothing to train on; name one JSONL file or more")
    inputs = {f"rows {number}": path for number, path in enumerate(files, 1)}
    inputs |= models.read_for(base, name="base")
    tables: dict[str, Any] = settings.model_dump(mode="json", include={"model", "lora", table})
    tables["model"]["base"] = "an input" if "base" in inputs else str(base)
    return Manifest(out, stage=stage, inputs=inputs, settings=tables, seed=seed, folder=True, vital=models.VITAL)


def once(manifest: Manifest, train: Callable[[], Trained], *, out: Path, say: Say) -> Trained:
    """What `train` gives, or what it gave when it ran to its end before. The first process alone keeps the manifest."""
    models.check_installed()
    models.quiet_libraries()
    if manifest.done:
        say(f"{out} is done")
        return Trained(**manifest.results)
    if manifest.lost:
        say(f"{out} was done, and its {manifest.lost} is no longer what was written: it is made again")
    with ExitStack() as stack:
        stack.enter_context(models.harmless_warnings())
        results = stack.enter_context(manifest.running()) if is_first_process() else {}
        trained = train()
        results.update(asdict(trained))
    _part()
    return trained


def is_first_process() -> bool:
    """Whether this process writes: the only one, or the first that `accelerate launch` started."""
    return bool(_processes().is_main_process)


def _processes() -> Any:
    """accelerate's state, which must be told of a CPU: there it would take every process for the only one."""
    from accelerate import PartialState

    return PartialState(cpu=models.device() == "cpu")


def _part() -> None:
    """Wait for the first process to have written: one that left before would take the others with it."""
    state = _processes()
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()


def for_one(say: Say) -> Say:
    """`say` in the first process; what says nothing in the others."""
    return say if is_first_process() else _silence


def prepare(trainer: Any) -> None:
    """Put our head in place of TRL's on a CPU; on a GPU its own is made for it."""
    if trainer.args.device.type == "cpu":
        from querylift.trainer.student.cpu_head import use_cpu_head

        use_cpu_head(trainer.model)


def run(trainer: Any, *, out: Path, say: Say) -> tuple[int, float, dict[str, float]]:
    """Train, from the last checkpoint where there is one, and validate: (step it began at, mean loss, validation)."""
    from transformers.trainer_callback import PrinterCallback

    from querylift.trainer.student.loss_curves import Curves, mean_loss

    first = is_first_process()
    curves = Curves(out, say=say)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(curves)
    begun = last_checkpoint(out)
    resumed_at = int(begun.name.rpartition("-")[2]) if begun else 0
    if begun:
        say(f"resumed at step {resumed_at}, from {begun}")
    output = trainer.train(resume_from_checkpoint=str(begun) if begun else None)
    measured = _measured(trainer)
    if first:
        curves.draw()
    loss = mean_loss(trainer.state.log_history, resumed_at=resumed_at)
    return resumed_at, float(output.training_loss if loss is None else loss), _validation(measured)


def trained(
    trainer: Any, tokenizer: Any, *, out: Path, base: str | Path, examples: int, left_out: int, say: Say
) -> Trained:
    """Train, write what came of it into `out`, and say what it is; `examples` and `left_out` are counts of rows."""
    resumed_at, loss, validation = run(trainer, out=out, say=say)
    keep(trainer, tokenizer, out, base=base)
    return Trained(str(out), examples, left_out, trainer.state.global_step, resumed_at, loss, validation)


def keep(trainer: Any, tokenizer: Any, out: Path, *, base: str | Path) -> None:
    """Write what was trained, an adapter or a whole model, into `out`, and remove the checkpoints."""
    if not is_first_process():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        models.save_adapter(model, tokenizer, out, base=base)
    else:
        models.save(model, tokenizer, out)
    shutil.rmtree(checkpoints(out), ignore_errors=True)


def closing(trained: Trained) -> str:
    """What came out, for a person, on two lines."""
    steps = f"{trained.steps} steps" + (f", from {trained.resumed_at} on" if trained.resumed_at else "")
    held_out = f", held-out loss {trained.validation['loss']:.3f}" if "loss" in trained.validation else ""
    return f"{trained.folder}: {steps}, loss {trained.loss:.3f}{held_out}\ncurves: {trained.folder}/curves.png"


def dataset(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as the trainers take them, held in memory."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_list([dict(row) for row in rows])


def _measured(trainer: Any) -> dict[str, Any]:
    """The held-out rows after the last step: as the run itself measured them, if it did."""
    if trainer.eval_dataset is None:
        return {}
    last = [
        logs for logs in trainer.state.log_history if "eval_loss" in logs and logs["step"] == trainer.state.global_step
    ]
    return last[-1] if last else dict(trainer.evaluate())


def _validation(measured: Mapping[str, Any]) -> dict[str, float]:
    aside = ("runtime", "per_second", "epoch", "num_tokens", "step")
    return {
        key.removeprefix("eval_"): float(value)
        for key, value in measured.items()
        if key.startswith("eval_")
        and isinstance(value, float | int)
        and math.isfinite(value)
        and not any(word in key for word in aside)
    }


def _silence(line: str) -> None:
    del line
