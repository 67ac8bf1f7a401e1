"""A training configuration that a small student finishes in seconds."""

from __future__ import annotations

from querylift.trainer.training_config import TrainingConfig, parse_training_config

NO_LABEL = -100
"""The label of a token that the loss ignores."""


def make_tiny_config(base: str = "made:llama", **sections: dict[str, object]) -> TrainingConfig:
    """Return a configuration of two epochs. `sections` overrides options by section."""
    few_steps: dict[str, object] = {
        "validation_share": 0.2,
        "epochs": 2,
        "batch_size": 4,
        "logging_steps": 1,
        "validation_steps": 2,
        "save_steps": 0,
    }
    return parse_training_config(
        {
            "model": {"base": base, "compute": "float32"},
            "lora": {"rank": 4} | sections.get("lora", {}),
            "sft": few_steps | sections.get("sft", {}),
            "dpo": few_steps | sections.get("dpo", {}),
        }
    )


def print_nothing(line: str) -> None:
    """Stand in for `click.echo`."""
    del line
