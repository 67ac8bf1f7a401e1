"""A LoRA adapter on top of another, as `dpo` lies on `sft`, becomes one file that does what both do."""

from pathlib import Path

import numpy as np
import pytest

from querylift.plugin.generators.llama.model_file import file_digest, packaged_model
from querylift.quantize.adapters.export_adapter import Exported, export_adapter, read_base
from tests.helpers.adapters import (
    Weights,
    deltas_of,
    float32_model,
    logits_of,
    random_weights,
    read_gguf,
    refused,
    save_adapter,
    tiny_base,
    tiny_weights,
)


def upper_weights() -> Weights:
    """Of an adapter on `random_weights`: of another rank, and for fewer layers and modules."""
    modules = ("q_proj", "k_proj", "down_proj")
    return {name: w for name, w in random_weights(6).items() if name.split(".")[6] in modules and ".7." not in name}


@pytest.mark.model
def test_an_adapter_on_an_adapter_does_what_adding_both_to_the_weights_does(tmp_path: Path) -> None:
    """The largest difference among all logits was 0.00004; without the lower one it is 7."""
    lower, base, out = (
        save_adapter(tmp_path / "sft", random_weights()),
        read_base(packaged_model()),
        tmp_path / "a.gguf",
    )
    config = {"r": 6, "lora_alpha": 3, "base_model_name_or_path": str(lower)}
    upper = save_adapter(tmp_path / "dpo", upper_weights(), **config)
    added = deltas_of(random_weights(), 8 / 4), deltas_of(upper_weights(), 3 / 6)
    with float32_model(tmp_path / "both.gguf", *added) as both:
        wanted = logits_of(both)[0]
    with float32_model(tmp_path / "plain.gguf") as plain:
        assert export_adapter(upper, out, base=base, number_type="f32") == Exported(210, 10, ("sft", "dpo"))
        assert np.abs(logits_of(plain, out)[0] - wanted).max() < 0.001
        save_adapter(upper, upper_weights(), **{**config, "base_model_name_or_path": "smollm2-135m"})
        export_adapter(upper, out, base=base, number_type="f32")
        assert np.abs(logits_of(plain, out)[0] - wanted).max() > 2


def test_a_chain_becomes_one_adapter_with_every_weight_that_some_of_it_adapt(tmp_path: Path) -> None:
    """`dpo` lies on `sft`, whose folder it names from its own; a weight that one of them leaves alone has zeros there."""
    save_adapter(tmp_path / "sft", tiny_weights("self_attn.v_proj"))
    both = {**tiny_weights("self_attn.v_proj"), **tiny_weights()}
    dpo = save_adapter(tmp_path / "dpo", both, lora_alpha=2, base_model_name_or_path="../sft")
    done = export_adapter(dpo, tmp_path / "a.gguf", base=tiny_base(architecture="qwen3"), number_type="f32")
    assert done == Exported(2, 8, ("sft", "dpo"))
    fields, tensors = read_gguf(tmp_path / "a.gguf")
    b = np.arange(32).reshape(8, 4)
    assert np.array_equal(tensors["blk.0.attn_v.weight.lora_b"], np.hstack([b * 2, b * 0.5]))
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_b"], np.hstack([b * 0.5, b * 0]))
    assert tensors["blk.0.attn_q.weight.lora_a"][:, 0].tolist() == [1] * 4 + [0] * 4
    weights = [tmp_path / name / "adapter_model.safetensors" for name in ("sft", "dpo")]
    assert fields["querylift.adapter.names"] == ["sft", "dpo"]
    assert fields["querylift.adapter.sha256"] == [file_digest(file) for file in weights]
    assert fields["adapter.lora.alpha"] == 8


def test_a_chain_with_a_link_missing_or_broken_is_refused_whatever_the_user_says(tmp_path: Path) -> None:
    dpo, sft = tmp_path / "dpo", tmp_path / "sft"
    save_adapter(dpo, tiny_weights(), base_model_name_or_path="../sft")
    gone = "which is gone; put it there, or name its new place in adapter_config.json"
    assert refused(dpo, any_base=True) == f"{dpo} was trained on ../sft, {gone}"
    weights = save_adapter(sft, tiny_weights(), base_model_name_or_path="../dpo") / "adapter_model.safetensors"
    assert refused(dpo, any_base=True) == f"{dpo} stands on {dpo}, which stands on itself; train it on another base"
    save_adapter(sft, tiny_weights("self_attn.v_proj"), base_model_name_or_path=None)
    assert refused(dpo) == f"{sft}/adapter_config.json names no base model; write it into base_model_name_or_path"
    save_adapter(sft, {name: w[:, :16] if "A" in name else w for name, w in tiny_weights().items()})
    assert "blk.0.attn_q.weight has another shape in each of sft and dpo" in refused(dpo)
    weights.rename(sft / "adapter_model.bin")
    assert f"{sft} has no adapter_model.safetensors; save the adapter as safetensors" in refused(dpo)
    (sft / "adapter_config.json").unlink()
    assert f"{sft} has no adapter_config.json" in refused(dpo, any_base=True)
