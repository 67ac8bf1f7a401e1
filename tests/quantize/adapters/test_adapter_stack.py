"""A LoRA adapter that was trained on another one, as `dpo` on `sft`, becomes one file with the effect of both."""

from pathlib import Path

import numpy as np
import pytest

from querylift.plugin.files import compute_file_digest
from querylift.plugin.generators.llama.model_file import find_packaged_model
from querylift.quantize.adapters.export_adapter import ExportedAdapter, export_adapter, read_base_model
from tests.helpers.adapters import (
    Weights,
    compute_logits,
    compute_weight_deltas,
    make_random_adapter_weights,
    make_tiny_adapter_weights,
    make_tiny_base,
    read_export_refusal,
    read_gguf,
    save_adapter,
    write_float32_model,
)


def make_upper_weights() -> Weights:
    """Return weights for an adapter on top of the random one: another rank, and fewer layers and modules."""
    modules = ("q_proj", "k_proj", "down_proj")
    return {
        name: w
        for name, w in make_random_adapter_weights(6).items()
        if name.split(".")[6] in modules and ".7." not in name
    }


@pytest.mark.model
def test_a_stack_of_adapters_has_the_effect_of_adding_both_to_the_weights(tmp_path: Path) -> None:
    """The largest difference of a logit was 0.00004. Without the lower adapter it is 7."""
    lower, base, out = (
        save_adapter(tmp_path / "sft", make_random_adapter_weights()),
        read_base_model(find_packaged_model()),
        tmp_path / "a.gguf",
    )
    config = {"r": 6, "lora_alpha": 3, "base_model_name_or_path": str(lower)}
    upper = save_adapter(tmp_path / "dpo", make_upper_weights(), **config)
    deltas = (
        compute_weight_deltas(make_random_adapter_weights(), 8 / 4),
        compute_weight_deltas(make_upper_weights(), 3 / 6),
    )
    with write_float32_model(tmp_path / "both.gguf", *deltas) as merged_model:
        expected = compute_logits(merged_model)[0]
    with write_float32_model(tmp_path / "plain.gguf") as plain:
        assert export_adapter(upper, out, base=base, number_type="f32") == ExportedAdapter(210, 10, ("sft", "dpo"))
        assert np.abs(compute_logits(plain, out)[0] - expected).max() < 0.001
        save_adapter(upper, make_upper_weights(), **{**config, "base_model_name_or_path": "smollm2-135m"})
        export_adapter(upper, out, base=base, number_type="f32")
        assert np.abs(compute_logits(plain, out)[0] - expected).max() > 2


def test_a_stack_becomes_one_adapter_with_every_weight_that_any_member_adapts(tmp_path: Path) -> None:
    """`dpo` names the folder of `sft` by a relative path. A weight that one of them does not adapt has zeros there."""
    save_adapter(tmp_path / "sft", make_tiny_adapter_weights("self_attn.v_proj"))
    weights = {**make_tiny_adapter_weights("self_attn.v_proj"), **make_tiny_adapter_weights()}
    dpo = save_adapter(tmp_path / "dpo", weights, lora_alpha=2, base_model_name_or_path="../sft")
    exported = export_adapter(dpo, tmp_path / "a.gguf", base=make_tiny_base(architecture="qwen3"), number_type="f32")
    assert exported == ExportedAdapter(2, 8, ("sft", "dpo"))
    fields, tensors = read_gguf(tmp_path / "a.gguf")
    b = np.arange(32).reshape(8, 4)
    assert np.array_equal(tensors["blk.0.attn_v.weight.lora_b"], np.hstack([b * 2, b * 0.5]))
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_b"], np.hstack([b * 0.5, b * 0]))
    assert tensors["blk.0.attn_q.weight.lora_a"][:, 0].tolist() == [1] * 4 + [0] * 4
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("sft", "dpo")]
    assert fields["querylift.adapter.names"] == ["sft", "dpo"]
    assert fields["querylift.adapter.sha256"] == [compute_file_digest(file) for file in files]
    assert fields["adapter.lora.alpha"] == 8


def test_a_stack_with_a_missing_or_broken_member_is_refused_even_with_any_base(tmp_path: Path) -> None:
    dpo, sft = tmp_path / "dpo", tmp_path / "sft"
    save_adapter(dpo, make_tiny_adapter_weights(), base_model_name_or_path="../sft")
    problem = "which does not exist; restore it, or name its new place in adapter_config.json"
    assert read_export_refusal(dpo, any_base=True) == f"{dpo} was trained on ../sft, {problem}"
    weights_file = (
        save_adapter(sft, make_tiny_adapter_weights(), base_model_name_or_path="../dpo") / "adapter_model.safetensors"
    )
    assert (
        read_export_refusal(dpo, any_base=True)
        == f"{dpo} is based on {dpo}, which is among its own bases; train it on another base"
    )
    save_adapter(sft, make_tiny_adapter_weights("self_attn.v_proj"), base_model_name_or_path=None)
    assert (
        read_export_refusal(dpo)
        == f"{sft}/adapter_config.json names no base model; write it into base_model_name_or_path"
    )
    save_adapter(sft, {name: w[:, :16] if "A" in name else w for name, w in make_tiny_adapter_weights().items()})
    assert "blk.0.attn_q.weight differs in shape between sft and dpo" in read_export_refusal(dpo)
    weights_file.rename(sft / "adapter_model.bin")
    assert f"{sft} has no adapter_model.safetensors; save the adapter as safetensors" in read_export_refusal(dpo)
    (sft / "adapter_config.json").unlink()
    assert f"{sft} has no adapter_config.json" in read_export_refusal(dpo, any_base=True)
