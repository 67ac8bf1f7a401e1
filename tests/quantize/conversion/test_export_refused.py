"""A folder that llama.cpp would compute differently from transformers is refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querylift.plugin.errors import SettingsError
from querylift.quantize.conversion.export_model import export_model
from tests.helpers.folders import edit_json_file, encode_safetensors, make_tiny_weights, write_tiny_model


def read_refusal(folder: Path, number_type: str = "f16") -> str:
    """Return the one sentence with which the export refuses the folder. Nothing may be written."""
    out = folder.parent / "refused.gguf"
    with pytest.raises(SettingsError) as error:
        export_model(folder, out, number_type=number_type)
    assert not list(folder.parent.glob("*refused.gguf*")) and not list(folder.parent.glob(".*refused.gguf*"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "architectures is 'MistralForCausalLM'; only LlamaForCausalLM or Qwen3"),
        ({"architectures": None}, "architectures is None; only LlamaForCausalLM or Qwen3ForCausalLM can be exported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' can be exported"),
        ({"attention_bias": True}, "attention_bias is True; only False can be exported"),
        ({"mlp_bias": True}, "mlp_bias is True; only False"),
        ({"use_sliding_window": True}, "use_sliding_window is True; only False"),
        ({"layer_types": ["sliding_attention"]}, "a layer is of type 'sliding_attention'; only 'full_attention'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}; only None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling is {'rope_type': 'llama3', 'factor': 8.0}"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "only a rope_type of 'default' can be exported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters is {'rope_type': 'yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5; only 1 can be exported"),
        ({"rope_theta": None}, "rope_theta is None; it must be a number above 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; it must be a number above 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'; it must be a whole number above 0"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "head_dim is None; it must be a whole number above 0"),
        ({"head_dim": 15}, "head_dim is 15; it must be even, as RoPE rotates pairs"),
        ({"num_key_value_heads": 1}, "model.layers.0.self_attn.k_proj.weight of {} is 32 x 32, but 16 x 32 by its config.json"),
        ({"architectures": ["Qwen3ForCausalLM"], "head_dim": 16}, "{} lacks model.layers.0.self_attn.q_norm.weight"),
        ({"tie_word_embeddings": False}, "{} lacks lm_head.weight, which its config.json requires; save the model again"),
        ({"num_hidden_layers": 2}, "{} lacks model.layers.1.input_layernorm.weight"),
        ({"vocab_size": 258}, "model.embed_tokens.weight of {} is 259 x 32, but 258 x 32 by its config.json"),
    ],
)  # fmt: skip
def test_a_model_that_llama_cpp_would_compute_differently_is_refused(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    folder = write_tiny_model(tmp_path / "tiny", **config)
    assert sentence.replace("{}", str(folder), 1) in read_refusal(folder)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("tokenizer", {"pre_tokenizer": {"type": "Whitespace"}}, "llama.cpp does not have the pre_tokenizer (Whitespace)"),
        ("tokenizer", {"pre_tokenizer": None}, "does not have the pre_tokenizer (none), only gpt-2, smollm, qwen2"),
        ("tokenizer", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "ByteLevel {'add_prefix_space': True}"),
        ("tokenizer", {"normalizer": {"type": "Lowercase"}}, "llama.cpp does not have the normalizer Lowercase"),
        ("tokenizer", {"model": {"type": "Unigram"}}, "type is 'Unigram'; only 'BPE', of a byte-level BPE, can be exported"),
        ("tokenizer", {"model": {"byte_fallback": True}}, "byte_fallback is True; only False"),
        ("tokenizer", {"model": {"ignore_merges": True}}, "ignore_merges is True; only False"),
        ("tokenizer", {"model": {"merges": [["a b", "c"]]}}, "merges 'a b c', which is not a pair of byte-level tokens"),
        ("tokenizer", {"model": None}, "cannot be read as a tokenizer (KeyError('model'))"),
        ("tokenizer", {"model": {"vocab": {"a": 259}}}, "has a token 259, but the model's vocab_size is 259"),
        ("tokenizer", {"model": {"vocab": {"a": 7, "[PAD8]": 9}}}, "gives [PAD8] two ids"),
        ("tokenizer", {"added_tokens": []}, "has no token <|im_start|>; name a model that uses ChatML"),
        ("tokenizer", {"added_tokens": [{"id": 3, "content": "<x>", "special": True, "lstrip": True}]}, "lstrip of <x> is true"),
        ("tokenizer", {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}},
         "the post_processor adds tokens to a text; only one that adds none can be exported"),
        ("tokenizer", {"post_processor": {"type": "BertProcessing"}}, "the post_processor adds tokens to a text"),
        ("tokenizer_config", {"add_bos_token": True}, "tokenizer_config.json: add_bos_token is true; only a model that adds"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], sentence: str
) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    edit_json_file(folder / f"{file}.json", changes)
    assert sentence in read_refusal(folder)


def test_extra_tensors_and_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder, weights = tmp_path / "tiny", make_tiny_weights()
    bias, embeddings = "model.layers.0.self_attn.q_proj.bias", weights["model.embed_tokens.weight"]
    assert read_refusal(write_tiny_model(folder, {**weights, bias: embeddings[0]})) == (
        f"{folder} holds {bias}, which llama does not have; save a model without it"
    )
    up = "model.layers.0.mlp.up_proj.weight"
    for value in (np.nan, np.inf, -np.inf):
        infinite_weights = weights[up].copy()
        infinite_weights[47, 31] = value
        for number_type in ("f16", "f32"):
            assert "blk.0.ffn_up.weight has numbers that are infinite or NaN" in read_refusal(
                write_tiny_model(folder, {**weights, up: infinite_weights}), number_type
            )
    large = write_tiny_model(folder, {**weights, up: weights[up] * np.float32(1e4)})
    assert read_refusal(large) == "blk.0.ffn_up.weight has numbers up to 1.25e+06, which f16 cannot hold; use f32"
    assert export_model(large, tmp_path / "a.gguf", number_type="f32").tensors == 11
    assert export_model(large, tmp_path / "a.gguf", number_type="bf16").numbers == sum(w.size for w in weights.values())


def test_tied_embeddings_may_be_stored_twice_if_both_are_the_same(tmp_path: Path) -> None:
    folder, weights = tmp_path / "tiny", make_tiny_weights()
    embeddings = weights["model.embed_tokens.weight"]
    assert (
        export_model(write_tiny_model(folder, {**weights, "lm_head.weight": embeddings}), tmp_path / "a.gguf").tensors
        == 11
    )
    for output in (embeddings + 1, embeddings[:9]):
        assert read_refusal(write_tiny_model(folder, {**weights, "lm_head.weight": output})) == (
            f"{folder} holds lm_head.weight different from model.embed_tokens.weight, but its config.json ties the two; "
            "save the model again"
        )
    untied = write_tiny_model(folder, {**weights, "lm_head.weight": embeddings + 1}, tie_word_embeddings=False)
    assert export_model(untied, tmp_path / "a.gguf").tensors == 12


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    assert read_refusal(folder) == f"{folder} has no config.json; name a folder as transformers saves a model"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        write_tiny_model(folder)
        (folder / name).unlink()
        assert read_refusal(folder) == f"{folder} has no {name}; save the model with its tokenizer again"
    write_tiny_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert (
        read_refusal(folder)
        == f"{folder} has no model.safetensors; save the model as safetensors, the only format that is read"
    )
    index = folder / "model.safetensors.index.json"
    for weight_map in ({}, None, {"a": "../x"}, {"a": ".."}, {"a": 1}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert read_refusal(folder) == f"{index} has no weight_map that names files in its folder; save the model again"
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert f"{folder}/gone.safetensors cannot be read" in read_refusal(folder)
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_bytes(encode_safetensors(make_tiny_weights()))
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert "both hold model.embed_tokens.weight; save the model again" in read_refusal(folder)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for broken_content in (b"", b"\x80\x04 no safetensors", content[:-1], content[:100], content + b"\0"):
        weights.write_bytes(broken_content)
        assert f"{weights} cannot be read" in read_refusal(folder)
    weights.write_bytes(content.replace(b'"F32"', b'"I32"'))
    assert "is of type I32; save the model as one of BF16, F16, F32" in read_refusal(folder)
    weights.write_bytes(content)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        for text, problem in [("{", "cannot be read"), ("[]", "holds no JSON object"), ("\udcff", "cannot be read")]:
            original = (folder / name).read_bytes()
            (folder / name).write_bytes(text.encode(errors="surrogateescape"))
            assert f"{folder / name} {problem}" in read_refusal(folder)
            (folder / name).write_bytes(original)
