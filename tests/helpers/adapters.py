"""Adapters as PEFT saves them, made on the spot; what becomes of them as GGUF files; what they do to a model."""

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
from querylift.plugin.generators.llama.model_file import packaged_model
from querylift.quantize.adapters.export_adapter import Base, export_adapter

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


def weight_name(layer: int, module: str, half: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"


def random_weights(rank: int = 4) -> Weights:
    """Random matrices for every linear layer of SmolLM2-135M, large enough to change what it writes."""
    random, weights = np.random.RandomState(rank), {}  # a generator whose numbers never change
    for layer in range(30):
        for module, (rows, columns) in SHAPES.items():
            weights[weight_name(layer, module, "A")] = (random.standard_normal((rank, columns)) * 0.05).astype("f4")
            weights[weight_name(layer, module, "B")] = (random.standard_normal((rows, rank)) * 0.05).astype("f4")
    return weights


def save_adapter(folder: Path, weights: Weights, **changes: object) -> Path:
    """A folder as PEFT saves an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    safetensors.numpy.save_file(weights, folder / "adapter_model.safetensors")
    return folder


def tiny_base(**changes: Any) -> Base:
    """A model of one layer and two heads of four rows each."""
    shapes = {"blk.0.attn_q.weight": (8, 32), "blk.0.attn_v.weight": (8, 32)}
    return replace(Base("tiny.gguf", "00", "llama", 2, 2, shapes, frozenset({"smollm2-135m"})), **changes)


def tiny_weights(module: str = "self_attn.q_proj") -> Weights:
    b = np.arange(32, dtype="f4").reshape(8, 4)
    return {weight_name(0, module, "A"): np.ones((4, 32), "f4"), weight_name(0, module, "B"): b}


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of a GGUF file, the tensors as float32."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype("f4") for t in reader.tensors}
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


def refused(folder: Path, base: Base | None = None, **options: Any) -> str:
    """What the export says, in one sentence, having written nothing."""
    out = folder.parent / "refused.gguf"
    with pytest.raises(SettingsError) as caught:
        export_adapter(folder, out, base=base or tiny_base(), **options)
    assert not list(folder.parent.glob("*refused.gguf*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def float32_model(path: Path, *added: Weights) -> Iterator[Path]:
    """SmolLM2-135M in float32, so that nothing hides behind rounding, with `added` in its weights; half a gigabyte."""
    reader = gguf.GGUFReader(packaged_model())
    weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    for changes in added:
        weights |= {name: weights[name] + change for name, change in changes.items()}
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


def deltas_of(weights: Weights, scale: float) -> Weights:
    """What an adapter adds to each weight, with rows where the GGUF file has them."""
    deltas = {}
    for name in [name for name in weights if name.endswith("A.weight")]:
        _, _, _, _, layer, *module, _, _ = name.split(".")
        at = GGUF_NAMES[".".join(module)]
        delta = scale * weights[name.replace("lora_A", "lora_B")] @ weights[name]
        heads = {"attn_q": 9, "attn_k": 3}.get(at)
        deltas[f"blk.{layer}.{at}.weight"] = delta[gguf_order(heads)] if heads else delta
    return deltas


def gguf_order(heads: int) -> list[int]:
    """Row by row, without the code under test: 0, 32, 1, 33 ... of each head of 64."""
    return [head * 64 + i + half for head in range(heads) for i in range(32) for half in (0, 32)]


def _tokens() -> list[int]:
    from llama_cpp import Llama

    with closing(Llama(str(packaged_model()), vocab_only=True, verbose=False)) as model:
        return model.tokenize(PROMPT.encode(), add_bos=False, special=True)


def logits_of(model: Path, adapter: Path | None = None, *, write: int = 0) -> tuple[Any, list[int]]:
    """After each token of a prompt, and the `write` tokens that follow; by llama-cpp-python's own class, not by ours."""
    from llama_cpp import Llama

    tokens, float32 = _tokens(), 0
    model_options: dict[str, Any] = {"lora_path": str(adapter)} if adapter else {}
    llama = Llama(
        str(model), **model_options, logits_all=True, n_ctx=128, n_threads=1, n_threads_batch=1,
        type_k=float32, type_v=float32, verbose=False,
    )  # fmt: skip
    with closing(llama):
        llama.eval(tokens)
        logits, written = np.array(llama.scores[: len(tokens)]), []
        for at in range(len(tokens) - 1, len(tokens) - 1 + write):
            written.append(int(llama.scores[at].argmax()))
            llama.eval(written[-1:])
        return logits, written
