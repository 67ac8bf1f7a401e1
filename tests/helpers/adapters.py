"""Adapters in the format of PEFT, with random weights, and tools to read their GGUF files and their effect on a model."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy

from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.llama.model_file import find_packaged_model
from querylift.quantize.adapters.export_adapter import BaseModelInfo, export_adapter
from querylift.quantize.gguf_file import open_gguf_reader

Weights = dict[str, Any]
SHAPES = {
    "self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576), "mlp.gate_proj": (1536, 576), "mlp.up_proj": (1536, 576), "mlp.down_proj": (576, 1536),
}  # fmt: skip
GGUF_NAMES = dict(
    zip(SHAPES, ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"], strict=True)
)
CONFIG = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False, "init_lora_weights": True,
    "base_model_name_or_path": "smollm2-135m",
}  # fmt: skip
PROMPT = (
    "<|im_start|>system\nYou write short passages for a search engine.<|im_end|>\n<|im_start|>user\n"
    "Write a short passage that answers this search query: what causes a rainbow<|im_end|>\n<|im_start|>assistant\n"
)


def format_weight_name(layer: int, module: str, half: str) -> str:
    """Return PEFT's name of the matrix A or B of a module."""
    return f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"


def make_random_adapter_weights(rank: int = 4) -> Weights:
    """Return random matrices for every linear layer of SmolLM2-135M, large enough to change its output."""
    # RandomState gives the same numbers in every version of numpy.
    random, weights = np.random.RandomState(rank), {}
    for layer in range(30):
        for module, (rows, columns) in SHAPES.items():
            weights[format_weight_name(layer, module, "A")] = (random.standard_normal((rank, columns)) * 0.05).astype(
                "f4"
            )
            weights[format_weight_name(layer, module, "B")] = (random.standard_normal((rows, rank)) * 0.05).astype("f4")
    return weights


def save_adapter(folder: Path, weights: Weights, **changes: object) -> Path:
    """Write the files that PEFT writes for an adapter. `changes` overrides entries of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    safetensors.numpy.save_file(weights, folder / "adapter_model.safetensors")
    return folder


def make_tiny_base(**changes: Any) -> BaseModelInfo:
    """Return the facts of a model with one layer and two heads of four rows each."""
    shapes = {"blk.0.attn_q.weight": (8, 32), "blk.0.attn_v.weight": (8, 32)}
    return replace(BaseModelInfo("tiny.gguf", "00", "llama", 2, 2, shapes, frozenset({"smollm2-135m"})), **changes)


def make_tiny_adapter_weights(module: str = "self_attn.q_proj") -> Weights:
    """Return an adapter of one module for the model of `make_tiny_base`."""
    matrix_b = np.arange(32, dtype="f4").reshape(8, 4)
    return {format_weight_name(0, module, "A"): np.ones((4, 32), "f4"), format_weight_name(0, module, "B"): matrix_b}


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata and the tensors of a GGUF file, the tensors as float32."""
    reader = open_gguf_reader(path)
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("f4") for tensor in reader.tensors
    }
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


def read_export_refusal(folder: Path, base: BaseModelInfo | None = None, **options: Any) -> str:
    """Return the error of an export that must be refused. Assert that it is one line and that nothing was written."""
    out = folder.parent / "refused.gguf"
    with pytest.raises(SettingsError) as error:
        export_adapter(folder, out, base=base or make_tiny_base(), **options)
    assert not list(folder.parent.glob("*refused.gguf*"))
    assert "\n" not in str(error.value)
    return str(error.value)


@contextmanager
def write_float32_model(path: Path, *deltas: Weights) -> Iterator[Path]:
    """Write SmolLM2-135M in float32 with `added` in its weights. Rounding can then hide nothing. It takes half a gigabyte."""
    reader = open_gguf_reader(find_packaged_model())
    weights = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for weight_deltas in deltas:
        weights |= {name: weights[name] + delta for name, delta in weight_deltas.items()}
    _write_model(path, reader, weights)
    try:
        yield path
    finally:
        path.unlink()


def _write_model(path: Path, reader: gguf.GGUFReader, weights: Weights) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if key.startswith("llama."):
            writer.add_key_value(key, field.contents(), field.types[0])
    writer.add_string("tokenizer.ggml.model", "none")
    for name, weight in weights.items():
        writer.add_tensor(name, weight.astype("f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compute_weight_deltas(weights: Weights, scale: float) -> Weights:
    """Return what an adapter adds to each weight, with the rows in the order of the GGUF file."""
    deltas = {}
    for name in [name for name in weights if name.endswith("A.weight")]:
        _, _, _, _, layer, *module, _, _ = name.split(".")
        gguf_name = GGUF_NAMES[".".join(module)]
        delta = scale * weights[name.replace("lora_A", "lora_B")] @ weights[name]
        heads = {"attn_q": 9, "attn_k": 3}.get(gguf_name)
        deltas[f"blk.{layer}.{gguf_name}.weight"] = delta[list_gguf_row_order(heads)] if heads else delta
    return deltas


def list_gguf_row_order(heads: int) -> list[int]:
    """Return the order of rows without using the code under test: 0, 32, 1, 33 ... of each head of 64."""
    return [head * 64 + i + half for head in range(heads) for i in range(32) for half in (0, 32)]


def _tokenize_prompt() -> list[int]:
    from llama_cpp import Llama

    with closing(Llama(str(find_packaged_model()), vocab_only=True, verbose=False)) as model:
        tokens: list[int] = model.tokenize(PROMPT.encode(), add_bos=False, special=True)
    return tokens


def compute_logits(model: Path, adapter: Path | None = None, *, write: int = 0) -> tuple[Any, list[int]]:
    """Return the logits after each token of a prompt, and the `write` tokens that follow.

    llama-cpp-python's own class computes them, not ours.
    """
    from llama_cpp import Llama

    tokens, float32 = _tokenize_prompt(), 0
    model_options: dict[str, Any] = {"lora_path": str(adapter)} if adapter else {}
    llama = Llama(
        str(model), **model_options, logits_all=True, n_ctx=128, n_threads=1, n_threads_batch=1,
        type_k=float32, type_v=float32, verbose=False,
    )  # fmt: skip
    with closing(llama):
        llama.eval(tokens)
        logits, next_tokens = np.array(llama.scores[: len(tokens)]), []
        for position in range(len(tokens) - 1, len(tokens) - 1 + write):
            next_tokens.append(int(llama.scores[position].argmax()))
            llama.eval(next_tokens[-1:])
        return logits, next_tokens
