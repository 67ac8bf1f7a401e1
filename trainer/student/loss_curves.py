"""Progress of a training run: lines for the user, curves.jsonl, and curves.png at the end.

The values are losses, DPO's rewards, and nDCG@10 where the student is evaluated while it trains.

A logged loss is the mean over its window: the steps since the loss that was logged before. Every checkpoint and the last step
end a window. So a run that continues from a checkpoint has the same windows as a run that never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from querylift.trainer.student.best_step import LOSS_KEY, NDCG_KEY, PLAIN_NDCG_KEY

_BLUE, _ORANGE = "#2b6cb0", "#c05621"
EQUAL_REWARDS = "frac_reward_zero_std"
"""GRPO's share of queries whose samples all have the same reward. Nothing is learned from them."""
_NOT_CURVES = ("runtime", "per_second", "total_flos", "train_loss")
"""Parts of the names of logged values that are no curve."""


class CurveRecorder(TrainerCallback):  # type: ignore[misc]
    """Writes the trainer's logs to curves.jsonl, and a line for the user.

    A run that continues from a checkpoint writes no step twice. `clock` returns seconds; only differences matter.
    """

    def __init__(
        self, folder: Path, *, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._say, self._clock = folder / "curves.jsonl", say, clock
        self._start_s, self._start_step, self._window_is_cut = 0.0, 0, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the rows that were logged after the checkpoint."""
        self._start_s, self._start_step = self._clock(), state.global_step
        last_step = max((int(row["step"]) for row in state.log_history if "loss" in row), default=0)
        self._window_is_cut = last_step < state.global_step
        if state.is_world_process_zero:
            rows = [row for row in read_curves(self._path) if row["step"] <= state.global_step]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a window at every checkpoint and at the last step."""
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one row to the file, and one line for the user."""
        row = {key: value for key, value in (logs or {}).items() if _is_curve_value(key, value)}
        if not state.is_world_process_zero or not row.keys() & {"loss", LOSS_KEY, NDCG_KEY}:
            return
        if "loss" in row and self._window_is_cut:  # the steps before the checkpoint are missing from its mean
            self._window_is_cut = False
            return
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, **row}) + "\n")
        self._say(self._format_progress(row, state.global_step, state.max_steps))

    def draw_chart(self) -> None:
        """Draw curves.png beside curves.jsonl, unless nothing was logged."""
        rows = read_curves(self._path)
        if rows:
            draw_curves(rows, self._path.with_suffix(".png"))

    def _format_progress(self, row: Mapping[str, float], step: int, last_step: int) -> str:
        parts = [f"step {step:>5}/{last_step}", *_format_values(row)]
        elapsed_s, steps = self._clock() - self._start_s, step - self._start_step
        if "loss" in row and steps > 0:
            parts.append(f"{_format_duration((last_step - step) * elapsed_s / steps)} left")
        return "  ".join(parts)


def read_curves(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a curves.jsonl, [] when there is no file. A line that a kill left incomplete is skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def compute_mean_loss(history: Sequence[Mapping[str, Any]], *, resumed_at: int) -> float | None:
    """Return the mean training loss over all logged steps, None when no step was logged.

    Each row of `history` with a "loss" gives the mean over the steps since the row before. A row whose steps lie on both
    sides of `resumed_at` is left out, because its earlier steps were lost.
    """
    window_start, total, steps = 0, 0.0, 0
    for row in history:
        if "loss" not in row:
            continue
        if not window_start < resumed_at < row["step"]:
            total += row["loss"] * (row["step"] - window_start)
            steps += row["step"] - window_start
        window_start = row["step"]
    return total / steps if steps else None


class _Curve(NamedTuple):
    """A value of the rows to draw. `name` is its part of the legend. `is_validated` says that validation has it too."""

    key: str
    name: str
    colour: str
    is_validated: bool = True


class _Phase(NamedTuple):
    """When values were logged. `prefix` begins their keys, and `name` is a part of the legend."""

    prefix: str
    name: str
    style: str


_TRAINING, _VALIDATION, _EVALUATION = (
    _Phase("", "training", "-"),
    _Phase("eval_", "validation", "--"),
    _Phase("", "", "-"),
)


class _Panel(NamedTuple):
    """One of the charts side by side. `is_share` fixes the axis from 0 to 1 and draws a line at one half."""

    title: str
    curves: Sequence[_Curve]
    is_share: bool = False
    phases: Sequence[_Phase] = (_TRAINING, _VALIDATION)


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the loss over steps, in training and in validation.

    For DPO, also draw the rewards and the share of pairs that the student ranks right. For GRPO, draw the rewards and the
    share of queries whose samples have equal rewards. Draw nDCG@10 where there is some.
    """
    from matplotlib.figure import Figure

    panels = _choose_panels(rows)
    figure = Figure(figsize=(4.8 * len(panels), 3.4), dpi=120, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, rows, panel)
    figure.savefig(path)


def _choose_panels(rows: Sequence[Mapping[str, Any]]) -> list[_Panel]:
    """Return the panels for what `rows` hold."""
    panels = _choose_stage_panels(rows)
    if any(NDCG_KEY in row for row in rows):
        scores = [_Curve(NDCG_KEY, "student", _BLUE), _Curve(PLAIN_NDCG_KEY, "without expansion", _ORANGE)]
        panels.append(_Panel("nDCG@10 while training", scores, phases=[_EVALUATION]))
    return panels


def _choose_stage_panels(rows: Sequence[Mapping[str, Any]]) -> list[_Panel]:
    """Return the panels of the stage that logged `rows`."""
    loss = [_Curve("loss", "", _BLUE)]
    if any("rewards/chosen" in row for row in rows):
        rewards = [_Curve("rewards/chosen", "chosen", _BLUE), _Curve("rewards/rejected", "rejected", _ORANGE)]
        accuracy = [_Curve("rewards/accuracies", "", _BLUE)]
        return [
            _Panel("loss", loss),
            _Panel("reward", rewards),
            _Panel("share of pairs ranked right", accuracy, is_share=True),
        ]
    if any(EQUAL_REWARDS in row for row in rows):
        reward, equal_rewards = [_Curve("reward", "", _BLUE)], [_Curve(EQUAL_REWARDS, "", _BLUE, is_validated=False)]
        return [
            _Panel("reward", reward),
            _Panel("share of queries with equal rewards", equal_rewards, is_share=True),
        ]
    return [_Panel("loss, nats a token", loss)]


def _draw_panel(axes: Any, rows: Sequence[Mapping[str, Any]], panel: _Panel) -> None:
    for curve in panel.curves:
        for prefix, phase, style in panel.phases if curve.is_validated else panel.phases[:1]:
            points = [(row["step"], row[prefix + curve.key]) for row in rows if prefix + curve.key in row]
            marker = "o" if prefix or len(points) < 3 else ""
            label = ", ".join(word for word in (curve.name, phase) if word)
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, style, color=curve.colour, label=label, marker=marker, ms=3.5, lw=1.4)
    if panel.is_share:
        axes.set_ylim(0, 1.03)
        axes.axhline(0.5, color="#a0aec0", lw=0.8, zorder=0)
    axes.set_xlim(left=0)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e2e8f0", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right" if panel.is_share else "best")


def _format_values(row: Mapping[str, float]) -> list[str]:
    if NDCG_KEY in row:
        return [f"nDCG@10 {row[NDCG_KEY]:.3f}", f"without expansion {row[PLAIN_NDCG_KEY]:.3f}"]
    prefix = "" if "loss" in row else "eval_"
    if f"{prefix}reward" in row:
        return _format_rewards(row, prefix)
    name = "loss" if prefix == "" else "validation loss"
    parts = [f"{name} {row[prefix + 'loss']:.3f}"]
    if f"{prefix}rewards/chosen" in row:
        chosen, rejected = row[f"{prefix}rewards/chosen"], row[f"{prefix}rewards/rejected"]
        parts.append(f"chosen {chosen:+.2f} rejected {rejected:+.2f}")
        parts.append(f"right {row[f'{prefix}rewards/accuracies']:.0%}")
    elif f"{prefix}mean_token_accuracy" in row:
        parts.append(f"tokens right {row[f'{prefix}mean_token_accuracy']:.0%}")
    return parts


def _format_rewards(row: Mapping[str, float], prefix: str) -> list[str]:
    """Return the values of GRPO. Its loss says nothing: at the first update of a batch it is near 0."""
    if prefix:
        return [f"validation reward {row['eval_reward']:+.4f}"]
    return [f"reward {row['reward']:+.4f}", f"equal {row[EQUAL_REWARDS]:.0%}"]


def _is_curve_value(key: str, value: Any) -> bool:
    is_number = isinstance(value, float | int) and math.isfinite(value)
    return is_number and not any(word in key for word in _NOT_CURVES)


def _format_duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
