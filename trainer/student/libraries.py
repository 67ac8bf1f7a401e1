"""The training libraries: torch, transformers, PEFT and TRL. They are checked for, kept offline and kept quiet."""

from __future__ import annotations

import importlib.util
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from querylift.plugin.errors import MissingExtra
from querylift.plugin.telemetry import switch_off_telemetry

_HARMLESS_WARNINGS = (
    r"`[a-z_]+` is deprecated and will be removed in v6",  # PEFT and TRL call functions that transformers has renamed
    r"You are using 'rollout_func', which is an experimental feature",  # requirements/ pins the version of TRL
)


def check_training_packages() -> None:
    """Raise MissingExtra for the first package of the training stack that is not installed."""
    for package in ("torch", "transformers", "peft", "trl", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "train")


def silence_libraries() -> None:
    """Stop the libraries from downloading, sending telemetry and drawing progress bars. Call it before importing them."""
    switch_off_telemetry()
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def hide_harmless_warnings() -> Iterator[None]:
    """Hide the warnings that the libraries raise about each other. Nothing follows from them."""
    with warnings.catch_warnings():
        for message in _HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def choose_device() -> str:
    """Return the device to compute on: "cuda" when there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_number_format(compute: str) -> str:
    """Return `compute`, or for "auto" the faster of "bfloat16" and "float32" on this machine.

    A CPU without instructions for bfloat16 computes with it several times more slowly than with float32.
    """
    import torch

    if compute != "auto":
        return compute
    if choose_device() == "cuda":
        return "bfloat16"
    # On x86, the second check also accepts processors that only imitate bfloat16.
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    is_fast = torch.cpu._is_avx512_bf16_supported() if is_x86 else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if is_fast else "float32"
