"""Supervised fine-tuning: the teacher learns to answer the prompt of a pair as the annotations do, reasoning first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.adaptation.adaptation_config import AdaptationConfig, AnswerSftOptions
from querylift.trainer.judge.adaptation.chat_rows import (
    format_answer,
    has_whole_answer,
    make_answer_completion,
    make_prompt,
    raise_on_unsupported_scale,
)
from querylift.trainer.judge.annotations import Annotation, merge_duplicates, read_annotations
from querylift.trainer.judge.prompts import JUDGE_PROMPT_VERSION
from querylift.trainer.student import libraries, models, shared_training
from querylift.trainer.student.sft import NO_LABEL, SftExample, make_trainer
from querylift.trainer.student.shared_training import Say
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.student.training_texts import split_by_query


def train_on_annotations(
    file: Path, config: AdaptationConfig, *, model: str | Path, out: Path, scale: GradeScale, seed: int, say: Say
) -> TrainingResult:
    """Train `model` on the annotations in `file`. Write an adapter (or a whole model), curves and a manifest into `out`.

    A run that was killed continues from its last checkpoint. A run that is complete is not repeated. Raises SettingsError,
    DataError and MissingExtra.
    """
    raise_on_unsupported_scale(scale)
    manifest = shared_training.make_model_manifest(
        out,
        "judge sft",
        {"annotations": file},
        config,
        sections=("sft",),
        base=model,
        seed=seed,
        other_settings={"scale": scale.name, "prompt_version": JUDGE_PROMPT_VERSION},
    )
    return shared_training.train_once(
        manifest, lambda: _train(file, config, base=model, out=out, scale=scale, seed=seed, say=say), out=out, say=say
    )


def make_answer_examples(
    annotations: Iterable[Annotation], tokenizer: Any, options: AnswerSftOptions, scale: GradeScale
) -> list[SftExample]:
    """Return an example for each annotation whose answer is not too long. All have a reasoning and all criteria."""
    examples: list[SftExample] = []
    for annotation in annotations:
        prompt = make_prompt(annotation, scale, tokenizer, max_tokens=options.max_prompt_tokens)
        completion = make_answer_completion(prompt, format_answer(annotation), tokenizer)
        if len(completion.ids) <= options.max_answer_tokens:
            labels = [NO_LABEL] * len(completion.prompt_ids) + completion.ids
            examples.append(SftExample(annotation.query_id, [*completion.prompt_ids, *completion.ids], labels))
    return examples


def _train(
    file: Path, config: AdaptationConfig, *, base: str | Path, out: Path, scale: GradeScale, seed: int, say: Say
) -> TrainingResult:
    annotations = list(read_annotations(file, scale))
    whole_annotations = [annotation for annotation in annotations if has_whole_answer(annotation)]
    merged, conflict_count = merge_duplicates(whole_annotations)
    say(
        f"plan: fine-tune {base} on {len(merged):,} annotated pairs of {file}, {config.sft.epochs:g} epochs; "
        f"{len(annotations) - len(whole_annotations):,} annotations without reasoning or without all criteria are left "
        f"out, and {conflict_count:,} pairs had different grades"
    )
    _raise_when_empty(merged, annotations, file)
    model, tokenizer = models.load_model_and_tokenizer(base, dtype=config.model.dtype, seed=seed)
    examples = make_answer_examples(merged, tokenizer, config.sft, scale)
    if not examples:
        raise SettingsError(
            f"no answer in {file} has at most {config.sft.max_answer_tokens} tokens; set sft.max_answer_tokens higher"
        )
    base = shared_training.store_random_base(base, model, tokenizer, config, out=out)
    training, validation = split_by_query(examples, config.sft.validation_share)
    say(
        f"{len(training)} training answers, {len(validation)} validation answers of other queries, "
        f"on {libraries.choose_device()}; {len(merged) - len(examples)} longer ones are left out"
    )
    trainer = make_trainer(model, tokenizer, config, training, validation, out=out, seed=seed)
    left_out = len(annotations) - len(examples)
    return shared_training.train_and_save(
        trainer, tokenizer, out=out, base=base, examples=len(training), left_out=left_out, say=say
    )


def _raise_when_empty(merged: Sequence[Annotation], annotations: Sequence[Annotation], file: Path) -> None:
    if not merged:
        raise SettingsError(
            f"none of the {len(annotations):,} annotations in {file} has both a reasoning and all criteria; "
            "make some with `querylift judge annotate`"
        )
