"""Refuses a model that would judge its own expansions: such a judge prefers its own words to those of others.

A fast expander's encoder counts by its name, like every other model. It is no language model, so it is refused only where
it taught the judge or is the judge. A judge that was trained from the same encoder is another model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from querylift.index_tools.judging.grade_source import OpenedJudge
from querylift.index_tools.judging.grader import Grader
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings

_UNKNOWN_NAMES = frozenset({"", "unknown", "default", "latest", "imported"})
"""Texts that stand where no model is named."""
_FILE_FORM = re.compile(r"[-.](gguf|safetensors|onnx|i?q[0-9][a-z0-9-]*|bf16|fp?16|fp?32|fp8|int[48]|awq|gptq|latest)$")


def normalize_model_name(name: str) -> str:
    """Return the form in which names of models are compared.

    The owner, the letter case and the form of the file do not count: `Qwen/Qwen3-4B` is `qwen3-4b-Q4_K_M.gguf`.
    """
    short_name = name.strip().rstrip("/").rpartition("/")[2].casefold()
    normalized = re.sub(r"[\s_:]+", "-", short_name)
    while (cut := _FILE_FORM.sub("", normalized)) != normalized:
        normalized = cut
    return normalized


def split_model_names(text: str) -> list[str]:
    """Return the models that a text such as "gpt-4o, qwen3-4b" names."""
    return [name.strip() for name in re.split(r"[,;+]|\sand\s", text) if name.strip()]


def check_different_models(expansion_models: Iterable[str], grader: Grader, *, allow_same: bool) -> None:
    """Raise SettingsError when a model that makes expansions is the judge or its teacher, unless `allow_same`."""
    if allow_same:
        return
    if name := _find_same_model(expansion_models, (grader.name, *split_model_names(grader.teacher))):
        raise SettingsError(
            f"{name} makes the expansions and also stands behind the judge {grader.name} "
            f"(taught by {grader.teacher}); use a judge of another model, or allow it with --same-model"
        )


def check_other_model(expansion_models: Iterable[str], model: str) -> None:
    """Raise SettingsError when a model that makes expansions is the large model `model`, which will grade documents."""
    if name := _find_same_model(expansion_models, (model,)):
        raise SettingsError(
            f"{name} makes the expansions and would also judge them; name another --model, or allow it with --same-model"
        )


def _find_same_model(expansion_models: Iterable[str], judging_models: Iterable[str]) -> str:
    """Return the first of the expansions' models that is one of the judging models, or "" when all differ."""
    judging_names = {normalize_model_name(name) for name in judging_models} - _UNKNOWN_NAMES
    names = (name for text in dict.fromkeys(expansion_models) for name in split_model_names(text))
    return next((name for name in names if normalize_model_name(name) in judging_names), "")


def describe_shared_encoder(expansion_models: Iterable[str], base: str) -> str:
    """Return a remark when the judge began as the encoder that makes the expansions, and "" when it did not.

    Such a judge is allowed. It finds the documents relevant that the encoder finds similar, so it favours the expansions.
    """
    if not _find_same_model(expansion_models, (base,)):
        return ""
    return f"it began as {base}, which also makes the expansions, so it shows a larger gain than people see"


def add_encoder_remark(judge: OpenedJudge, expansion_models: Iterable[str]) -> OpenedJudge:
    """Return the judge, whose agreement says so when it began as the encoder that makes the expansions."""
    remark = describe_shared_encoder(expansion_models, judge.base)
    return replace(judge, agreement=f"{judge.agreement}; {remark}") if remark else judge


def list_expansion_models(settings: Settings, generator_names: Iterable[str]) -> list[str]:
    """Return the names of the models behind generators, as far as the settings and their files name them.

    `table` rows may name their model. Raises SettingsError and DataError when a file that is named cannot be read.
    """
    return [model for name in generator_names for model in _list_models(settings, name)]


def _list_models(settings: Settings, generator_name: str) -> list[str]:
    kind, _, argument = generator_name.partition(":")
    if kind in ("http", "https"):
        return [settings.http.model]
    if kind == "llama":
        return [Path(argument or "smollm2-135m").name]
    if kind == "expander":
        from querylift.plugin.fast_expander.expander_folder import read_expander_record

        return [read_expander_record(Path(argument)).encoder]
    if kind == "table":
        from querylift.plugin.generators.table import read_table_rows

        models = (row.get("model") for _, row in read_table_rows(Path(argument)))
        return list(dict.fromkeys(model for model in models if isinstance(model, str)))
    return []
