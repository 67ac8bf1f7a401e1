"""Supervised fine-tuning (SFT): the student learns to write what the teacher wrote, after the served prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import expansion_from_text
from querylift.trainer.candidates import Candidate, read_candidates
from querylift.trainer.cards.origin import describe_origin
from querylift.trainer.student import libraries, models, shared_training, training_texts
from querylift.trainer.student.evaluation_callback import describe_evaluation, make_evaluation
from querylift.trainer.student.search_evaluation import SearchEvaluator
from querylift.trainer.student.shared_training import Say, TrainingExample
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.student.training_texts import Completion
from querylift.trainer.training_config import FineTuningConfig, TrainingConfig, TrainingLoopOptions

NO_LABEL = -100
"""The label of a token that the loss ignores."""


class SftExamples(NamedTuple):
    """Examples, and the counts of their texts by the names in `training_texts`."""

    examples: list[SftExample]
    counts: Counter[str]


class SftExample(NamedTuple):
    """The tokens of a prompt and of the passage after it. The prompt's tokens have no label."""

    query_id: str
    input_ids: list[int]
    labels: list[int]

    def to_row(self) -> dict[str, Any]:
        """Return a row for TRL's trainer."""
        return {"input_ids": self.input_ids, "labels": self.labels, "length": len(self.input_ids)}


def train_on_passages(
    files: Sequence[Path],
    config: TrainingConfig,
    *,
    out: Path,
    base: str | Path | None = None,
    seed: int | None = None,
    evaluator: SearchEvaluator | None = None,
    say: Say,
) -> TrainingResult:
    """Train on the candidates in `files`. Write an adapter (or a whole model), curves and a manifest into `out`.

    `base` and `seed` override those of `config`. `evaluator` measures the student while it trains. A run that was killed
    continues from its last checkpoint. A run that is complete is not repeated. Raises SettingsError, DataError and
    MissingExtra.
    """
    base = config.model.base if base is None else base
    seed = config.seed if seed is None else seed
    manifest = shared_training.make_training_manifest(
        out,
        "sft",
        files,
        config,
        base=base,
        seed=seed,
        other_settings=describe_evaluation(config.evaluation, evaluator),
    )
    return shared_training.train_once(
        manifest,
        lambda: _train(files, config, out=out, base=base, seed=seed, evaluator=evaluator, say=say),
        out=out,
        say=say,
    )


def make_examples(candidates: Iterable[Candidate], tokenizer: Any) -> SftExamples:
    """Return the training examples. Candidates without a word and repeated passages of a query are left out."""
    completions: dict[tuple[str, str], Completion] = {}
    left_out: Counter[str] = Counter()
    for candidate in candidates:
        completion = training_texts.make_completion(candidate.query, candidate.text, tokenizer, ended=candidate.ended)
        key = (candidate.query_id, completion.prompt + completion.text)
        if expansion_from_text(completion.passage) is None:  # no word would be served
            left_out[training_texts.NO_WORDS] += 1
        elif key in completions:
            left_out[training_texts.REPEATED] += 1
        else:
            completions[key] = completion
    examples = [_make_example(query_id, completion) for (query_id, _), completion in completions.items()]
    return SftExamples(examples, training_texts.count_texts(list(completions.values()), left_out))


def _make_example(query_id: str, completion: Completion) -> SftExample:
    labels = [NO_LABEL] * len(completion.prompt_ids) + completion.ids
    return SftExample(query_id, [*completion.prompt_ids, *completion.ids], labels)


def _train(
    files: Sequence[Path],
    config: TrainingConfig,
    *,
    out: Path,
    base: str | Path,
    seed: int,
    evaluator: SearchEvaluator | None,
    say: Say,
) -> TrainingResult:
    model, tokenizer = models.load_model_and_tokenizer(base, dtype=config.model.dtype, seed=seed)
    candidates = [candidate for path in files for candidate in read_candidates(path)]
    examples, counts = make_examples(candidates, tokenizer)
    if not examples:
        raise SettingsError(f"{', '.join(map(str, files))} has no candidate with a word in it; name another file")
    base = shared_training.store_random_base(base, model, tokenizer, config, out=out)
    training, validation = training_texts.split_by_query(examples, config.sft.validation_share)
    device = libraries.choose_device()
    say(f"{len(training)} training passages, {len(validation)} validation passages of other queries, on {device}")
    say(training_texts.format_counts(counts, texts=len(examples)))
    trainer = make_trainer(model, tokenizer, config, training, validation, out=out, seed=seed)
    result = shared_training.train_and_save(
        trainer,
        tokenizer,
        out=out,
        base=base,
        examples=len(training),
        left_out=len(candidates) - len(examples),
        say=say,
        evaluation=make_evaluation(trainer, config.evaluation, evaluator, out=out, say=say),
    )
    return replace(result, texts=dict(counts), origin=describe_origin(files, config))


@libraries.hide_harmless_warnings()
def make_trainer(
    model: Any,
    tokenizer: Any,
    config: FineTuningConfig,
    training: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    *,
    out: Path,
    seed: int,
    options: TrainingLoopOptions | None = None,
) -> Any:
    """Return TRL's trainer for rows of tokens with labels. Nothing is trained yet. `options` replaces `config.sft`."""
    from trl import SFTConfig, SFTTrainer

    options = options or config.sft
    arguments = shared_training.make_trainer_arguments(
        config, options, out=out, seed=seed, examples=len(training), validate=bool(validation)
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments, max_length=None, completion_only_loss=True),
        train_dataset=shared_training.make_dataset([example.to_row() for example in training]),
        eval_dataset=shared_training.make_dataset([example.to_row() for example in validation]) if validation else None,
        processing_class=tokenizer,
        peft_config=shared_training.make_lora_config(config.lora),
    )
    shared_training.install_cpu_head(trainer)
    return trainer
