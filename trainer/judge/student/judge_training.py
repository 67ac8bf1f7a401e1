"""Trains a judge on annotations by Contrastive Reasoning Self-Distillation (arXiv 2510.11056), or by a simpler method.

Every step reads a batch twice: without reasoning (the standard pass) and with it (the reasoning pass). Both passes learn the
grade. A third term pulls the standard pass to the reasoning pass, so that it gives what it would give if it had the reasoning.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.trainer.judge.annotations import Annotation
from querylift.trainer.judge.student.judge_model import JudgeModel
from querylift.trainer.judge.student.losses import compute_contrast, compute_divergence, compute_soft_cross_entropy
from querylift.trainer.judge.student.student_config import JudgeConfig
from querylift.trainer.judge.student.training_pairs import choose_balanced_pairs, compute_mean_sums, compute_soft_labels

MAX_CALIBRATION_PAIRS = 1500
"""The number of pairs that the thresholds are chosen on, where there are as many."""
_SORTED_BATCHES = 16
"""Pairs are sorted by length within this many batches, so that a batch has little padding."""
_PREDICTION_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A pair as token ids. `reasoning_texts` is None when the pair has no reasoning."""

    grade: int
    soft_labels: tuple[float, ...]
    standard_texts: tuple[tuple[int, ...], ...]
    reasoning_texts: tuple[tuple[int, ...], ...] | None

    @property
    def length(self) -> int:
        """The number of tokens that the standard pass reads."""
        return sum(map(len, self.standard_texts))


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What a training did. `losses` holds the mean loss of each epoch."""

    pairs: int
    with_reasoning: int
    losses: tuple[float, ...]
    thresholds: tuple[float, ...]


def train_judge(
    model: JudgeModel,
    annotations: Sequence[Annotation],
    config: JudgeConfig,
    scale: GradeScale,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> TrainingSummary:
    """Train `model` in place. `progress` is called with the number of pairs trained so far.

    The thresholds are chosen on a random sample of all annotations. What was not trained on would not do: the pairs to train
    on are balanced, so hardly any of the rare grades would be left.
    """
    import torch

    options = config.training
    torch.manual_seed(options.seed)
    chosen = choose_balanced_pairs(annotations, max_pairs=options.max_pairs, seed=options.seed)
    mean_sums = compute_mean_sums(chosen, scale)
    examples = [make_example(model, annotation, mean_sums, config) for annotation in chosen]
    if model.options.reading == "apart":
        fit_cosine_classifier(model, examples)
    losses = _run_epochs(model, examples, config, progress)
    sample_size = min(len(annotations), MAX_CALIBRATION_PAIRS)
    calibration = random.Random(options.seed).sample(list(annotations), sample_size)
    thresholds = choose_grade_thresholds(
        compute_expected_grades(predict_probabilities(model, calibration)),
        [annotation.grade for annotation in calibration],
        highest=scale.highest,
    )
    reasoning_count = sum(example.reasoning_texts is not None for example in examples)
    return TrainingSummary(len(examples), reasoning_count, tuple(losses), thresholds)


def make_example(
    model: JudgeModel, annotation: Annotation, mean_sums: Sequence[float], config: JudgeConfig
) -> TrainingExample:
    """Return the annotation as token ids. A method that reads no reasoning gets none.

    `mean_sums` are those of `compute_mean_sums`.
    """
    needs_reasoning = config.training.method in ("crsd", "kl") and bool(annotation.reasoning.strip())
    return TrainingExample(
        annotation.grade,
        tuple(compute_soft_labels(annotation, mean_sums)),
        model.tokenize_pair(annotation.query, annotation.document),
        model.tokenize_pair(annotation.query, annotation.document, annotation.reasoning) if needs_reasoning else None,
    )


def fit_cosine_classifier(model: JudgeModel, examples: Sequence[TrainingExample]) -> None:
    """Start the classifier from the cosine alone: the logistic regression of the grades on it. All other weights are 0."""
    import torch

    model.set_training(False)
    pairs = [example.standard_texts for example in examples]
    with torch.no_grad():
        cosines = torch.cat(
            [model.compute_features(batch, keep_states=True)[:, -1:] for batch in _split(pairs, _PREDICTION_BATCH_SIZE)]
        )
    grades = torch.tensor([example.grade for example in examples])
    slope = torch.zeros(model.classifier.out_features, requires_grad=True)
    offset = torch.zeros(model.classifier.out_features, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, offset], max_iter=200)

    def compute_loss() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(cosines * slope + offset, grades) + 1e-4 * slope.square().sum()
        loss.backward()
        return loss

    optimizer.step(compute_loss)
    with torch.no_grad():
        model.classifier.weight[:, -1] = slope
        model.classifier.bias.copy_(offset)


def compute_batch_loss(model: JudgeModel, batch: Sequence[TrainingExample], config: JudgeConfig) -> Any:
    """Return the loss of a batch. Pairs without reasoning count in the standard pass only.

    The contrast needs two pairs with reasoning. It is left out of a batch that has fewer.
    """
    import torch

    method, loss_options = config.training.method, config.loss
    read_again = config.training.epochs > 1
    features = model.compute_features([example.standard_texts for example in batch], keep_states=read_again)
    logits = model.classifier(features)
    grades = torch.tensor([example.grade for example in batch])
    if method == "soft":
        return compute_soft_cross_entropy(logits, torch.tensor([example.soft_labels for example in batch]))
    loss = torch.nn.functional.cross_entropy(logits, grades)
    reasoned = [position for position, example in enumerate(batch) if example.reasoning_texts is not None]
    if not reasoned:
        return loss
    reasoning_pairs = [texts for example in batch if (texts := example.reasoning_texts) is not None]
    reasoning_features = model.compute_features(reasoning_pairs, keep_states=read_again)
    reasoning_logits = model.classifier(reasoning_features)
    loss = loss + loss_options.reasoning_weight * torch.nn.functional.cross_entropy(reasoning_logits, grades[reasoned])
    if len(reasoned) < 2:
        return loss
    if method == "kl":
        pull = compute_divergence(logits[reasoned], reasoning_logits, loss_options)
    else:
        pull = compute_contrast(features[reasoned], reasoning_features, loss_options)
    return loss + loss_options.contrast_weight * pull


def predict_probabilities(
    model: JudgeModel,
    annotations: Sequence[Annotation],
    *,
    with_reasoning: bool = False,
    keep_states: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """Return the probability of each grade for each pair, in their order. `with_reasoning` runs the reasoning pass.

    `keep_states` is that of `JudgeModel.compute_features`.
    """
    import torch

    model.set_training(False)
    pairs = [
        model.tokenize_pair(annotation.query, annotation.document, annotation.reasoning if with_reasoning else "")
        for annotation in annotations
    ]
    order = sorted(range(len(pairs)), key=lambda position: sum(map(len, pairs[position])))
    probabilities: list[list[float]] = [[] for _ in pairs]
    done = 0
    with torch.no_grad():
        for positions in _split(order, _PREDICTION_BATCH_SIZE):
            features = model.compute_features([pairs[position] for position in positions], keep_states=keep_states)
            logits = model.classifier(features)
            for position, row in zip(positions, logits.softmax(dim=1).tolist(), strict=True):
                probabilities[position] = row
            done += len(positions)
            progress(done)
    return probabilities


def compute_expected_grades(probabilities: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean grade of each row: the sum over grades of grade times probability."""
    return [sum(grade * probability for grade, probability in enumerate(row)) for row in probabilities]


def choose_grade_thresholds(
    expected_grades: Sequence[float], grades: Sequence[int], *, highest: int
) -> tuple[float, ...]:
    """Return a threshold for each grade above 0, so that grades become as frequent as in `grades`.

    The threshold of grade g is the expected grade that is reached by as many pairs as were graded g or higher. Where no pair
    was, it lies above all expected grades.
    """
    ordered = sorted(expected_grades)
    thresholds = []
    for grade in range(1, highest + 1):
        position = round(sum(given < grade for given in grades) / len(grades) * len(ordered))
        thresholds.append(ordered[position] if position < len(ordered) else ordered[-1] + 1.0)
    return tuple(thresholds)


def _run_epochs(
    model: JudgeModel, examples: Sequence[TrainingExample], config: JudgeConfig, progress: Callable[[int], None]
) -> list[float]:
    """Train on all examples once for each epoch, and return the mean losses."""
    import torch

    options = config.training
    layer_parameters, classifier_parameters = model.list_layer_parameters(), list(model.classifier.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": layer_parameters, "lr": options.learning_rate},
            {"params": classifier_parameters, "lr": options.classifier_learning_rate},
        ],
        weight_decay=options.weight_decay,
    )
    generator = random.Random(options.seed)
    epochs = [list(_iter_batches(examples, options.batch_size, generator)) for _ in range(options.epochs)]
    step_count = sum(map(len, epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: compute_rate_share(step, step_count, warmup_share=options.warmup_share)
    )
    model.set_training(True)
    losses, done = [], 0
    for batches in epochs:
        total = 0.0
        for batch in batches:
            loss = compute_batch_loss(model, batch, config)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*layer_parameters, *classifier_parameters], options.max_grad_norm)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
            done += len(batch)
            progress(done)
        losses.append(total / len(examples))
    model.set_training(False)
    return losses


def compute_rate_share(step: int, step_count: int, *, warmup_share: float) -> float:
    """Return the share of the learning rate at a step: it rises to 1 during the warm-up, then falls to 0 in a line."""
    warmup_steps = max(1, round(warmup_share * step_count))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (step_count - step) / max(1, step_count - warmup_steps))


def _iter_batches(
    examples: Sequence[TrainingExample], batch_size: int, generator: random.Random
) -> Iterator[list[TrainingExample]]:
    """Yield all examples in batches of similar length, in a random order."""
    shuffled = generator.sample(list(examples), len(examples))
    batches = [
        batch
        for group in _split(shuffled, batch_size * _SORTED_BATCHES)
        for batch in _split(sorted(group, key=lambda example: example.length), batch_size)
    ]
    generator.shuffle(batches)
    yield from batches


def _split(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
