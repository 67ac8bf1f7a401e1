"""Direct preference optimisation (arXiv 2305.18290): the student learns which of two passages served a query better.

The student that comes in is the reference. Where it is an adapter, it is merged into its base in memory and a new adapter is
trained on top: switched off, that one leaves the reference, so that no second model is held. The result names the student
that came in as its base, and `querylift.trainer.student.models.load` merges one after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from querylift.plugin.errors import SettingsError
from querylift.trainer.rewards import preference_file
from querylift.trainer.rewards.preference_file import Preference
from querylift.trainer.settings import DpoSettings, Settings
from querylift.trainer.student import models, shared_training, training_texts
from querylift.trainer.student.shared_training import Say, Trained
from querylift.trainer.student.training_texts import Completion

_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


class Example(NamedTuple):
    """Two passages after one prompt."""

    query_id: str
    chosen: Completion
    rejected: Completion

    def row(self) -> dict[str, Any]:
        """For the trainer, which turns texts into tokens itself."""
        length = max(self.chosen.length, self.rejected.length)
        return {
            "prompt": self.chosen.prompt,
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "length": length,
        }


def train(
    pairs: Sequence[Path], settings: Settings, *, model: str | Path, out: Path, seed: int | None = None, say: Say
) -> Trained:
    """Train the student `model` on the preferences of `pairs`; write an adapter (or a whole model), curves, a manifest.

    A run that was killed goes on from its last checkpoint; one that has ended is not run again. Raises SettingsError,
    DataError, MissingExtra.
    """
    seed = settings.seed if seed is None else seed
    manifest = shared_training.manifest(out, "dpo", pairs, settings, base=model, seed=seed, table="dpo")
    return shared_training.once(
        manifest, lambda: _train(pairs, settings, base=model, out=out, seed=seed, say=say), out=out, say=say
    )


def examples(pairs: Iterable[Preference], tokenizer: Any, settings: DpoSettings) -> list[Example]:
    """What is trained on; pairs whose passages are alike once they are cut are left out, and so are repeated ones."""
    made: dict[tuple[str, str, str], Example] = {}
    for pair in pairs:
        chosen, rejected = (
            training_texts.completion(pair.query, passage, tokenizer, settings)
            for passage in (pair.chosen, pair.rejected)
        )
        if chosen.text != rejected.text:
            key = (pair.query_id, chosen.text, rejected.text)
            made.setdefault(key, Example(pair.query_id, chosen, rejected))
    return list(made.values())


def _train(pairs: Sequence[Path], settings: Settings, *, base: str | Path, out: Path, seed: int, say: Say) -> Trained:
    model, tokenizer = models.load(base, dtype=settings.model.dtype, seed=seed)
    read = [pair for path in pairs for pair in preference_file.read(path)]
    usable = examples(read, tokenizer, settings.dpo)
    if not usable:
        raise SettingsError(f"{', '.join(map(str, pairs))} has no pair of passages that differ; name another file")
    taught, checked = training_texts.split(usable, settings.dpo.validation_share)
    say(f"{len(taught)} pairs to learn, {len(checked)} of other queries to check, on {models.device()}")
    trainer = trainer_for(model, tokenizer, settings, taught, checked, out=out, seed=seed)
    left_out = len(read) - len(usable)
    return shared_training.trained(
        trainer, tokenizer, out=out, base=base, examples=len(taught), left_out=left_out, say=say
    )


@models.harmless_warnings()
def trainer_for(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    taught: Sequence[Example],
    checked: Sequence[Example],
    *,
    out: Path,
    seed: int,
) -> Any:
    """TRL's trainer for `taught`, which validates on `checked`; nothing is trained yet."""
    from trl import DPOConfig, DPOTrainer

    table, on_cpu = settings.dpo, models.device() == "cpu"
    whole = settings.lora.rank == 0
    trainer = DPOTrainer(
        model=model,
        # On a GPU TRL computes the reference when it is made. On a CPU that would be before our head is in place.
        ref_model=copy.deepcopy(model) if whole and on_cpu else None,
        args=DPOConfig(
            **shared_training.arguments(settings, table, out=out, seed=seed, validate=bool(checked)),
            beta=table.beta,
            loss_type=[table.loss, *(["sft"] if table.sft_weight else [])],
            loss_weights=[1.0, *([table.sft_weight] if table.sft_weight else [])],
            label_smoothing=table.label_smoothing,
            precompute_ref_log_probs=not on_cpu,
        ),
        train_dataset=shared_training.dataset([example.row() for example in taught]),
        eval_dataset=shared_training.dataset([example.row() for example in checked]) if checked else None,
        processing_class=tokenizer,
        peft_config=shared_training.lora(settings.lora),
    )
    shared_training.prepare(trainer)
    if on_cpu:
        _precompute_reference(trainer)
    return trainer


def _precompute_reference(trainer: Any) -> None:
    """Compute the reference's log-probabilities once, rows of like length together, instead of once an epoch."""
    trainer.train_dataset = _with_reference(trainer, trainer.train_dataset)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = _with_reference(trainer, trainer.eval_dataset)
    trainer.precompute_ref_logps = True
    trainer.ref_model = None


def _with_reference(trainer: Any, dataset: Any) -> Any:
    lengths = dataset["length"]
    order = sorted(range(len(dataset)), key=lambda place: lengths[place])
    size = trainer.args.per_device_train_batch_size
    columns = {name: [0.0] * len(dataset) for name in _REFERENCE}
    for start in range(0, len(order), size):
        places = order[start : start + size]
        batch = trainer.data_collator([dataset[place] for place in places])
        for name, values in zip(_REFERENCE, trainer.compute_ref_log_probs(trainer.model, batch), strict=True):
            for place, value in zip(places, values.tolist(), strict=True):
                columns[name][place] = value
    for name, column in columns.items():
        dataset = dataset.add_column(name, column)
    return dataset
