"""How a run goes: a line for a person, a line of curves.jsonl and, at the end, curves.png.

A loss that is logged is the mean over the steps since the one logged before: its window. Every checkpoint and the last step
end a window, so that a run that goes on from a checkpoint has the windows, and the mean, of one that was never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

_TIMING = ("runtime", "per_second", "total_flos", "train_loss")


class Curves(TrainerCallback):  # type: ignore[misc]
    """Records what the trainer logs. A run that goes on from a checkpoint writes no step twice.

    `clock` gives seconds; only differences matter.
    """

    def __init__(
        self, folder: Path, *, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._say, self._clock = folder / "curves.jsonl", say, clock
        self._began_s, self._began_step, self._is_partial = 0.0, 0, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what was logged after the checkpoint that the run goes on from."""
        self._began_s, self._began_step = self._clock(), state.global_step
        self._is_partial = _logged_last(state.log_history) < state.global_step
        if state.is_world_process_zero:
            kept = [row for row in read(self._path) if row["step"] <= state.global_step]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let every checkpoint and the last step end a window."""
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line to the file, and one for the person."""
        row = {key: value for key, value in (logs or {}).items() if _is_curve(key, value)}
        if not state.is_world_process_zero or not ("loss" in row or "eval_loss" in row):
            return
        if "loss" in row and self._is_partial:  # part of its window was lost with the run before
            self._is_partial = False
            return
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, **row}) + "\n")
        self._say(self._line(row, state.global_step, state.max_steps))

    def draw(self) -> None:
        """Write curves.png beside curves.jsonl, where anything was logged."""
        rows = read(self._path)
        if rows:
            draw(rows, self._path.with_suffix(".png"))

    def _line(self, row: Mapping[str, float], step: int, last: int) -> str:
        parts = [f"step {step:>5}/{last}", *_said(row)]
        taken_s, done = self._clock() - self._began_s, step - self._began_step
        if "loss" in row and done > 0:
            parts.append(f"{_duration((last - step) * taken_s / done)} left")
        return "  ".join(parts)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a curves.jsonl: none where there is no file; a line that a kill tore off is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def mean_loss(history: Sequence[Mapping[str, Any]], *, resumed_at: int) -> float | None:
    """The mean training loss of all steps that were logged; None where none was.

    Left out is a window that began before the checkpoint at `resumed_at` and ended after it: its first part was lost.
    """
    before, total, steps = 0, 0.0, 0
    for row in history:
        if "loss" not in row:
            continue
        if not before < resumed_at < row["step"]:
            total += row["loss"] * (row["step"] - before)
            steps += row["step"] - before
        before = row["step"]
    return total / steps if steps else None


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss over steps, in training and on held-out queries; for preferences also the rewards, and how often they are right."""
    from matplotlib.figure import Figure

    preferences = any("rewards/chosen" in row for row in rows)
    loss = "loss" if preferences else "loss, nats a token"
    panels: list[tuple[str, Sequence[tuple[str, str, str]]]] = [(loss, (("loss", "", _BLUE),))]
    if preferences:
        panels.append(("reward", (("rewards/chosen", "chosen", _BLUE), ("rewards/rejected", "rejected", _ORANGE))))
        panels.append(("share of pairs ranked right", (("rewards/accuracies", "", _BLUE),)))
    figure = Figure(figsize=(4.8 * len(panels), 3.4), dpi=120, layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, rows, title, lines)
    figure.savefig(path)


_BLUE, _ORANGE = "#2b6cb0", "#c05621"


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]], title: str, lines: Sequence[tuple[str, str, str]]) -> None:
    for key, name, colour in lines:
        for prefix, label, style in (("", "training", "-"), ("eval_", "held out", "--")):
            points = [(row["step"], row[prefix + key]) for row in rows if prefix + key in row]
            marker = "o" if prefix or len(points) < 3 else ""
            shown = ", ".join(word for word in (name, label) if word)
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=shown, marker=marker, ms=3.5, lw=1.4)
    if title.startswith("share"):
        axes.set_ylim(0, 1.03)
        axes.axhline(0.5, color="#a0aec0", lw=0.8, zorder=0)
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e2e8f0", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right" if title.startswith("share") else "best")


def _said(row: Mapping[str, float]) -> list[str]:
    prefix = "" if "loss" in row else "eval_"
    name = "loss" if prefix == "" else "held-out loss"
    parts = [f"{name} {row[prefix + 'loss']:.3f}"]
    if f"{prefix}rewards/chosen" in row:
        chosen, rejected = row[f"{prefix}rewards/chosen"], row[f"{prefix}rewards/rejected"]
        parts.append(f"chosen {chosen:+.2f} rejected {rejected:+.2f}")
        parts.append(f"right {row[f'{prefix}rewards/accuracies']:.0%}")
    elif f"{prefix}mean_token_accuracy" in row:
        parts.append(f"tokens right {row[f'{prefix}mean_token_accuracy']:.0%}")
    return parts


def _logged_last(history: Sequence[Mapping[str, Any]]) -> int:
    return max((int(row["step"]) for row in history if "loss" in row), default=0)


def _is_curve(key: str, value: Any) -> bool:
    is_number = isinstance(value, float | int) and math.isfinite(value)
    return is_number and not any(word in key for word in _TIMING)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
