"""Read a byte-level BPE tokenizer as transformers saves it, and describe it for llama.cpp.

tokenizer.json describes a tokenizer by its parts. llama.cpp has names for some combinations of parts. All others are refused:
a model that reads other tokens than in its training writes nonsense, without an error.

One difference remains. Qwen's tokenizers normalize a text to NFC, and llama.cpp does not. A text that is not in NFC, such as
one with an accent as a separate character after its letter, becomes other tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import STOP_STRINGS
from querylift.plugin.files import read_json_object

TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
END_TOKEN = STOP_STRINGS[0]
"""The token that ends a turn in ChatML, and so ends a passage."""
_START_TOKEN = "<|im_start|>"
_REMEDY = "save the model with its tokenizer again"
# How Qwen's tokenizers split a text into words. The pattern is the same in all of them.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_PRE_TOKENIZERS: Mapping[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    "qwen2": [
        {"type": "Split", "pattern": {"Regex": _QWEN2_PATTERN}, "behavior": "Isolated", "invert": False},
        {**_BYTE_LEVEL, "use_regex": False},
    ],
}
"""llama.cpp's names of pre-tokenizers, which split a text into words, with their parts in tokenizer.json."""
_SUPPORTED_VALUES: Mapping[str, tuple[object, ...]] = {
    "type": ("BPE",),
    "ignore_merges": (False, None),
    "byte_fallback": (False, None),
    "dropout": (None, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}


@dataclass(frozen=True, slots=True)
class BpeTokenizer:
    """What a GGUF file holds of a tokenizer: tokens by id, GGUF's type of each, and ids of special tokens.

    `pre_tokenizer` is llama.cpp's name. `chat_template` is "" when the folder has none.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre_tokenizer: str
    start_id: int
    end_id: int
    padding_id: int
    unknown_id: int | None
    chat_template: str


def read_tokenizer(folder: Path, *, size: int) -> BpeTokenizer:
    """Read the tokenizer of `folder` and add unused tokens up to `size`, the model's vocabulary.

    A text always ends with `END_TOKEN`, which is what students write. Raises SettingsError when the tokenizer does not
    use ChatML, or does something that llama.cpp does not.
    """
    path = folder / TOKENIZER_FILE
    parts = read_json_object(path, remedy=_REMEDY)
    settings = read_json_object(folder / CONFIG_FILE, remedy=_REMEDY)
    try:
        _check_supported(parts, settings, path)
        pre_tokenizer = find_pre_tokenizer(parts.get("pre_tokenizer"), path)
        tokens, types = _read_tokens(parts, path, size=size)
        merges = tuple(_format_merge(pair, path) for pair in parts["model"]["merges"])
        chat_template = _read_chat_template(folder, settings)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as a tokenizer ({error!r}); {_REMEDY}") from None
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    end_id = _find_end_token(ids, types, path)
    padding_id = _find_special_token("pad_token", settings, ids)
    start_id = _find_special_token("bos_token", settings, ids)
    return BpeTokenizer(
        tokens=tokens,
        types=types,
        merges=merges,
        pre_tokenizer=pre_tokenizer,
        # llama.cpp would take token 11 if the file named none.
        start_id=next(token_id for token_id in (start_id, padding_id, end_id) if token_id is not None),
        end_id=end_id,
        padding_id=end_id if padding_id is None else padding_id,
        unknown_id=_find_special_token("unk_token", settings, ids),
        chat_template=chat_template,
    )


def find_pre_tokenizer(pre_tokenizer: Mapping[str, Any] | None, path: Path) -> str:
    """Return llama.cpp's name of a pre_tokenizer in `path`. Raises SettingsError when llama.cpp does not have it."""
    parts = _list_parts(pre_tokenizer or {}, "pretokenizers")
    for name, known_parts in _PRE_TOKENIZERS.items():
        if len(parts) == len(known_parts) and all(map(_matches_part, parts, known_parts)):
            return name
    description = ", ".join(map(_format_part, parts)) or "none"
    known_names = ", ".join(_PRE_TOKENIZERS)
    raise SettingsError(
        f"{path}: llama.cpp does not have the pre_tokenizer ({description}), only {known_names}; use another model"
    )


def _matches_part(part: Mapping[str, Any], known_part: Mapping[str, Any]) -> bool:
    """Return whether `part` has the settings of `known_part`. Older files leave out `use_regex`, which is then true."""
    settings = {"use_regex": True, **part}
    return all(settings.get(key) == value for key, value in known_part.items())


def _format_part(part: Mapping[str, Any]) -> str:
    """Return a part's type and settings, without the one that only concerns offsets."""
    settings = {key: value for key, value in part.items() if key not in ("type", "trim_offsets")}
    return f"{part.get('type')} {settings}" if settings else str(part.get("type"))


def _list_parts(part: Mapping[str, Any], member_key: str) -> list[dict[str, Any]]:
    """Return the members of a sequence, or the single part itself."""
    if part.get("type") == "Sequence":
        return list(part[member_key])
    return [dict(part)] if part else []


def _check_supported(parts: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    for key, values in _SUPPORTED_VALUES.items():
        value = parts["model"].get(key)
        if value not in values:
            raise SettingsError(f"{path}: {key} is {value!r}; only {values[0]!r}, of a byte-level BPE, can be exported")
    for normalizer in _list_parts(parts.get("normalizer") or {}, "normalizers"):
        if normalizer["type"] != "NFC":
            raise SettingsError(
                f"{path}: llama.cpp does not have the normalizer {_format_part(normalizer)}; use another model"
            )
    for key in ("add_bos_token", "add_eos_token", "add_prefix_space"):
        if settings.get(key):
            raise SettingsError(
                f"{path.with_name(CONFIG_FILE)}: {key} is true; only a model that adds nothing can be exported"
            )
    if any(map(_adds_tokens, _list_parts(parts.get("post_processor") or {}, "processors"))):
        raise SettingsError(
            f"{path}: the post_processor adds tokens to a text; only one that adds none can be exported"
        )


def _adds_tokens(processor: Mapping[str, Any]) -> bool:
    if processor["type"] == "TemplateProcessing":
        return any("SpecialToken" in piece for piece in processor["single"])
    return bool(processor["type"] != "ByteLevel")


def _read_tokens(parts: Mapping[str, Any], path: Path, *, size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return tokens and their types by id. An id that the tokenizer does not use gets an unused token."""
    tokens_by_id = {int(token_id): str(token) for token, token_id in parts["model"]["vocab"].items()}
    types = dict.fromkeys(tokens_by_id, int(TokenType.NORMAL))
    for added_token in parts["added_tokens"]:
        _check_added_token(added_token, path)
        token_type = TokenType.CONTROL if added_token["special"] else TokenType.USER_DEFINED
        tokens_by_id[added_token["id"]] = added_token["content"]
        types[added_token["id"]] = int(token_type)
    largest_id = max(tokens_by_id, default=-1)
    if largest_id >= size:
        raise SettingsError(f"{path} has a token {largest_id}, but the model's vocab_size is {size}; {_REMEDY}")
    tokens = tuple(tokens_by_id.get(token_id, f"[PAD{token_id}]") for token_id in range(size))
    commonest_token, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        raise SettingsError(f"{path} gives {commonest_token} two ids; {_REMEDY}")
    return tokens, tuple(types.get(token_id, int(TokenType.UNUSED)) for token_id in range(size))


def _check_added_token(added_token: Mapping[str, Any], path: Path) -> None:
    for key in ("lstrip", "rstrip", "single_word"):
        if added_token.get(key):
            raise SettingsError(
                f"{path}: {key} of {added_token['content']} is true, which llama.cpp does not support; set it to false"
            )


def _format_merge(pair: str | list[str], path: Path) -> str:
    """Return a merge as "a b", the form of GGUF and of older files."""
    merge = pair if isinstance(pair, str) else " ".join(pair)
    if merge.count(" ") != 1:
        raise SettingsError(f"{path} merges {merge!r}, which is not a pair of byte-level tokens; {_REMEDY}")
    return merge


def _find_end_token(ids: Mapping[str, int], types: tuple[int, ...], path: Path) -> int:
    """Return the id of `END_TOKEN`. Raises SettingsError when the tokenizer lacks a special token of ChatML."""
    for token in (_START_TOKEN, END_TOKEN):
        if token not in ids or types[ids[token]] == TokenType.NORMAL:
            raise SettingsError(f"{path} has no token {token}; name a model that uses ChatML, such as SmolLM2 or Qwen")
    return ids[END_TOKEN]


def _find_special_token(key: str, settings: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """Return the id of a special token. Its setting is a text, or an object in older folders."""
    value = settings.get(key)
    return ids.get(str(value.get("content") if isinstance(value, dict) else value))


def _read_chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    try:
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        template = settings.get("chat_template") or ""
    except OSError as error:
        raise SettingsError(f"{folder / TEMPLATE_FILE} cannot be read ({error.strerror}); {_REMEDY}") from None
    if isinstance(template, list):  # several templates with names
        return next((str(entry["template"]) for entry in template if entry["name"] == "default"), "")
    return str(template)
