"""The number of updates decides the learning rate "auto" and how often a training saves."""

from __future__ import annotations

import pytest

from querylift.trainer.student.schedule import (
    choose_learning_rate,
    choose_save_steps,
    count_updates,
    describe_small_margin,
)
from querylift.trainer.training_config import TrainingLoopOptions


@pytest.mark.parametrize(
    ("examples", "processes", "epochs", "updates"),
    [(1, 1, 1, 1), (64, 1, 1, 2), (65, 1, 1, 3), (64, 2, 1, 1), (640, 2, 1.5, 15), (3, 1, 0.1, 1)],
)
def test_updates_are_counted_over_batches_processes_and_accumulation(
    examples: int, processes: int, epochs: float, updates: int
) -> None:
    options = TrainingLoopOptions(batch_size=16, gradient_accumulation=2, epochs=epochs)
    assert count_updates(options, examples=examples, processes=processes) == updates


def test_the_rate_auto_moves_a_student_as_far_in_50_updates_as_in_500() -> None:
    rates = {updates: choose_learning_rate("auto", updates=updates, trains_all_weights=False) for updates in (50, 500)}
    assert rates == {50: pytest.approx(1e-4), 500: pytest.approx(1e-5)}
    assert choose_learning_rate("auto", updates=50, trains_all_weights=True) == pytest.approx(1e-5)
    assert choose_learning_rate("auto", updates=2, trains_all_weights=False) == 2e-4
    assert choose_learning_rate(5e-6, updates=2, trains_all_weights=False) == 5e-6


def test_a_short_training_saves_too_and_0_saves_nothing() -> None:
    assert [choose_save_steps(100, updates=updates) for updates in (1, 8, 55, 4000)] == [1, 2, 13, 100]
    assert choose_save_steps(0, updates=55) == 0


def test_a_margin_that_does_not_rise_is_told_with_the_rate_and_the_updates() -> None:
    logs = [{"loss": 0.69, "rewards/margins": 0.001}, {"loss": 0.68, "rewards/margins": 0.02}, {"eval_loss": 0.6}]
    assert describe_small_margin(logs, start=0.0, learning_rate=5e-6, updates=55) == (
        "the margin of chosen over rejected passages rose by only 0.020 (below 0.1): 55 updates at rate 5e-06 hardly moved "
        "the student; raise dpo.learning_rate or dpo.epochs"
    )
    assert describe_small_margin(logs, start=-0.5, learning_rate=5e-6, updates=55) is None
    assert describe_small_margin([{"loss": 0.6}], start=0.0, learning_rate=5e-6, updates=55) is None
