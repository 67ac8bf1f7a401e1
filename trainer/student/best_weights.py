"""The weights of the best step of a training run: a file of the trained weights for each step that was the best."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class BestWeights:
    """Files best-STEP.safetensors in `folder`. They hold the weights that are trained: those of an adapter, or all.

    The file of an earlier best step is removed only after a checkpoint has recorded the later one. So a run that is killed
    in between goes on with the earlier one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, model: Any) -> None:
        """Write the trained weights of `model`."""
        from safetensors.torch import save_file

        weights = {
            name: weight.detach().contiguous() for name, weight in model.named_parameters() if weight.requires_grad
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._find_path(step)
        incomplete = path.with_suffix(".incomplete")
        save_file(weights, incomplete)
        os.replace(incomplete, path)

    def load(self, step: int, model: Any) -> None:
        """Give `model` the weights of `step`."""
        from safetensors.torch import load_file

        model.load_state_dict(load_file(self._find_path(step)), strict=False)

    def remove_others(self, step: int) -> None:
        """Remove the files of all other steps."""
        for path in self._folder.glob("best-*"):
            if path != self._find_path(step):
                path.unlink()

    def _find_path(self, step: int) -> Path:
        return self._folder / f"best-{step}.safetensors"
