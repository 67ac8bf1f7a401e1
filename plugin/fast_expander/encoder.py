"""Runs a sentence encoder from an ONNX file: a text becomes a vector of length 1, in about a millisecond on one thread.

It encodes one text at a time, without padding. The scale of eight-bit activations comes from the whole batch, so in a
batch one text's vector would depend on the other texts. onnxruntime releases the interpreter lock while it computes, so
several threads may encode at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.telemetry import switch_off_telemetry

if TYPE_CHECKING:
    import numpy as np

    Vector: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

MODEL_FILE, TOKENIZER_FILE = "encoder.onnx", "tokenizer.json"
_REMEDY = "build the expander again"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MAX_UNKNOWN_SHARE = 0.25
"""Largest share of a text's letters and digits that may be unknown to the tokenizer.

An English tokenizer knows about a third of the letters of a Chinese text.
"""
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How a text becomes a vector.

    The prefix is put before the text, and the text is cut to `max_tokens`. Pooling makes one vector of the tokens' vectors.
    """

    pooling: Pooling
    max_tokens: int
    query_prefix: str = ""
    document_prefix: str = ""


class Encoder:
    """The model and the tokenizer in `folder`. Raises SettingsError when they cannot be used, MissingExtra."""

    def __init__(self, folder: Path, settings: EncoderSettings) -> None:
        self._settings = settings
        self._tokenizer = load_tokenizer(folder / TOKENIZER_FILE, max_tokens=settings.max_tokens)
        self._unknown_id = find_unknown_token_id(self._tokenizer)
        self._session = open_onnx_session(folder / MODEL_FILE)
        self._inputs = {model_input.name for model_input in self._session.get_inputs()}
        if unsupported := sorted(self._inputs.difference(_INPUTS)):
            raise SettingsError(
                f"{folder / MODEL_FILE} needs the input {', '.join(unsupported)}, which Querylift does not have; "
                "use another encoder"
            )
        self._output = self._session.get_outputs()[0].name

    def encode_query(self, text: str) -> Vector:
        """Return the vector of a query: shape (width,), length 1. It is all zeros when the tokenizer knows too little."""
        return self._encode(self._settings.query_prefix, text)

    def encode_document(self, text: str) -> Vector:
        """Return the vector of a document: shape (width,), length 1. It is all zeros when the tokenizer knows too little."""
        return self._encode(self._settings.document_prefix, text)

    def encode_queries(self, texts: Sequence[str], *, threads: int) -> Vector:
        """Return the vectors of queries: shape (texts, width). Each is that of `encode_query`."""
        return _encode_on_threads(self.encode_query, texts, threads)

    def encode_documents(self, texts: Sequence[str], *, threads: int) -> Vector:
        """Return the vectors of documents: shape (texts, width). Each is that of `encode_document`."""
        return _encode_on_threads(self.encode_document, texts, threads)

    def _encode(self, prefix: str, text: str) -> Vector:
        import numpy as np

        text = prefix + text
        encoding = self._tokenizer.encode(text)
        ids = np.array([encoding.ids], dtype=np.int64)
        values = dict(zip(_INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
        tokens = self._session.run([self._output], {name: values[name] for name in self._inputs})[0][0]
        pooled = (tokens if self._settings.pooling == "mean" else tokens[:1]).sum(axis=0)
        if self._is_unreadable(text, encoding, start=len(prefix)):
            return np.zeros_like(pooled, dtype=np.float32)
        return (pooled / max(float(np.linalg.norm(pooled)), 1e-12)).astype(np.float32)  # type: ignore[no-any-return]

    def _is_unreadable(self, text: str, encoding: Any, *, start: int) -> bool:
        """Whether the tokenizer knows too few of the letters and digits from `start` on. Text that is cut does not count."""
        if self._unknown_id not in encoding.ids:
            return False
        cut = max(end for _, end in encoding.offsets)
        unknown_spans = [
            span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token == self._unknown_id
        ]
        unknown_letters = sum(_count_letters(text[max(begin, start) : end]) for begin, end in unknown_spans)
        return unknown_letters > MAX_UNKNOWN_SHARE * _count_letters(text[start:cut])


def _encode_on_threads(encode: Callable[[str], Vector], texts: Sequence[str], threads: int) -> Vector:
    import numpy as np

    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(encode, texts)))


def _count_letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def find_unknown_token_id(tokenizer: Any) -> int | None:
    """Return the id of the token for unknown text, or None when the tokenizer can spell every text."""
    name = getattr(tokenizer.model, "unk_token", None)
    if name is None:  # a unigram model has only the id
        return json.loads(tokenizer.to_str())["model"].get("unk_id")  # type: ignore[no-any-return]
    return tokenizer.token_to_id(name)  # type: ignore[no-any-return]


def load_tokenizer(path: Path, *, max_tokens: int | None = None, remedy: str = _REMEDY) -> Any:
    """Load a tokenizer that does not pad. It cuts texts to `max_tokens`, or not at all. Raises SettingsError, MissingExtra."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra("tokenizers", "expander") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise SettingsError(f"{path} cannot be read as a tokenizer ({error}); {remedy}") from None
    tokenizer.no_padding()
    if max_tokens is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_tokens)
    return tokenizer


def open_onnx_session(path: Path, *, remedy: str = _REMEDY) -> Any:
    """Load an ONNX file that runs on one thread. Raises SettingsError, MissingExtra."""
    switch_off_telemetry()
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "expander") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for every fault, and exports none of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"{path} cannot be read as an encoder ({reason}); {remedy}") from None
