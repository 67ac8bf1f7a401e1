"""Programs that show the values of a training, such as TensorBoard. transformers has a reporter for each."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError


def check_reporters(names: Sequence[str]) -> None:
    """Raise SettingsError for the first program of `report_to` whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise SettingsError(
                f"report_to names {name}, which is not installed; run `pip install {name}`, or take it out of report_to"
            )


def place_tensorboard_files(trainer: Any, out: Path) -> None:
    """Make TensorBoard's reporter write into `out`, where the variable TENSORBOARD_LOGGING_DIR does not say otherwise.

    Its own place is the folder of the checkpoints, which is removed at the end.
    """
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(out / "tensorboard")
