"""Small random GGUF models, the levels that are made from them, and what both compute."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp import llama_cpp as api

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY
from querylift.quantize.gguf_file import open_gguf_reader
from querylift.quantize.levels.make_levels import Calibration, Level, make_levels

Array = Any
TensorChange = Callable[[dict[str, Array]], None]

ROWS = [
    {"query": "why do cats purr", "text": "Cats purr by twitching the muscles of their larynx as they breathe."},
    {"query": "what causes a rainbow", "text": "Sunlight is refracted and reflected within drops of water."},
    {"query": "capital of france", "text": "Paris, on the Seine, is the capital and largest city of France."},
]


def write_random_gguf(
    path: Path,
    *,
    hidden: int = 256,
    kind: str = "f16",
    arch: str = "llama",
    change: TensorChange = lambda tensors: None,
) -> Path:
    """Write a model with two random layers and a tokenizer of single bytes. Columns of a weight get inputs of unlike size."""
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // 4)
    writer.add_string(PROMPT_VERSION_KEY, PROMPT_VERSION)
    letters = list_byte_letters()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", *letters, "Ġt"])
    writer.add_token_types([3] + [1] * (len(letters) + 1))
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    tensors = make_random_weights(hidden, vocabulary=len(letters) + 2)
    change(tensors)
    stored = {"f32": np.float32, "f16": np.float16}
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and kind == "bf16":
            halves = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(name, halves, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, tensor.astype(stored[kind]) if tensor.ndim > 1 else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_random_weights(hidden: int, *, vocabulary: int) -> dict[str, Array]:
    """Return random float32 tensors by GGUF name, the same in every call."""
    random = np.random.RandomState(7)  # a generator whose numbers never change
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (hidden // 2, hidden), "attn_v": (hidden // 2, hidden),
        "attn_output": (hidden, hidden), "ffn_gate": (512, hidden), "ffn_up": (512, hidden), "ffn_down": (hidden, 512),
    }  # fmt: skip
    tensors = {"token_embd.weight": random.standard_normal((vocabulary, hidden)).astype("f4")}
    for layer in range(2):
        for name, (rows, columns) in shapes.items():
            weight = random.standard_normal((rows, columns)) / np.sqrt(columns)
            tensors[f"blk.{layer}.{name}.weight"] = weight.astype("f4")
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.exp(random.standard_normal(hidden) - 1).astype("f4")
    return tensors | {"output_norm.weight": np.ones(hidden, "f4")}


def list_byte_letters() -> list[str]:
    """Return byte-level BPE's letter of each byte: the byte itself if printable, else one from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    replacements = iter(range(256, 512))
    return [chr(byte if byte in printable else next(replacements)) for byte in range(256)]


def read_tensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a GGUF file as float32, by name."""
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in open_gguf_reader(path).tensors}


def compute_gguf_logits(path: Path, text: str) -> Array:
    """Return llama.cpp's logits with the model in `path`: a row for each token of `text`, a column for each of the vocabulary."""
    log = api.llama_log_callback(lambda level, line, data: None)
    api.llama_log_set(log, ctypes.c_void_p(0))
    model_params = api.llama_model_default_params()
    model_params.use_extra_bufts = False
    model = api.llama_model_load_from_file(bytes(path), model_params)
    assert model
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    context = api.llama_init_from_model(model, params)
    vocab = api.llama_model_get_vocab(model)
    tokens = (api.llama_token * 256)()
    count = api.llama_tokenize(vocab, text.encode(), len(text.encode()), tokens, 256, True, True)
    batch = api.llama_batch_get_one(tokens, count)
    batch.logits = (ctypes.c_int8 * count)(*[1] * count)
    assert api.llama_decode(context, batch) == 0
    shape = (count, api.llama_vocab_n_tokens(vocab))
    logits = np.ctypeslib.as_array(api.llama_get_logits(context), shape=shape).copy()
    api.llama_free(context)
    api.llama_model_free(model)
    api.llama_log_set(api.llama_log_callback(), ctypes.c_void_p(0))
    return logits


def write_calibration(folder: Path, rows: list[dict[str, str]] = ROWS) -> Calibration:
    """Write `rows` to FOLDER/rows.jsonl and return a calibration with them."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Calibration(file)


def make_levels_by_type(model: Path, out: Path, *types: str, **options: Any) -> dict[str, Level]:
    """Run `make_levels` to its end and return the levels by type."""
    return {level.type: level for level in make_levels(model, out, types, **options)}


def read_make_refusal(model: Path, *types: str, **options: Any) -> str:
    """Return the one sentence with which `make_levels` refuses `model`. Nothing may be written."""
    out = model.parent / "refused"
    with pytest.raises(SettingsError) as error:
        make_levels_by_type(model, out, *(types or ("Q4_0",)), **options)
    assert not out.exists() or not [path.name for path in out.iterdir() if path.name != "importance.gguf"]
    assert "\n" not in str(error.value)
    return str(error.value)


def list_file_names(folder: Path) -> list[str]:
    """Return the names of all files in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
