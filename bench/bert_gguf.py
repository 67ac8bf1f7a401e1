"""A BERT sentence encoder, as sentence-transformers saves it, as a GGUF file that llama.cpp runs.

WordPiece in llama.cpp's words: a piece that goes on within a word loses its hashes, one that begins a word has U+2581 in front.
The pooling stands in the file, the scaling to length 1 does not: who reads the vectors does it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from safetensors import safe_open

from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import EncoderSettings

Level = Literal["F16", "Q8_0"]
LEVELS: tuple[Level, ...] = ("F16", "Q8_0")
_BEGINS_A_WORD = "\u2581"
_FILE_TYPES = {"F16": gguf.LlamaFileType.MOSTLY_F16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
_POOLING = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS}
_IN_FLOAT32 = "embeddings.token_type_embeddings.weight"
"""One row of it is added to every token: llama.cpp wants it as it is."""
_IN_F16 = "embeddings.position_embeddings.weight"
"""Looked up a row at a time, so that fewer bits would save nothing."""
_LEFT_OUT = ("embeddings.position_ids", "pooler.")
"""Numbers that count up, and a layer that sentence encoders do not use."""


def write_bert(folder: Path, out: Path, level: Level, reading: EncoderSettings) -> None:
    """Write the model in `folder` to `out`, its matrices at `level`. Raises SettingsError where it is no such BERT."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (config.get("architectures") or [""])[0] not in ("BertModel", "BertForMaskedLM"):
        raise SettingsError(f"{folder} holds no BERT; name a sentence-transformers folder with one")
    writer = gguf.GGUFWriter(out, "bert")
    _describe_model(writer, config, level, reading)
    _describe_tokenizer(writer, folder, types=int(config["type_vocab_size"]))
    _add_weights(writer, folder, level, layers=int(config["num_hidden_layers"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe_model(writer: gguf.GGUFWriter, config: dict[str, Any], level: Level, reading: EncoderSettings) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(_FILE_TYPES[level])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(_POOLING[reading.pooling])


def _describe_tokenizer(writer: gguf.GGUFWriter, folder: Path, *, types: int) -> None:
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    tokens = vocabulary[:-1] if vocabulary[-1] == "" else vocabulary
    number = {token: i for i, token in enumerate(tokens)}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_in_their_words(token) for token in tokens])
    writer.add_token_types([int(_type(token)) for token in tokens])
    writer.add_token_type_count(types)
    writer.add_bos_token_id(number["[CLS]"])
    writer.add_eos_token_id(number["[SEP]"])
    writer.add_sep_token_id(number["[SEP]"])
    writer.add_pad_token_id(number["[PAD]"])
    writer.add_unk_token_id(number["[UNK]"])
    writer.add_mask_token_id(number["[MASK]"])


def _is_marked(token: str) -> bool:
    return len(token) > 2 and token.startswith("[") and token.endswith("]")


def _in_their_words(token: str) -> str:
    if _is_marked(token):
        return token
    return token[2:] if token.startswith("##") else _BEGINS_A_WORD + token


def _type(token: str) -> gguf.TokenType:
    if not _is_marked(token):
        return gguf.TokenType.NORMAL
    return gguf.TokenType.UNUSED if token.startswith("[unused") else gguf.TokenType.CONTROL


def _add_weights(writer: gguf.GGUFWriter, folder: Path, level: Level, *, layers: int) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    with safe_open(folder / "model.safetensors", "np") as weights:
        for full in weights.keys():
            name = full.removeprefix("bert.")
            if name.startswith(_LEFT_OUT):
                continue
            theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if theirs is None:
                raise SettingsError(f"{folder}: llama.cpp's BERT has no {full}; name another encoder")
            kind = _number_type(name, level, weights.get_slice(full).get_shape())
            numbers = weights.get_tensor(full).astype(np.float32)
            writer.add_tensor(theirs, gguf.quants.quantize(numbers, kind), raw_dtype=kind)


def _number_type(name: str, level: Level, shape: list[int]) -> gguf.GGMLQuantizationType:
    if len(shape) < 2 or name == _IN_FLOAT32:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType.F16 if name == _IN_F16 else gguf.GGMLQuantizationType[level]
