"""Direct preference optimisation (DPO, arXiv 2305.18290): the student learns which passage helped its query more.

The student before training is the reference model. When it is an adapter, it is merged into its base in memory, and a new
adapter is trained on top. With the new adapter switched off, the model is the reference, so that no second model is held.
The new adapter names the student before training as its base. `models.load_model` merges the whole chain.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from querylift.plugin.errors import SettingsError
from querylift.trainer.rewards.pair_file import PassagePair, read_passage_pairs
from querylift.trainer.student import libraries, models, shared_training, training_texts
from querylift.trainer.student.shared_training import Say, TrainingResult
from querylift.trainer.student.training_texts import Completion
from querylift.trainer.training_config import DpoOptions, FineTuningConfig, TrainingConfig

_REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


class PreferenceExample(NamedTuple):
    """Two passages after one prompt."""

    query_id: str
    chosen: Completion
    rejected: Completion

    def to_row(self) -> dict[str, Any]:
        """Return a row for TRL's trainer, which tokenizes the texts itself."""
        length = max(self.chosen.length, self.rejected.length)
        return {
            "prompt": self.chosen.prompt,
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "length": length,
        }


def train_on_pairs(
    files: Sequence[Path], config: TrainingConfig, *, model: str | Path, out: Path, seed: int | None = None, say: Say
) -> TrainingResult:
    """Train the student `model` on the pairs in `files`. Write an adapter (or a whole model), curves and a manifest.

    `seed` overrides that of `config`. A run that was killed continues from its last checkpoint. A run that is complete is
    not repeated. Raises SettingsError, DataError and MissingExtra.
    """
    seed = config.seed if seed is None else seed
    manifest = shared_training.make_training_manifest(out, "dpo", files, config, base=model, seed=seed)
    return shared_training.train_once(
        manifest, lambda: _train(files, config, base=model, out=out, seed=seed, say=say), out=out, say=say
    )


def make_examples(pairs: Iterable[PassagePair], tokenizer: Any, options: DpoOptions) -> list[PreferenceExample]:
    """Return the training examples. Repeated pairs, and pairs whose passages are the same once cut, are left out."""
    examples: dict[tuple[str, str, str], PreferenceExample] = {}
    for pair in pairs:
        chosen, rejected = (
            training_texts.make_completion(pair.query, passage, tokenizer, options)
            for passage in (pair.chosen, pair.rejected)
        )
        if chosen.text != rejected.text:
            key = (pair.query_id, chosen.text, rejected.text)
            examples.setdefault(key, PreferenceExample(pair.query_id, chosen, rejected))
    return list(examples.values())


def _train(
    files: Sequence[Path], config: TrainingConfig, *, base: str | Path, out: Path, seed: int, say: Say
) -> TrainingResult:
    model, tokenizer = models.load_model_and_tokenizer(base, dtype=config.model.dtype, seed=seed)
    pairs = [pair for path in files for pair in read_passage_pairs(path)]
    examples = make_examples(pairs, tokenizer, config.dpo)
    if not examples:
        raise SettingsError(f"{', '.join(map(str, files))} has no pair of passages that differ; name another file")
    training, validation = training_texts.split_by_query(examples, config.dpo.validation_share)
    device = libraries.choose_device()
    say(f"{len(training)} training pairs, {len(validation)} validation pairs of other queries, on {device}")
    trainer = make_trainer(model, tokenizer, config, training, validation, out=out, seed=seed)
    left_out = len(pairs) - len(examples)
    return shared_training.train_and_save(
        trainer, tokenizer, out=out, base=base, examples=len(training), left_out=left_out, say=say
    )


@libraries.hide_harmless_warnings()
def make_trainer(
    model: Any,
    tokenizer: Any,
    config: FineTuningConfig,
    training: Sequence[PreferenceExample],
    validation: Sequence[PreferenceExample],
    *,
    out: Path,
    seed: int,
) -> Any:
    """Return TRL's trainer. Nothing is trained yet."""
    from trl import DPOConfig, DPOTrainer

    options, on_cpu = config.dpo, libraries.choose_device() == "cpu"
    trains_all_weights = config.lora.rank == 0
    arguments = shared_training.make_trainer_arguments(config, options, out=out, seed=seed, validate=bool(validation))
    trainer = DPOTrainer(
        model=model,
        # On a GPU, TRL computes the reference when the trainer is made. On a CPU that is too early: our head comes later.
        ref_model=copy.deepcopy(model) if trains_all_weights and on_cpu else None,
        args=DPOConfig(
            **arguments,
            beta=options.beta,
            loss_type=[options.loss, *(["sft"] if options.sft_weight else [])],
            loss_weights=[1.0, *([options.sft_weight] if options.sft_weight else [])],
            label_smoothing=options.label_smoothing,
            precompute_ref_log_probs=not on_cpu,
        ),
        train_dataset=shared_training.make_dataset([example.to_row() for example in training]),
        eval_dataset=shared_training.make_dataset([example.to_row() for example in validation]) if validation else None,
        processing_class=tokenizer,
        peft_config=shared_training.make_lora_config(config.lora),
    )
    shared_training.install_cpu_head(trainer)
    if on_cpu:
        _precompute_reference(trainer)
    return trainer


def _precompute_reference(trainer: Any) -> None:
    """Compute the log-probabilities of the reference model once, and not in every epoch."""
    trainer.train_dataset = _add_reference_columns(trainer, trainer.train_dataset)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = _add_reference_columns(trainer, trainer.eval_dataset)
    trainer.precompute_ref_logps = True
    trainer.ref_model = None


def _add_reference_columns(trainer: Any, dataset: Any) -> Any:
    """Return `dataset` with the reference's log-probabilities. Rows of similar length share a batch."""
    lengths = dataset["length"]
    order = sorted(range(len(dataset)), key=lambda row: lengths[row])
    batch_size = trainer.args.per_device_train_batch_size
    columns = {name: [0.0] * len(dataset) for name in _REFERENCE_COLUMNS}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = trainer.data_collator([dataset[row] for row in rows])
        log_probs = trainer.compute_ref_log_probs(trainer.model, batch)
        for name, values in zip(_REFERENCE_COLUMNS, log_probs, strict=True):
            for row, value in zip(rows, values.tolist(), strict=True):
                columns[name][row] = value
    for name, column in columns.items():
        dataset = dataset.add_column(name, column)
    return dataset
