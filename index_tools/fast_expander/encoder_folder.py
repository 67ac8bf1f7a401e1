"""Reads a folder of sentence-transformers: where its model lies, and how that model reads a text.

Every setting is read as sentence-transformers 6 reads it, or refused in one sentence. Versions before 5.4 wrote one
switch for each kind of pooling, and the longest text into sentence_bert_config.json. Later versions write the name of
the pooling, and the longest text into tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import TOKENIZER_FILE, EncoderSettings, Pooling

SAVED_FOLDER_REMEDY = "name a folder as sentence-transformers saves one"
_OTHER_ENCODER = "name another encoder"
_MODULES = ("Transformer", "Pooling")
_POOLING: Mapping[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
_SENTENCE_FILES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
"""Files with one meaning. The library reads the first that is not empty."""
_TEXT_MODELS: Mapping[str, object] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
"""Settings of a model that reads texts and gives a vector for each token."""
_OTHER_SETTINGS = {"max_seq_length", "do_lower_case", "unpad_inputs", "model_args", "model_kwargs"}
"""The settings that are read, and those that do not change a vector."""
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_NORMALIZER_KEYS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Settings in tokenizer_config.json that go before those in tokenizer.json, and their names there."""


@dataclass(frozen=True, slots=True)
class EncoderFolder:
    """`model_folder` holds config.json and the weights. `tokenizer` is the JSON text of the tokenizer to be served."""

    model_folder: Path
    tokenizer: bytes
    settings: EncoderSettings


def read_encoder_folder(folder: Path) -> EncoderFolder:
    """Return what sentence-transformers would do with `folder`. Raises SettingsError when it is not supported."""
    model_folder, pooling_folder = _find_module_folders(folder)
    sentence_settings = _read_sentence_settings(model_folder)
    tokenizer_settings = read_json_object(model_folder / "tokenizer_config.json", default={})
    max_tokens = _read_max_tokens(model_folder, sentence_settings, tokenizer_settings)
    pooling_config = read_json_object(pooling_folder / "config.json")
    query_prefix, document_prefix = _read_prompts(folder)
    if pooling_config.get("include_prompt") is False and (query_prefix or document_prefix):
        raise SettingsError(
            f"{folder}: its pooling leaves out the prompt {query_prefix or document_prefix!r}, "
            f"which Querylift does not do; {_OTHER_ENCODER}"
        )
    return EncoderFolder(
        model_folder,
        _read_tokenizer(model_folder, tokenizer_settings, lower=sentence_settings.get("do_lower_case") is True),
        EncoderSettings(_read_pooling(folder, pooling_config), max_tokens, query_prefix, document_prefix),
    )


def read_json_object(path: Path, *, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON object in `path`, or `default` when there is no file. Raises SettingsError."""
    if default is not None and not path.is_file():
        return default
    value = _read_json(path)
    if not isinstance(value, dict):
        raise SettingsError(f"{path} holds no JSON object; {SAVED_FOLDER_REMEDY}")
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); {SAVED_FOLDER_REMEDY}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON ({error}); {SAVED_FOLDER_REMEDY}") from None


def _find_module_folders(folder: Path) -> tuple[Path, Path]:
    """Return the folders of the model and of its pooling. Nothing but a length of 1 may follow."""
    path = folder / "modules.json"
    if not path.is_file():
        return folder, folder / "1_Pooling"
    try:
        modules = [(str(module["type"]), str(module["path"])) for module in _read_json(path)]
    except (TypeError, KeyError) as error:
        raise SettingsError(f"{path} cannot be read ({error!r}); {SAVED_FOLDER_REMEDY}") from None
    kinds = [kind.rpartition(".")[2] for kind, _ in modules]
    for (kind, _), name, expected in zip(modules, kinds, [*_MODULES, *["Normalize"] * len(kinds)], strict=False):
        if name != expected or not kind.startswith("sentence_transformers."):
            raise SettingsError(f"{folder}: its module {kind} is not supported; {_OTHER_ENCODER}")
    if len(kinds) < len(_MODULES):
        raise SettingsError(f"{path} names no {_MODULES[len(kinds)]}; {SAVED_FOLDER_REMEDY}")
    _check_lengths(folder, [module_path for _, module_path in modules[2:]])
    for _, module_path in modules:
        if PurePosixPath(module_path).is_absolute() or ".." in PurePosixPath(module_path).parts:
            raise SettingsError(f"{path} names {module_path!r}, which is outside the folder; {SAVED_FOLDER_REMEDY}")
    return folder / modules[0][1], folder / modules[1][1]


def _check_lengths(folder: Path, module_paths: Sequence[str]) -> None:
    """Raise SettingsError when a Normalize module works on anything but the pooled vector."""
    for module_path in module_paths:
        config = read_json_object(folder / module_path / "config.json", default={})
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) not in (None, "sentence_embedding"):
                raise SettingsError(f"{folder}: {key} of {module_path} is {config[key]!r}; {_OTHER_ENCODER}")


def _read_pooling(folder: Path, config: Mapping[str, Any]) -> Pooling:
    switches = {key.removeprefix("pooling_mode_"): on for key, on in config.items() if key.startswith("pooling_mode_")}
    by_default = [name for name, on in switches.items() if on] if switches else "mean"
    modes = config.get("pooling_mode", by_default)
    names = [modes] if isinstance(modes, str) else modes
    if not isinstance(names, list) or len(names) != 1 or str(names[0]) not in _POOLING:
        text = " + ".join(map(str, names)) if isinstance(names, list) else repr(names)
        raise SettingsError(
            f"{folder}: its pooling is {text or 'none'}; only the mean of the tokens or the first token can be read; "
            f"{_OTHER_ENCODER}"
        )
    return _POOLING[names[0]]


def _read_sentence_settings(model_folder: Path) -> dict[str, Any]:
    """Return how the model is asked. Raises SettingsError when a setting would change vectors in a way not known here."""
    files = (model_folder / name for name in _SENTENCE_FILES)
    path, settings = next(
        ((file, value) for file in files if (value := read_json_object(file, default={}))), (model_folder, {})
    )
    for key in ("tokenizer_args", "processor_kwargs"):
        arguments = settings.get(key)
        if isinstance(arguments, dict) and {*arguments} == {"model_max_length"}:
            settings |= {key: None, "max_seq_length": arguments["model_max_length"]}
    for key, value in settings.items():
        if key not in _OTHER_SETTINGS and value not in (None, {}, _TEXT_MODELS.get(key)):
            raise SettingsError(f"{path}: {key} is {value!r}, which is not supported; {_OTHER_ENCODER}")
    return settings


def _read_max_tokens(model_folder: Path, *settings: Mapping[str, Any]) -> int:
    """Return the first length that is set, at most the model's positions."""
    positions = read_json_object(model_folder / "config.json").get("max_position_embeddings", 512)
    lengths = [values[key] for values in settings for key in ("max_seq_length", "model_max_length") if key in values]
    max_tokens = next((length for length in lengths if length is not None), positions)
    for value in (positions, max_tokens):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 3 or value % 1:
            raise SettingsError(f"{model_folder}: it reads {value!r} tokens at most; {SAVED_FOLDER_REMEDY}")
    return int(min(max_tokens, positions))


def _read_prompts(folder: Path) -> tuple[str, str]:
    """Return what goes before a query and before a document.

    The library adds an empty prompt `document` to every folder that it saves. So an empty one does not count here.
    `encode_query` and `encode_document` of the library never use the default prompt.
    """
    path = folder / "config_sentence_transformers.json"
    config = read_json_object(path, default={})
    if (kind := config.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise SettingsError(f"{path}: model_type is {kind!r}; {_OTHER_ENCODER}")
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise SettingsError(f"{path}: prompts is {prompts!r}, not texts by name; {SAVED_FOLDER_REMEDY}")
    default_name = config.get("default_prompt_name")
    if default_name is not None and default_name not in {"query", "document", *prompts}:
        raise SettingsError(
            f"{path}: default_prompt_name is {default_name!r}, and there is no such prompt; {SAVED_FOLDER_REMEDY}"
        )
    document_prompts = filter(None, (prompts.get(name) for name in _DOCUMENT_PROMPTS))
    return prompts.get("query") or "", next(document_prompts, "")


def _read_tokenizer(model_folder: Path, tokenizer_settings: Mapping[str, Any], *, lower: bool) -> bytes:
    """Return the tokenizer's file. It is changed where the settings beside it go first; `lower` writes all in lower case."""
    path = model_folder / TOKENIZER_FILE
    if not path.is_file():
        raise SettingsError(f"{model_folder} has no {TOKENIZER_FILE}; {SAVED_FOLDER_REMEDY}")
    if (side := tokenizer_settings.get("truncation_side", "right")) != "right":
        raise SettingsError(f"{model_folder}: truncation_side is {side!r}, which is not supported; {_OTHER_ENCODER}")
    content = path.read_bytes()
    tokenizer = read_json_object(path)
    original = tokenizer.get("normalizer")
    normalizer = original
    if isinstance(original, dict) and original.get("type") == "BertNormalizer":
        # transformers makes a BERT's normalizer anew from these settings.
        is_bert = "Bert" in str(tokenizer_settings.get("tokenizer_class"))
        changes = {new: tokenizer_settings[old] for old, new in _NORMALIZER_KEYS.items() if old in tokenizer_settings}
        normalizer = {**original, **(changes if is_bert else {})}
    if lower:
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *([normalizer] if normalizer else [])]}
    return content if normalizer == original else json.dumps({**tokenizer, "normalizer": normalizer}).encode()
