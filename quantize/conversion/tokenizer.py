"""A byte-level BPE tokenizer as transformers saves it, in the words of llama.cpp.

tokenizer.json describes a tokenizer by its parts, of which llama.cpp knows some combinations by a name. Whatever is not one of
them is refused: a model that reads other tokens than it was trained on writes nonsense, and nothing says so.

llama.cpp leaves out the normalizer NFC, which Qwen's tokenizers have: text that is not in that form already (an accent after
its letter, as a character of its own) becomes other tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import STOP
from querylift.quantize.files import read_json

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
END = STOP[0]
"""The token that ends a turn in ChatML, and so a passage."""
_START = "<|im_start|>"
_REMEDY = "save the model with its tokenizer again"
# Qwen's way to cut a text, which is a constant of its tokenizers.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_PRE_TOKENIZERS: Mapping[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES],
    "qwen2": [
        {"type": "Split", "pattern": {"Regex": _QWEN2}, "behavior": "Isolated", "invert": False},
        {**_BYTES, "use_regex": False},
    ],
}
"""The ways to cut a text into words that llama.cpp knows by a name, in the parts of tokenizer.json."""
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "type": ("BPE",),
    "ignore_merges": (False, None),
    "byte_fallback": (False, None),
    "dropout": (None, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id with GGUF's type of each, and what else a GGUF file says of a tokenizer. `unknown` may be absent.

    `pre` is the name by which llama.cpp knows how words are cut. `template` is "" where the folder has none.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    start: int
    end: int
    padding: int
    unknown: int | None
    template: str


def read_vocabulary(folder: Path, *, size: int) -> Vocabulary:
    """The tokenizer of `folder`, filled up with unused tokens to the `size` of the model's vocabulary.

    A text ends with `END` whatever the folder says: it is what the students write. Raises SettingsError where the tokenizer
    is none of ChatML, or does what llama.cpp does not.
    """
    path = folder / TOKENIZER
    described = read_json(path, remedy=_REMEDY)
    settings = read_json(folder / CONFIG, remedy=_REMEDY)
    try:
        _check_plain(described, settings, path)
        pre = pre_tokenizer(described.get("pre_tokenizer"), path)
        tokens, types = _tokens(described, path, size=size)
        merges = tuple(_merge(pair, path) for pair in described["model"]["merges"])
        template = _template(folder, settings)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as a tokenizer ({error!r}); {_REMEDY}") from None
    ids = {token: number for number, token in enumerate(tokens)}
    end = _chatml(ids, types, path)
    padding = _special("pad_token", settings, ids)
    start = _special("bos_token", settings, ids)
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=merges,
        pre=pre,
        # llama.cpp takes token 11 for it where nothing is said.
        start=next(one for one in (start, padding, end) if one is not None),
        end=end,
        padding=end if padding is None else padding,
        unknown=_special("unk_token", settings, ids),
        template=template,
    )


def pre_tokenizer(described: Mapping[str, Any] | None, path: Path) -> str:
    """llama.cpp's name of what `path` describes as its pre_tokenizer. Raises SettingsError where it has none."""
    parts = _parts(described or {}, "pretokenizers")
    for name, wanted in _PRE_TOKENIZERS.items():
        if len(parts) == len(wanted) and all(map(_is, parts, wanted)):
            return name
    found = ", ".join(_named(part) for part in parts) or "none"
    known = ", ".join(_PRE_TOKENIZERS)
    raise SettingsError(
        f"{path}: the pre_tokenizer ({found}) is none that llama.cpp knows as {known}; use another model"
    )


def _is(part: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether `part` says what is wanted; `use_regex` is true where a part says nothing, as older ones do."""
    said = {"use_regex": True, **part}
    return all(said.get(key) == value for key, value in wanted.items())


def _named(part: Mapping[str, Any]) -> str:
    """A part by its type and what it is told, but for what only matters to offsets."""
    told = {key: value for key, value in part.items() if key not in ("type", "trim_offsets")}
    return f"{part.get('type')} {told}" if told else str(part.get("type"))


def _parts(described: Mapping[str, Any], inside: str) -> list[dict[str, Any]]:
    """The members of a sequence, or the one thing that it is."""
    return list(described[inside]) if described.get("type") == "Sequence" else [dict(described)] if described else []


def _check_plain(described: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    for key, plain in _PLAIN.items():
        found = described["model"].get(key)
        if found not in plain:
            raise SettingsError(f"{path}: {key} is {found!r}; only {plain[0]!r}, of a byte-level BPE, can be exported")
    for part in _parts(described.get("normalizer") or {}, "normalizers"):
        if part["type"] != "NFC":
            raise SettingsError(f"{path}: the normalizer {_named(part)} is none that llama.cpp has; use another model")
    for key in ("add_bos_token", "add_eos_token", "add_prefix_space"):
        if settings.get(key):
            raise SettingsError(
                f"{path.with_name(CONFIG)}: {key} is true; only a model that adds nothing can be exported"
            )
    if any(map(_adds_tokens, _parts(described.get("post_processor") or {}, "processors"))):
        raise SettingsError(
            f"{path}: the post_processor adds tokens to a text; only one that adds none can be exported"
        )


def _adds_tokens(part: Mapping[str, Any]) -> bool:
    if part["type"] == "TemplateProcessing":
        return any("SpecialToken" in piece for piece in part["single"])
    return bool(part["type"] != "ByteLevel")


def _tokens(described: Mapping[str, Any], path: Path, *, size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tokens and their types by id: a gap, and all that the model has beyond its tokenizer, is an unused token."""
    named = {int(number): str(token) for token, number in described["model"]["vocab"].items()}
    types = dict.fromkeys(named, int(TokenType.NORMAL))
    for added in described["added_tokens"]:
        _check_added(added, path)
        named[added["id"]] = added["content"]
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if max(named, default=-1) >= size:
        raise SettingsError(f"{path} has a token {max(named)}, and the model's vocab_size is {size}; {_REMEDY}")
    tokens = tuple(named.get(number, f"[PAD{number}]") for number in range(size))
    twice, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        raise SettingsError(f"{path} gives {twice} two ids; {_REMEDY}")
    return tokens, tuple(types.get(number, int(TokenType.UNUSED)) for number in range(size))


def _check_added(added: Mapping[str, Any], path: Path) -> None:
    for key in ("lstrip", "rstrip", "single_word"):
        if added.get(key):
            raise SettingsError(
                f"{path}: {key} of {added['content']} is true, which llama.cpp does not know; set it false"
            )


def _merge(pair: str | list[str], path: Path) -> str:
    """ "a b", as older files have it and GGUF wants it."""
    text = pair if isinstance(pair, str) else " ".join(pair)
    if text.count(" ") != 1:
        raise SettingsError(f"{path} merges {text!r}, which is no pair of byte-level tokens; {_REMEDY}")
    return text


def _chatml(ids: Mapping[str, int], types: tuple[int, ...], path: Path) -> int:
    """The id of `END`, once it is sure that the tokenizer has the marks of a turn."""
    for token in (_START, END):
        if token not in ids or types[ids[token]] == TokenType.NORMAL:
            raise SettingsError(f"{path} has no token {token}; name a model that speaks ChatML, as SmolLM2 and Qwen do")
    return ids[END]


def _special(key: str, settings: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """The id of a special token, which stands there as text, or as an object in older folders."""
    value = settings.get(key)
    return ids.get(str(value.get("content") if isinstance(value, dict) else value))


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    try:
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    except FileNotFoundError:
        named = settings.get("chat_template") or ""
    except OSError as error:
        raise SettingsError(f"{folder / TEMPLATE} cannot be read ({error.strerror}); {_REMEDY}") from None
    if isinstance(named, list):  # several, by name
        return next((str(one["template"]) for one in named if one["name"] == "default"), "")
    return str(named)
