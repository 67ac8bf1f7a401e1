"""Check what the stages of a pipeline need before the first one runs, so that no run ends in the middle for the lack of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import click

from querylift.index_tools.commands.options import load_settings_with_options
from querylift.index_tools.engine import Engine
from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.trainer.pipeline import CONFIG_OPTIONS
from querylift.trainer.student.libraries import check_training_packages

_STAGES_WITH_TRAINING_PACKAGES = frozenset({"sft", "sample", "dpo", "grpo", "merge", "expander"})
_ENCODER_PACKAGES = ("onnxruntime", "tokenizers")


def check_requirements(contexts: Sequence[click.Context]) -> None:
    """Raise MissingExtra, SettingsError or EngineError when a stage could not run. `contexts` are the parsed stages.

    Nothing is written.
    """
    for context in contexts:
        _check_packages(context)
    checked_indices: set[tuple[tuple[str, ...], str]] = set()
    for context in contexts:
        _check_engine(context, checked_indices)


def _check_packages(context: click.Context) -> None:
    if context.info_name in _STAGES_WITH_TRAINING_PACKAGES:
        check_training_packages()
    if context.info_name == "teach" and context.params.get("expander"):
        for package in _ENCODER_PACKAGES:
            _check_package(package, extra="expander")
    if context.info_name == "teach" and context.params.get("endpoint"):
        _check_package("openai", extra="train")


def _check_package(package: str, *, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, extra)


def _check_engine(context: click.Context, checked_indices: set[tuple[tuple[str, ...], str]]) -> None:
    """Check that the engine of a stage answers, and that it has the index of the stage."""
    index = context.params.get("index")
    if "engine" not in context.params or (index is None and context.info_name != "expander"):
        return
    names_training_file = CONFIG_OPTIONS.get(context.info_name or "") == "config"
    config = None if names_training_file else context.params.get("config")
    settings = load_settings_with_options(config, engine=context.params["engine"])
    if (settings.engine, index or "") in checked_indices:
        return
    with Engine(settings) as engine:
        engine.read_info()
        if index is not None and not engine.has_index(index):
            raise SettingsError(
                f"stage {context.info_name} needs the index {index!r}, which {settings.engine_text} does not have; "
                "build it with `querylift index`, or name another"
            )
    checked_indices.add((settings.engine, index or ""))
