"""The chat template that an untrained model brings. A student has ours, because it reads the served prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from querylift.plugin.chat_template import brings_other_prompt
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY
from querylift.trainer.student.model_bases import is_adapter, read_json_object

_TEMPLATE_FILE, _TOKENIZER_CONFIG, _TEMPLATE_KEY = "chat_template.jinja", "tokenizer_config.json", "chat_template"
_GGUF_TEMPLATE_KEY = "tokenizer.chat_template"


def read_own_template(model: str | Path) -> str | None:
    """Return the chat template of an untrained chat model, a folder or a FILE.gguf.

    The result is None for a student and for a model without a template. It is None, too, when the template writes the very
    prompt that students read, as SmolLM2's does.
    """
    path = Path(model)
    if path.suffix == ".gguf" and path.is_file():
        template = _read_gguf_template(path)
    elif path.is_dir() and not is_adapter(path):
        template = _read_folder_template(path)
    else:
        return None
    return template if brings_other_prompt(template) else None


def _read_folder_template(folder: Path) -> str | None:
    if (folder / _TEMPLATE_FILE).is_file():
        return (folder / _TEMPLATE_FILE).read_text(encoding="utf-8")
    if not (folder / _TOKENIZER_CONFIG).is_file():
        return None
    return _choose_template(read_json_object(folder / _TOKENIZER_CONFIG).get(_TEMPLATE_KEY))


def _choose_template(value: Any) -> str | None:
    """Return the template, or the one named "default" where a model has several."""
    if isinstance(value, list):
        templates = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = templates.get("default")
    return value if isinstance(value, str) else None


def _read_gguf_template(path: Path) -> str | None:
    """Return the template in the metadata. None when the metadata names the prompt that the model was trained for."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    if PROMPT_VERSION_KEY in fields or _GGUF_TEMPLATE_KEY not in fields:
        return None
    return str(fields[_GGUF_TEMPLATE_KEY].contents())
