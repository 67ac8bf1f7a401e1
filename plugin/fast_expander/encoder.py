"""A sentence encoder as an ONNX file: one text in, one vector of length 1 out, about a millisecond on one thread.

One text at a time, without padding: eight-bit activations are scaled by what is in the batch, so that a text's vector
would depend on its neighbours'. onnxruntime gives the interpreter free while it computes: several threads may ask at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from querylift.plugin.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    import numpy as np

    Vector: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

MODEL, TOKENIZER = "encoder.onnx", "tokenizer.json"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MOST_UNKNOWN = 0.25
"""Share of a text's letters that may be in tokens which the tokenizer does not know. Of Chinese an English one knows a third."""
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a text becomes a vector: of its first `max_tokens`, those of the words pooled. The prefixes go before the text."""

    pooling: Pooling
    max_tokens: int
    query_prefix: str = ""
    document_prefix: str = ""


class Encoder:
    """The model and the tokenizer in `folder`. Raises SettingsError where they are none, MissingExtra."""

    def __init__(self, folder: Path, reading: Reading) -> None:
        self._reading = reading
        self._tokenizer = _tokenizer(folder / TOKENIZER, reading.max_tokens)
        self._unknown = _unknown(self._tokenizer)
        self._session = open_session(folder / MODEL)
        self._inputs = {given.name for given in self._session.get_inputs()}
        if unknown := sorted(self._inputs.difference(_INPUTS)):
            raise SettingsError(
                f"{folder / MODEL} asks for {', '.join(unknown)}, which is not given; use another encoder"
            )
        self._output = self._session.get_outputs()[0].name

    def query(self, text: str) -> Vector:
        """The vector of a query: shape (width,), length 1; all zeros for a text in words that the tokenizer does not know."""
        return self._encode(self._reading.query_prefix, text)

    def document(self, text: str) -> Vector:
        """The vector of a document, of the same shape."""
        return self._encode(self._reading.document_prefix, text)

    def _encode(self, prefix: str, text: str) -> Vector:
        import numpy as np

        text = prefix + text
        encoded = self._tokenizer.encode(text)
        ids = np.array([encoded.ids], dtype=np.int64)
        known = dict(zip(_INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
        tokens = self._session.run([self._output], {name: known[name] for name in self._inputs})[0][0]
        pooled = (tokens if self._reading.pooling == "mean" else tokens[:1]).sum(axis=0)
        if self._is_unreadable(text, encoded, start=len(prefix)):
            return np.zeros_like(pooled, dtype=np.float32)
        return (pooled / max(float(np.linalg.norm(pooled)), 1e-12)).astype(np.float32)  # type: ignore[no-any-return]

    def _is_unreadable(self, text: str, encoded: Any, *, start: int) -> bool:
        """Whether too many letters and digits from `start` on, as far as they are read, are in tokens that are unknown."""
        if self._unknown not in encoded.ids:
            return False
        read = max(end for _, end in encoded.offsets)
        spans = [span for number, span in zip(encoded.ids, encoded.offsets, strict=True) if number == self._unknown]
        unknown = sum(_letters(text[max(first, start) : end]) for first, end in spans)
        return unknown > MOST_UNKNOWN * _letters(text[start:read])


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def _unknown(tokenizer: Any) -> int | None:
    """The number of the token for what the tokenizer does not know; None where it spells everything out."""
    name = getattr(tokenizer.model, "unk_token", None)
    if name is None:  # a unigram model has the number only
        return json.loads(tokenizer.to_str())["model"].get("unk_id")  # type: ignore[no-any-return]
    return tokenizer.token_to_id(name)  # type: ignore[no-any-return]


def _tokenizer(path: Path, max_tokens: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra("tokenizers", "expander") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise SettingsError(f"{path} cannot be read as a tokenizer ({error}); build the expander again") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def open_session(path: Path) -> Any:
    """The ONNX file on one thread. Raises SettingsError, MissingExtra."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "expander") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for every fault, none of them public
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"{path} cannot be read as an encoder ({reason}); build the expander again") from None
