"""Evaluation while a student trains: the log of nDCG@10, the weights of the best step, and early stopping.

Everything that a later evaluation needs stands in the trainer's log, which each checkpoint holds. The weights of the best
step lie beside the checkpoints. Only the first process evaluates and writes. It tells the others what it measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from querylift.plugin.errors import EngineError, SettingsError
from querylift.trainer.student.best_step import BY_LOSS, BY_NDCG, NDCG_KEY, PLAIN_NDCG_KEY, SKIPPED_KEY, Criterion
from querylift.trainer.student.best_weights import BestWeights
from querylift.trainer.student.search_evaluation import SearchEvaluator
from querylift.trainer.student.shared_training import checkpoint_folder
from querylift.trainer.training_config import EvaluationOptions


def describe_evaluation(options: EvaluationOptions, evaluator: SearchEvaluator | None) -> dict[str, Any]:
    """Return what a manifest records of the evaluation, {} when there is none."""
    if not _is_wanted(options, evaluator):
        return {}
    place = {"on": evaluator.name, "index": evaluator.index} if evaluator else {}
    return {"evaluation": {**options.model_dump(mode="json"), **place}}


def make_evaluation(
    trainer: Any,
    options: EvaluationOptions,
    evaluator: SearchEvaluator | None,
    *,
    out: Path,
    say: Callable[[str], None],
    validation_criterion: Criterion = BY_LOSS,
) -> EvaluationCallback | None:
    """Return the evaluation of a training into `out`, None when none is wanted.

    Without an `evaluator`, `validation_criterion` decides which step is the best.

    Raises SettingsError when there is nothing to choose the weights by.
    """
    if not _is_wanted(options, evaluator):
        return None
    if evaluator is None and trainer.eval_dataset is None:
        raise SettingsError(
            f"[evaluation] has keep = {options.keep!r} and patience = {options.patience}, and nothing is evaluated; "
            "name a split with --evaluate-on, or set validation_share above 0"
        )
    criterion = BY_NDCG if evaluator else validation_criterion
    return EvaluationCallback(trainer, options, evaluator, criterion, folder=checkpoint_folder(out), say=say)


def _is_wanted(options: EvaluationOptions, evaluator: SearchEvaluator | None) -> bool:
    return evaluator is not None or options.keep == "best" or options.patience > 0


class EvaluationCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates the student before the first step, every few steps, and after the last.

    `criterion` decides which step is the best. An engine that does not answer costs one evaluation, and not the training. If
    it does not answer before the first step, the training stops, because nothing is lost.
    """

    def __init__(
        self,
        trainer: Any,
        options: EvaluationOptions,
        evaluator: SearchEvaluator | None,
        criterion: Criterion,
        *,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._trainer, self._options, self._evaluator, self._say = trainer, options, evaluator, say
        self._criterion = criterion
        self._weights = BestWeights(folder)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the student as it is before training, unless the run continues from a checkpoint."""
        if state.global_step:
            return
        if self._evaluator:
            self._log_search_scores(control, is_first=True)
        if self._trainer.eval_dataset is not None:
            self._trainer.evaluate()
        if self._evaluator:
            self._follow_log(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate when it is due. The validation loss of the same step is computed too."""
        is_last = state.global_step >= state.max_steps
        is_due = self._evaluator is not None and state.global_step % self._options.every_steps == 0
        if not (is_due or is_last):
            return
        if self._evaluator:
            self._log_search_scores(control)
            self._follow_log(state, control)
        control.should_evaluate = self._trainer.eval_dataset is not None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Follow the validation, when it decides."""
        if self._evaluator is None:
            self._follow_log(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the weights that no checkpoint needs any more."""
        best = self._criterion.find_best(state.log_history)
        if state.is_world_process_zero and best:
            self._weights.remove_others(best.step)

    def load_chosen_weights(self) -> int:
        """Give the model the weights that become the result, and return their step."""
        state = self._trainer.state
        best = self._criterion.find_best(state.log_history)
        if self._options.keep == "last" or best is None or best.step == state.global_step:
            return int(state.global_step)
        self._trainer.accelerator.wait_for_everyone()
        self._weights.load(best.step, self._trainer.accelerator.unwrap_model(self._trainer.model))
        self._trainer.accelerator.wait_for_everyone()  # the first process removes the file afterwards
        return best.step

    def summarise(self, step: int) -> dict[str, float]:
        """Return the values of `step`, whose weights are the result, and the counts of evaluations, for the manifest."""
        history = self._trainer.state.log_history
        best = self._criterion.find_best(history)
        values = {
            key: row[key] for row in history if row["step"] == step for key in (NDCG_KEY, PLAIN_NDCG_KEY) if key in row
        }
        return {
            "step": step,
            "best_step": best.step if best else step,
            **{key.removeprefix("eval_"): value for key, value in values.items()},
            "evaluations": sum(self._criterion.key in row for row in history),
            "skipped": sum(SKIPPED_KEY in row for row in history),
        }

    def _log_search_scores(self, control: Any, *, is_first: bool = False) -> None:
        """Log the scores of the student on the engine, or that there are none."""
        with _evaluation_mode(self._trainer.model), _same_flags(control):
            self._trainer.log(dict(self._share(self._measure(is_first=is_first))))

    def _measure(self, *, is_first: bool) -> Mapping[str, float]:
        """Return the values to log. Only the first process measures."""
        if self._evaluator is None or not self._trainer.is_world_process_zero():
            return {}
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        try:
            scores = self._evaluator.evaluate(model, self._trainer.processing_class)
        except (EngineError, SettingsError) as error:
            if is_first:
                raise
            self._say(f"step {self._trainer.state.global_step}: not evaluated, and the training goes on: {error}")
            return {SKIPPED_KEY: 1.0}
        return {NDCG_KEY: scores.ndcg_at_10, PLAIN_NDCG_KEY: scores.plain_ndcg_at_10}

    def _share(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Return the values of the first process in every process."""
        if self._trainer.args.world_size == 1:
            return values
        from accelerate.utils import broadcast_object_list

        shared = [values]
        broadcast_object_list(shared)
        return shared[0]

    def _follow_log(self, state: Any, control: Any) -> None:
        """Save the weights when this step is the best so far. Stop when the best lies too far back."""
        best = self._criterion.find_best(state.log_history)
        if best is None:
            return
        if best.step == state.global_step and self._options.keep == "best" and state.is_world_process_zero:
            self._weights.save(best.step, self._trainer.accelerator.unwrap_model(self._trainer.model))
            if self._trainer.args.save_strategy == "no":
                self._weights.remove_others(best.step)
        if 0 < self._options.patience <= best.later_evaluations:
            self._say(f"no improvement in {best.later_evaluations} evaluations since step {best.step}; training stops")
            control.should_training_stop = control.should_log = True


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Switch dropout off during the block. TRL also keeps what is logged in the block apart from the training's values."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _same_flags(control: Any) -> Iterator[None]:
    """Restore `should_log` after the block. Logging in the block clears it."""
    should_log = control.should_log
    yield
    control.should_log = should_log
