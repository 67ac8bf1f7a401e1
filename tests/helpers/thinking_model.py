"""A small random Qwen3 that is an untrained chat model: its chat template has a switch for thinking."""

from __future__ import annotations

import json
from pathlib import Path

THINKING_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""As Qwen3's template does, it writes an empty thinking block when thinking is off."""


def write_thinking_qwen(folder: Path) -> Path:
    """Save a random Qwen3 with `THINKING_TEMPLATE`, as a hub has it."""
    from querylift.trainer.student import models

    models.save_model(*models.load_model_and_tokenizer("made:qwen3", texts=["Rain is weather. <think>"] * 9), folder)
    set_template(folder, THINKING_TEMPLATE)
    return folder


def set_template(folder: Path, template: str) -> None:
    """Give the model in `folder` another chat template."""
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    config_path.write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
