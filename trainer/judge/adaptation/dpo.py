"""DPO on the teacher's own answers: it learns to write answers with a higher reward.

The teacher samples several answers for each annotated pair. The reward scores them. The best and the worst one train it, by
`querylift.trainer.student.dpo`. The pairs stay in the output folder, in pairs.jsonl. The answers are a file of their own, so
that another reward or margin can use them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.adaptation.adaptation_config import AdaptationConfig
from querylift.trainer.judge.adaptation.answer_pairs import (
    AnswerPair,
    choose_answers,
    compute_mean_scores,
    write_answer_pairs,
)
from querylift.trainer.judge.adaptation.chat_rows import (
    format_answer,
    has_whole_answer,
    make_answer_completion,
    make_prompt,
    raise_on_unsupported_scale,
)
from querylift.trainer.judge.adaptation.rewards import ScoredAnswer, score_answer
from querylift.trainer.judge.adaptation.sampled_answers import AnswersByPair, sample_missing_answers
from querylift.trainer.judge.annotations import Annotation, merge_duplicates, read_annotations
from querylift.trainer.judge.prompts import JUDGE_PROMPT_VERSION
from querylift.trainer.manifest import Manifest
from querylift.trainer.student import libraries, model_bases, models, shared_training
from querylift.trainer.student.dpo import PreferenceExample, make_trainer, train_with_margin_warning
from querylift.trainer.student.shared_training import Say
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.student.training_texts import split_by_query

if TYPE_CHECKING:
    from querylift.trainer.teaching.sources import ProgressBar

PAIRS_FILE = "pairs.jsonl"


def train_on_own_answers(
    file: Path,
    config: AdaptationConfig,
    *,
    model: str | Path,
    out: Path,
    answers_path: Path | None = None,
    scale: GradeScale,
    seed: int,
    say: Say,
    show_progress: ProgressBar,
) -> TrainingResult:
    """Let `model` answer the pairs of the annotations in `file`, and train it on its best and worst answers.

    Writes the answers to `answers_path`, by default OUT-answers.jsonl, and pairs, an adapter (or a whole model), curves and a
    manifest into `out`. A run that was killed goes on with the answers that it lacks, or from its last checkpoint. A run that
    is complete is not repeated. `examples` of the result counts training pairs, and `left_out` annotations without a pair.
    `show_progress` opens a bar for the sampling. Raises SettingsError, DataError and MissingExtra.
    """
    raise_on_unsupported_scale(scale)
    manifest = shared_training.make_model_manifest(
        out,
        "judge dpo",
        {"annotations": file},
        config,
        sections=("sample", "reward", "dpo"),
        base=model,
        seed=seed,
        other_settings={"scale": scale.name, "prompt_version": JUDGE_PROMPT_VERSION},
    )
    return shared_training.train_once(
        manifest,
        lambda: _train(
            file,
            config,
            base=model,
            out=out,
            answers_path=answers_path or out.with_name(f"{out.name}-answers.jsonl"),
            scale=scale,
            seed=seed,
            say=say,
            show_progress=show_progress,
        ),
        out=out,
        say=say,
    )


def _train(
    file: Path,
    config: AdaptationConfig,
    *,
    base: str | Path,
    out: Path,
    answers_path: Path,
    scale: GradeScale,
    seed: int,
    say: Say,
    show_progress: ProgressBar,
) -> TrainingResult:
    all_annotations = list(read_annotations(file, scale))
    annotations, conflict_count = merge_duplicates(all_annotations)
    say(
        f"plan: {base} writes {config.sample.samples} answers to each of {len(annotations):,} annotated pairs of {file}, "
        f"{config.sample.max_tokens} tokens or fewer; the best and the worst of each train it, "
        f"{config.dpo.epochs:g} epochs; {conflict_count:,} pairs had different grades"
    )
    _check_before_sampling(annotations, file)
    model, tokenizer = models.load_model_and_tokenizer(base, dtype=config.model.dtype, seed=seed)
    prompts = {
        annotation.pair_key: make_prompt(annotation, scale, tokenizer, max_tokens=config.dpo.max_prompt_tokens)
        for annotation in annotations
    }
    answers_manifest = _open_answers_manifest(file, config, base=base, path=answers_path, scale=scale, seed=seed)
    with answers_manifest.record_run(), show_progress("sampling", len(prompts) * config.sample.samples) as advance:
        device = libraries.choose_device()
        answers = sample_missing_answers(
            model.to(device), tokenizer, prompts, config.sample, path=answers_path, seed=seed, progress=advance
        )
    pairs = choose_answer_pairs(annotations, answers, config, scale, say=say)
    if not pairs:
        raise SettingsError(
            f"no pair of answers to {file} differs by dpo.min_margin {config.dpo.min_margin:g} in its reward; "
            "set it lower, sample more answers, or fine-tune the model first"
        )
    write_answer_pairs(pairs, out / PAIRS_FILE)
    base = shared_training.store_random_base(base, model, tokenizer, config, out=out)
    examples = [_make_example(pair, prompts[pair.query_id, pair.doc_id], tokenizer) for pair in pairs]
    training, validation = split_by_query(examples, config.dpo.validation_share)
    say(f"{len(training)} training pairs, {len(validation)} validation pairs of other queries, on {device}")
    trainer = make_trainer(model, tokenizer, config, training, validation, out=out, seed=seed)
    left_out = len(all_annotations) - len(pairs)
    return train_with_margin_warning(trainer, tokenizer, out=out, base=base, left_out=left_out, say=say)


def _check_before_sampling(annotations: Sequence[Annotation], file: Path) -> None:
    if not annotations:
        raise SettingsError(f"{file} has no annotation; make some with `querylift judge annotate`")
    if shared_training.count_processes() > 1:
        raise SettingsError(
            f"adapt dpo samples in one process, and {shared_training.count_processes()} were started; "
            "run it without accelerate launch"
        )


def _open_answers_manifest(
    file: Path, config: AdaptationConfig, *, base: str | Path, path: Path, scale: GradeScale, seed: int
) -> Manifest:
    """Open the manifest of the sampled answers. Their number may grow, and the reward may change."""
    inputs = model_bases.list_model_inputs(base, name="model")
    settings = {
        **config.sample.model_dump(exclude={"samples", "batch_size"}),
        "max_prompt_tokens": config.dpo.max_prompt_tokens,
        "model": "an input" if "model" in inputs else str(base),
        "dtype": config.model.dtype,
        "scale": scale.name,
        "prompt_version": JUDGE_PROMPT_VERSION,
    }
    return Manifest(
        path,
        stage="judge answers",
        inputs={"annotations": file, **inputs},
        settings=settings,
        seed=seed,
        is_folder=False,
    )


def choose_answer_pairs(
    annotations: Sequence[Annotation],
    answers: AnswersByPair,
    config: AdaptationConfig,
    scale: GradeScale,
    *,
    say: Say,
) -> list[AnswerPair]:
    """Return the pair of answers of each annotation that has one. Print the mean reward of all sampled answers."""
    pairs: list[AnswerPair] = []
    all_sampled: list[ScoredAnswer] = []
    for annotation in annotations:
        sampled = [
            score_answer(answers[annotation.pair_key][number], annotation, scale, config.reward)
            for number in range(config.sample.samples)
        ]
        all_sampled += sampled
        chosen_and_rejected = choose_answers(
            sampled, _score_annotation(annotation, config, scale), min_margin=config.dpo.min_margin
        )
        if chosen_and_rejected:
            pairs.append(AnswerPair(*annotation.pair_key, *chosen_and_rejected))
    means = ", ".join(f"{name} {value:.2f}" for name, value in compute_mean_scores(all_sampled).items())
    say(f"sampled answers: {means}; {len(pairs)} of {len(annotations)} annotations give a pair")
    return pairs


def _score_annotation(annotation: Annotation, config: AdaptationConfig, scale: GradeScale) -> ScoredAnswer | None:
    """Return the annotation's own answer with its reward, None when it has no whole answer or must not be chosen."""
    if not config.dpo.include_annotation or not has_whole_answer(annotation):
        return None
    return score_answer(format_answer(annotation), annotation, scale, config.reward)


def _make_example(pair: AnswerPair, prompt: str, tokenizer: Any) -> PreferenceExample:
    return PreferenceExample(
        pair.query_id,
        make_answer_completion(prompt, pair.chosen.text, tokenizer),
        make_answer_completion(prompt, pair.rejected.text, tokenizer),
        margin=pair.chosen.reward - pair.rejected.reward,
    )
