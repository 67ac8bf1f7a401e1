"""Direct preference optimisation (DPO, arXiv 2305.18290): the student learns which passage helped its query more.

The student before training is the reference model. When it is an adapter, it is merged into its base in memory, and a new
adapter is trained on top. With the new adapter switched off, the model is the reference, so that no second model is held.
The new adapter names the student before training as its base. `models.load_model` merges the whole chain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from querylift.index_tools.evaluation.measures import calculate_mean
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import expansion_from_text
from querylift.trainer.cards.origin import describe_origin
from querylift.trainer.rewards.pair_file import PassagePair, read_passage_pairs
from querylift.trainer.student import libraries, models, schedule, shared_training, training_texts
from querylift.trainer.student.evaluation_callback import (
    EvaluationCallback,
    describe_evaluation,
    make_evaluation,
)
from querylift.trainer.student.search_evaluation import SearchEvaluator
from querylift.trainer.student.shared_training import Say
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.student.training_texts import Completion
from querylift.trainer.training_config import FineTuningConfig, TrainingConfig


class PreferenceExample(NamedTuple):
    """Two passages after one prompt. `margin` is the difference of their rewards."""

    query_id: str
    chosen: Completion
    rejected: Completion
    margin: float = 0.0

    def to_row(self) -> dict[str, Any]:
        """Return a row for TRL's trainer. `ServedTokensCollator` reads our own tokens out of it."""
        length = max(self.chosen.length, self.rejected.length)
        return {
            "prompt": self.chosen.prompt,
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "served_prompt_ids": self.chosen.prompt_ids,
            "served_chosen_ids": self.chosen.ids,
            "served_rejected_ids": self.rejected.ids,
            "reward_margin": self.margin,
            "length": length,
        }


class PreferenceExamples(NamedTuple):
    """Examples, and the counts of their texts by the names in `training_texts`. A pair has two texts."""

    examples: list[PreferenceExample]
    counts: Counter[str]


def train_on_pairs(
    files: Sequence[Path],
    config: TrainingConfig,
    *,
    model: str | Path,
    out: Path,
    seed: int | None = None,
    evaluator: SearchEvaluator | None = None,
    say: Say,
) -> TrainingResult:
    """Train the student `model` on the pairs in `files`. Write an adapter (or a whole model), curves and a manifest.

    `seed` overrides that of `config`. `evaluator` measures the student while it trains. A run that was killed continues
    from its last checkpoint. A run that is complete is not repeated. Raises SettingsError, DataError and MissingExtra.
    """
    seed = config.seed if seed is None else seed
    manifest = shared_training.make_training_manifest(
        out,
        "dpo",
        files,
        config,
        base=model,
        seed=seed,
        other_settings=describe_evaluation(config.evaluation, evaluator),
    )
    return shared_training.train_once(
        manifest,
        lambda: _train(files, config, base=model, out=out, seed=seed, evaluator=evaluator, say=say),
        out=out,
        say=say,
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
            examples[key] = PreferenceExample(pair.query_id, chosen, rejected, pair.margin)
    sides = [side for example in examples.values() for side in (example.chosen, example.rejected)]
    return PreferenceExamples(list(examples.values()), training_texts.count_texts(sides, left_out))


def _train(
    files: Sequence[Path],
    config: TrainingConfig,
    *,
    base: str | Path,
    out: Path,
    seed: int,
    evaluator: SearchEvaluator | None,
    say: Say,
) -> TrainingResult:
    model, tokenizer = models.load_model_and_tokenizer(base, dtype=config.model.dtype, seed=seed)
    pairs = [pair for path in files for pair in read_passage_pairs(path)]
    examples, counts = make_examples(pairs, tokenizer)
    if not examples:
        raise SettingsError(f"{', '.join(map(str, files))} has no pair of passages that differ; name another file")
    training, validation = training_texts.split_by_query(examples, config.dpo.validation_share)
    if config.dpo.margin_offset and not any(example.margin for example in examples):
        raise SettingsError(
            f"dpo.margin_offset is {config.dpo.margin_offset:g}, and no pair of {', '.join(map(str, files))} has a margin; write "
            "the pairs with `querylift train pairs`, or set it to 0"
        )
    device = libraries.choose_device()
    say(f"{len(training)} training pairs, {len(validation)} validation pairs of other queries, on {device}")
    say(training_texts.format_counts(counts, texts=2 * len(examples)))
    if counts[training_texts.CUT]:
        say(
            "some passages were cut after they were scored, so their rewards belong to longer texts; score with --student MODEL"
        )
    trainer = make_trainer(model, tokenizer, config, training, validation, out=out, seed=seed)
    evaluation = make_evaluation(trainer, config.evaluation, evaluator, out=out, say=say)
    left_out = len(pairs) - len(examples)
    result = train_with_margin_warning(
        trainer, tokenizer, out=out, base=base, left_out=left_out, say=say, evaluation=evaluation
    )
    return replace(result, texts=dict(counts), origin=describe_origin(files, config))


def train_with_margin_warning(
    trainer: Any,
    tokenizer: Any,
    *,
    out: Path,
    base: str | Path,
    left_out: int,
    say: Say,
    evaluation: EvaluationCallback | None = None,
) -> TrainingResult:
    """Train a trainer of `make_trainer`, and save the model into `out`. Warn when the training hardly moved the student.

    `left_out` goes into the result.
    """
    rows = trainer.train_dataset
    result = shared_training.train_and_save(
        trainer,
        tokenizer,
        out=out,
        base=base,
        examples=len(rows),
        left_out=left_out,
        say=say,
        evaluation=evaluation,
    )
    warning = schedule.describe_small_margin(
        trainer.state.log_history,
        start=-trainer.margin_offset * calculate_mean(rows["reward_margin"]),
        learning_rate=trainer.args.learning_rate,
        updates=trainer.state.global_step,
    )
    if warning:
        say(warning)
    return result


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
    from trl import DPOConfig

    from querylift.trainer.student.preference_trainer import PreferenceTrainer, ServedTokensCollator

    options = config.dpo
    arguments = shared_training.make_trainer_arguments(
        config, options, out=out, seed=seed, examples=len(training), validate=bool(validation)
    )
    trainer = PreferenceTrainer(
        model=model,
        args=DPOConfig(
            **arguments,
            max_length=None,  # the texts are cut already
            beta=options.beta,
            loss_type=[options.loss, *(["sft"] if options.sft_weight else [])],
            loss_weights=[1.0, *([options.sft_weight] if options.sft_weight else [])],
            label_smoothing=options.label_smoothing,
            precompute_ref_log_probs=True,
        ),
        train_dataset=shared_training.make_dataset([example.to_row() for example in training]),
        eval_dataset=shared_training.make_dataset([example.to_row() for example in validation]) if validation else None,
        processing_class=tokenizer,
        data_collator=ServedTokensCollator(pad_token_id=tokenizer.pad_token_id),
        peft_config=shared_training.make_lora_config(config.lora),
        margin_offset=options.margin_offset,
    )
    shared_training.install_cpu_head(trainer)
    trainer.compute_reference()
    return trainer
