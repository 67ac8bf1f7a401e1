"""Switches off what libraries would report about this machine. Nothing of ours reports anything."""

from __future__ import annotations

import os

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime writes a device id under the home folder, and knows a collector
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, through which transformers and TRL report
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # transformers and PEFT would look a model's name up at the hub
}
"""Environment variables and their values. docs/security.md lists them."""


def switch_off_telemetry() -> None:
    """Set `SWITCHES` in the environment of this process and of its children. Call it before the first import of a library.

    The command `querylift` calls it at its start. Modules that may be used without the command call it before they import
    a library that reports.
    """
    os.environ.update(SWITCHES)
