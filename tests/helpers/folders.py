"""Make model folders as transformers saves them: small random models, and one of a few kilobytes without torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from querylift.quantize.gguf_file import open_gguf_reader

Weights = dict[str, Any]
TEXTS = [
    "Rain is weather that falls on cold ground.",
    "def main(argument): return 0",
    "il a mangé des pâtes  à 3.14 €",
] * 20
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 259, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip
LAYER = {
    "input_layernorm": (32,), "self_attn.q_proj": (32, 32), "self_attn.k_proj": (32, 32), "self_attn.v_proj": (32, 32),
    "self_attn.o_proj": (32, 32), "post_attention_layernorm": (32,), "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}  # fmt: skip


def edit_json_file(path: Path, changes: Mapping[str, Any]) -> None:
    """Change values of a JSON file. The value of "model" is merged into the old one, and None removes a key."""
    value = json.loads(path.read_text(encoding="utf-8"))
    for key, change in changes.items():
        value[key] = {**value[key], **change} if key == "model" and change else change
    values = {key: change for key, change in value.items() if change is not None}
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def make_random_model(folder: Path, base: str, **changes: Any) -> Path:
    """Save a small random model with another shape than the trainer makes. The scales of its norms are random too."""
    import torch
    from transformers import AutoModelForCausalLM

    from querylift.trainer.student import models

    model, tokenizer = models.load_model_and_tokenizer(base, texts=TEXTS)
    config = type(model.config).from_dict({**model.config.to_dict(), **changes})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for weights in model.parameters():
            if weights.ndim == 1:
                weights.uniform_(0.5, 1.5)
    models.save_model(model, tokenizer, folder)
    return folder


def make_tiny_weights() -> Weights:
    """Return the weights of a Llama with one layer. Its numbers are exact in every number type."""
    shapes = {"model.embed_tokens.weight": (259, 32), "model.norm.weight": (32,)}
    shapes |= {f"model.layers.0.{name}.weight": shape for name, shape in LAYER.items()}
    return {name: (np.arange(np.prod(shape)) % 251 - 125).astype("f4").reshape(shape) for name, shape in shapes.items()}


def write_tiny_model(folder: Path, weights: Weights | None = None, *, stored: str = "F32", **config: Any) -> Path:
    """Write the folder of a Llama with one layer, by default with `make_tiny_weights`."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir(parents=True, exist_ok=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    tokenizer = {
        "added_tokens": [{"id": i, "content": token, "special": True, **ADDED} for i, token in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "post_processor": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    settings = {"eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    for name, value in [("config", {**TINY, **config}), ("tokenizer", tokenizer), ("tokenizer_config", settings)]:
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(encode_safetensors(weights or make_tiny_weights(), stored))
    return folder


def encode_safetensors(arrays: Weights, stored: str = "F32") -> bytes:
    """Return arrays in the safetensors format: the size of the header, the header as JSON, and the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        upper_half = (array.view("<u4") >> 16).astype("<u2")
        numbers = upper_half if stored == "BF16" else array.astype({"F32": "<f4", "F16": "<f2"}[stored])
        header[name] = {"dtype": stored, "shape": array.shape, "data_offsets": [len(data), len(data) + numbers.nbytes]}
        data += numbers.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file without long arrays. Those of a large vocabulary would take seconds."""
    reader = open_gguf_reader(path)
    return {key: field.contents() for key, field in reader.fields.items() if len(field.data) < 100}
