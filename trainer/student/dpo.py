"""Direct preference optimisation (DPO, arXiv 2305.18290): the student learns which passage helped its query more.

The student before training is the reference model. When it is an adapter, it is merged into its base in memory, and a new
adapter is trained on top. With the new adapter switched off, the model is the reference, so that no second model is held.
The new adapter names the student before training as its base. `models.load_model` merges the whole chain.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import expansion_from_text
from querylift.trainer.rewards.pair_file import PassagePair, read_passage_pairs
from querylift.trainer.student import libraries, models, shared_training, training_texts
from querylift.trainer.student.shared_training import Say, TrainingResult
from querylift.trainer.student.training_texts import Completion
from querylift.trainer.training_config import FineTuningConfig, TrainingConfig

_REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


class PreferenceExample(NamedTuple):
    """Two passages after one prompt."""

    query_id: str
    chosen: Completion
    rejected: Completion

    def to_row(self) -> dict[str, Any]:
        """Return a row for TRL's trainer. `_make_collator` reads our own tokens out of it."""
        length = max(self.chosen.length, self.rejected.length)
        return {
            "prompt": self.chosen.prompt,
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "served_prompt_ids": self.chosen.prompt_ids,
            "served_chosen_ids": self.chosen.ids,
            "served_rejected_ids": self.rejected.ids,
            "length": length,
        }


class PreferenceExamples(NamedTuple):
    """Examples, and the counts of their texts by the names in `training_texts`. A pair has two texts."""

    examples: list[PreferenceExample]
    counts: Counter[str]


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


def make_examples(pairs: Iterable[PassagePair], tokenizer: Any) -> PreferenceExamples:
    """Return the training examples. A pair is left out when it is repeated, or when a passage of it has no word.

    A pair also counts as repeated when its two passages are the same once cut.
    """
    examples: dict[tuple[str, str, str], PreferenceExample] = {}
    left_out: Counter[str] = Counter()
    for pair in pairs:
        chosen, rejected = (
            training_texts.make_completion(pair.query, passage, tokenizer, ended=ended)
            for passage, ended in ((pair.chosen, pair.chosen_ended), (pair.rejected, pair.rejected_ended))
        )
        key = (pair.query_id, chosen.text, rejected.text)
        if any(expansion_from_text(side.passage) is None for side in (chosen, rejected)):
            left_out[training_texts.NO_WORDS] += 1
        elif chosen.passage == rejected.passage or key in examples:
            left_out[training_texts.REPEATED] += 1
        else:
            examples[key] = PreferenceExample(pair.query_id, chosen, rejected)
    sides = [side for example in examples.values() for side in (example.chosen, example.rejected)]
    return PreferenceExamples(list(examples.values()), training_texts.count_texts(sides, left_out))


def _train(
    files: Sequence[Path], config: TrainingConfig, *, base: str | Path, out: Path, seed: int, say: Say
) -> TrainingResult:
    model, tokenizer = models.load_model_and_tokenizer(base, dtype=config.model.dtype, seed=seed)
    pairs = [pair for path in files for pair in read_passage_pairs(path)]
    examples, counts = make_examples(pairs, tokenizer)
    if not examples:
        raise SettingsError(f"{', '.join(map(str, files))} has no pair of passages that differ; name another file")
    training, validation = training_texts.split_by_query(examples, config.dpo.validation_share)
    device = libraries.choose_device()
    say(f"{len(training)} training pairs, {len(validation)} validation pairs of other queries, on {device}")
    say(training_texts.format_counts(counts, texts=2 * len(examples)))
    if counts[training_texts.CUT]:
        say(
            "what was cut here had the reward of a longer text; score candidates with --student to reward what is learned"
        )
    trainer = make_trainer(model, tokenizer, config, training, validation, out=out, seed=seed)
    left_out = len(pairs) - len(examples)
    result = shared_training.train_and_save(
        trainer, tokenizer, out=out, base=base, examples=len(training), left_out=left_out, say=say
    )
    return replace(result, texts=dict(counts))


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
            max_length=None,  # the texts are cut already
            beta=options.beta,
            loss_type=[options.loss, *(["sft"] if options.sft_weight else [])],
            loss_weights=[1.0, *([options.sft_weight] if options.sft_weight else [])],
            label_smoothing=options.label_smoothing,
            precompute_ref_log_probs=not on_cpu,
        ),
        train_dataset=shared_training.make_dataset([example.to_row() for example in training]),
        eval_dataset=shared_training.make_dataset([example.to_row() for example in validation]) if validation else None,
        processing_class=tokenizer,
        data_collator=_make_collator(tokenizer),
        peft_config=shared_training.make_lora_config(config.lora),
    )
    shared_training.install_cpu_head(trainer)
    if on_cpu:
        _precompute_reference(trainer)
    return trainer


def _make_collator(tokenizer: Any) -> Any:
    """Return TRL's collator for the tokens of our own examples.

    TRL tokenizes the texts of a row too, and adds the end token to each. A passage that did not end would learn to end.
    """
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class ServedTokensCollator(DataCollatorForPreference):  # type: ignore[misc]
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            names = ("prompt_ids", "chosen_ids", "rejected_ids")
            rows = [row | {name: row[f"served_{name}"] for name in names} for row in examples]
            batch: dict[str, Any] = super().torch_call(rows)
            return batch

    return ServedTokensCollator(pad_token_id=tokenizer.pad_token_id)


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
