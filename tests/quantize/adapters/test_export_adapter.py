"""A LoRA adapter as PEFT saves it becomes a GGUF file that has the same effect in llama.cpp."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.files import compute_file_digest
from querylift.plugin.generators.llama.model_file import find_packaged_model
from querylift.quantize.adapters.export_adapter import (
    BaseModelInfo,
    ExportedAdapter,
    export_adapter,
    read_base_model,
    reorder_rows_for_rope,
)
from querylift.quantize.commands.quantize import quantize
from tests.helpers.adapters import (
    Weights,
    compute_logits,
    compute_weight_deltas,
    format_weight_name,
    list_gguf_row_order,
    make_random_adapter_weights,
    make_tiny_adapter_weights,
    make_tiny_base,
    read_export_refusal,
    read_gguf,
    save_adapter,
    write_float32_model,
)

# What transformers 5.23 and peft 0.21 write after the prompt of `compute_logits`, in float32, with the random adapter.
WRITTEN_BY_PEFT = [504, 24594, 314, 2952, 411, 260, 12181, 282, 2591, 506, 5264, 28, 4170, 260, 24484, 282, 8118, 411]


# --- the same effect as in transformers


@pytest.fixture(scope="module")
def base() -> BaseModelInfo:
    return read_base_model(find_packaged_model())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("student") / "peft", make_random_adapter_weights())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The base in float32, and a copy with the adapter added to its weights."""
    files, deltas = tmp_path_factory.mktemp("float32"), compute_weight_deltas(make_random_adapter_weights(), 8 / 4)
    with (
        write_float32_model(files / "plain.gguf") as plain,
        write_float32_model(files / "merged.gguf", deltas) as merged,
    ):
        yield plain, merged


@pytest.mark.model
def test_the_exported_adapter_has_the_effect_of_adding_it_to_the_weights(
    tmp_path: Path, base: BaseModelInfo, folder: Path, models: tuple[Path, Path]
) -> None:
    """Of logits that span 60, the largest difference was 0.00004, 0.004 and 0.11."""
    plain, merged = models
    expected, tokens = compute_logits(merged, write=len(WRITTEN_BY_PEFT))
    assert tokens == WRITTEN_BY_PEFT
    for number_type, largest in [("f32", 0.001), ("f16", 0.03), ("q8_0", 0.5)]:
        out = tmp_path / f"{number_type}.gguf"
        assert export_adapter(folder, out, base=base, number_type=number_type) == ExportedAdapter(210, 4, ("peft",))
        logits, tokens = compute_logits(plain, out, write=len(WRITTEN_BY_PEFT))
        assert np.abs(logits - expected).max() < largest
        assert tokens == WRITTEN_BY_PEFT


@pytest.mark.model
def test_without_reordered_rows_the_adapter_has_another_effect(
    tmp_path: Path, base: BaseModelInfo, folder: Path, models: tuple[Path, Path]
) -> None:
    plain, merged = models
    two_rows_each = replace(base, heads=288, kv_heads=96)  # so that reordering moves no row
    export_adapter(folder, tmp_path / "wrong.gguf", base=two_rows_each, number_type="f32")
    assert np.abs(compute_logits(plain, tmp_path / "wrong.gguf")[0] - compute_logits(merged)[0]).max() > 2


# --- the file


@pytest.mark.model
def test_the_file_names_its_prompt_and_its_base(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "adapter.gguf"
    result = CliRunner().invoke(quantize, ["export", str(folder), "--out", str(out)])
    assert (result.exit_code, result.output) == (0, f"{out}: peft, 210 weights of rank 4, 10.4 MB\n")
    fields, tensors = read_gguf(out)
    assert {key: value for key, value in fields.items() if not key.startswith("GGUF.")} == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 32.0,  # rank 4, padded to q8_0's block size; B includes the scale
        "querylift.prompt_version": PROMPT_VERSION,
        "querylift.base.name": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "querylift.base.sha256": compute_file_digest(find_packaged_model()),
        "querylift.adapter.names": ["peft"],
        "querylift.adapter.sha256": [compute_file_digest(folder / "adapter_model.safetensors")],
    }
    assert len(tensors) == 420
    assert tensors["blk.29.ffn_down.weight.lora_a"].shape == (32, 1536)
    assert tensors["blk.29.ffn_down.weight.lora_b"].shape == (576, 32)


def test_only_rows_of_q_and_k_in_llama_are_reordered(tmp_path: Path) -> None:
    def export_row_order(base: BaseModelInfo, module: str) -> list[int]:
        folder = save_adapter(tmp_path / "peft", make_tiny_adapter_weights(module), lora_alpha=4)
        export_adapter(folder, tmp_path / "a.gguf", base=base, number_type="f32")
        tensors = read_gguf(tmp_path / "a.gguf")[1]
        return [int(row[0]) // 4 for row in next(t for name, t in tensors.items() if name.endswith("lora_b"))]

    assert export_row_order(make_tiny_base(), "self_attn.q_proj") == [0, 2, 1, 3, 4, 6, 5, 7]
    assert export_row_order(make_tiny_base(), "self_attn.v_proj") == [0, 1, 2, 3, 4, 5, 6, 7]
    assert export_row_order(make_tiny_base(architecture="qwen3"), "self_attn.q_proj") == [0, 1, 2, 3, 4, 5, 6, 7]


def test_the_order_of_rows_agrees_with_one_written_by_hand() -> None:
    rows = np.arange(9 * 64).reshape(-1, 1)
    assert reorder_rows_for_rope(rows, heads=9)[:, 0].tolist() == list_gguf_row_order(9)


@pytest.mark.parametrize(
    ("config", "number_type", "rank", "scale"),
    [({}, "f16", 4, 8 / 4), ({"use_rslora": True}, "f32", 4, 8 / 2), ({"use_rslora": True}, "q8_0", 32, 8 / 2)],
)
def test_b_includes_pefts_scale_and_alpha_is_the_rank(
    tmp_path: Path, config: dict[str, object], number_type: str, rank: int, scale: float
) -> None:
    """PEFT scales by alpha / r, or by alpha / sqrt(r) with use_rslora; llama.cpp by alpha / (columns of lora_b)."""
    folder = save_adapter(tmp_path / "peft", make_tiny_adapter_weights("self_attn.v_proj"), **config)
    export_adapter(folder, tmp_path / "a.gguf", base=make_tiny_base(), number_type=number_type)
    fields, tensors = read_gguf(tmp_path / "a.gguf")
    b = tensors["blk.0.attn_v.weight.lora_b"]
    assert fields["adapter.lora.alpha"] == b.shape[1] == rank
    assert np.abs(b[:, :4] / scale - np.arange(32).reshape(8, 4)).max() < 0.2
    assert not b[:, 4:].any()


@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16"])
def test_numbers_of_every_type_are_read(tmp_path: Path, stored: str) -> None:
    folder = save_adapter(tmp_path / "peft", {}, lora_alpha=4)
    arrays = make_tiny_adapter_weights("self_attn.v_proj")
    arrays[format_weight_name(0, "self_attn.v_proj", "B")] *= -0.25  # exact in 8 bits
    (folder / "adapter_model.safetensors").write_bytes(_encode_safetensors(arrays, stored))
    export_adapter(folder, tmp_path / "a.gguf", base=make_tiny_base(), number_type="f32")
    tensors = read_gguf(tmp_path / "a.gguf")[1]
    assert np.array_equal(tensors["blk.0.attn_v.weight.lora_b"], arrays[format_weight_name(0, "self_attn.v_proj", "B")])


def _encode_safetensors(arrays: Weights, stored: str) -> bytes:
    """Encode without the library: the header's size, the header as JSON, the numbers."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in arrays.items():
        upper_half = (array.view("<u4") >> 16).astype("<u2")
        numbers = upper_half if stored == "BF16" else array.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[stored])
        offsets = [len(data), len(data) + numbers.nbytes]
        header[name] = {"dtype": stored, "shape": array.shape, "data_offsets": offsets}
        data += numbers.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


# --- refusals


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "IA3"}, "does not describe a LoRA adapter"),
        ({"use_dora": True}, "llama.cpp supports no adapter with use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "llama.cpp supports no adapter with rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "llama.cpp supports no adapter with alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "llama.cpp supports no adapter with modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights changed the base model"),
        ({"lora_alpha": None}, "r is 4 and lora_alpha is None"),
        ({"r": 8}, "are not of rank 8"),
    ],
)
def test_an_adapter_that_llama_cpp_does_not_support_is_refused(
    tmp_path: Path, config: dict[str, object], sentence: str
) -> None:
    assert sentence in read_export_refusal(save_adapter(tmp_path / "peft", make_tiny_adapter_weights(), **config))


@pytest.mark.parametrize(
    "name",
    ["base_model.model.model.embed_tokens.lora_embedding_A", "base_model.model.lm_head.weight",
     "base_model.model.lm_head.lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
     "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight"],
)  # fmt: skip
def test_a_tensor_that_the_file_cannot_hold_is_named(tmp_path: Path, name: str) -> None:
    folder = save_adapter(tmp_path / "peft", {**make_tiny_adapter_weights(), name: np.ones((4, 32), "f4")})
    assert f"{name} cannot be exported; adapt only q_proj, k_proj" in read_export_refusal(folder)


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    assert read_export_refusal(folder) == f"{folder} has no adapter_config.json; name a folder as PEFT saves an adapter"
    save_adapter(folder, make_tiny_adapter_weights())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert read_export_refusal(folder) == (
        f"{folder} has no adapter_model.safetensors; save the adapter as safetensors, the only format that is read"
    )


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "peft", make_tiny_adapter_weights())
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    for broken_content in (b"", b"\x80\x04 no safetensors", content[:-1]):
        weights.write_bytes(broken_content)
        assert f"{weights} cannot be read" in read_export_refusal(folder)
    (folder / "adapter_config.json").write_text("{")
    assert f"{folder}/adapter_config.json cannot be read" in read_export_refusal(folder)


def test_a_missing_matrix_and_infinite_numbers_are_refused(tmp_path: Path) -> None:
    weights = make_tiny_adapter_weights()
    a, b = weights
    assert "lacks one of lora_A and lora_B of blk.0.attn_q" in read_export_refusal(
        save_adapter(tmp_path / "peft", {a: weights[a]})
    )
    assert "lacks any LoRA weight" in read_export_refusal(save_adapter(tmp_path / "peft", {}))
    for value in (np.nan, np.inf, 1e6):
        folder = save_adapter(tmp_path / "peft", {a: weights[a], b: weights[b] + np.float32(value)})
        assert "blk.0.attn_q.weight has infinite or very large numbers" in read_export_refusal(folder)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "peft", make_tiny_adapter_weights("mlp.up_proj"))
    assert read_export_refusal(folder) == (
        "blk.0.ffn_up.weight does not exist in tiny.gguf, and is 8 x 32 in the adapter; name the adapter's own base"
    )
    larger = make_tiny_base(shapes={"blk.0.ffn_up.weight": (16, 32)})
    assert "blk.0.ffn_up.weight is 16 x 32 in tiny.gguf, and is 8 x 32 in the adapter" in read_export_refusal(
        folder, larger
    )


def test_a_base_that_the_adapter_was_not_trained_on_is_refused_without_any_base(tmp_path: Path) -> None:
    gguf_file, model = tmp_path / "a.gguf", tmp_path / "model"
    gguf_file.write_bytes(b"GGUF")
    model.mkdir()
    base = make_tiny_base(accepted_names=frozenset(), sha256=compute_file_digest(gguf_file))
    for base_name, trained_on in [
        ("made:llama", "made:llama"),
        ("org/x", "org/x"),
        ("../model", model),
        (str(model), model),
    ]:
        folder = save_adapter(tmp_path / "peft", make_tiny_adapter_weights(), base_model_name_or_path=base_name)
        assert read_export_refusal(folder) == (
            f"{folder} was trained on {trained_on}, not on tiny.gguf; give that model's GGUF file with --base, "
            "or add --any-base if both are the same model"
        )
        assert export_adapter(folder, tmp_path / "out.gguf", base=base, any_base=True).weights == 1
    for base_name in ("../a.gguf", str(gguf_file)):
        folder = save_adapter(tmp_path / "peft", make_tiny_adapter_weights(), base_model_name_or_path=base_name)
        assert f"was trained on {gguf_file}, not on tiny.gguf" in read_export_refusal(folder)
        assert export_adapter(folder, tmp_path / "out.gguf", base=base).weights == 1
    assert "was trained on smollm2-135m, not on tiny.gguf" in read_export_refusal(
        save_adapter(folder, make_tiny_adapter_weights()), base
    )


@pytest.mark.model
def test_a_base_that_cannot_be_read_or_is_unsupported_is_refused(tmp_path: Path) -> None:
    other_architecture, cut_file = tmp_path / "other.gguf", tmp_path / "cut.gguf"
    writer = gguf.GGUFWriter(other_architecture, "gpt2")
    writer.add_head_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with find_packaged_model().open("rb") as model:
        cut_file.write_bytes(model.read(200_000))
    for path, sentence in [
        (tmp_path / "none.gguf", "cannot be read (No such file or directory)"),
        (other_architecture, "is of architecture gpt2; name one of llama or qwen3"),
        (cut_file, "give a complete GGUF file"),
    ]:
        with pytest.raises(SettingsError) as error:
            read_base_model(path)
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    folder, out = save_adapter(tmp_path / "peft", make_tiny_adapter_weights()), tmp_path / "a.gguf"
    out.write_text("old")
    with pytest.raises(SettingsError, match="very large"):
        export_adapter(
            save_adapter(tmp_path / "bad", {k: v * 1e9 for k, v in make_tiny_adapter_weights().items()}),
            out,
            base=make_tiny_base(),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "bad", "peft"]
    assert out.read_text() == "old"
    with pytest.raises(SettingsError, match=r"gone/a\.gguf cannot be written: No such file or directory"):
        export_adapter(folder, tmp_path / "gone" / "a.gguf", base=make_tiny_base())
    export_adapter(folder, out, base=make_tiny_base())
    content = out.read_bytes()
    export_adapter(folder, out, base=make_tiny_base())
    assert out.read_bytes() == content


def test_rows_that_do_not_fit_the_block_size_of_q8_0_are_refused(tmp_path: Path) -> None:
    weights = {name: w[:, :24] if name.endswith("A.weight") else w for name, w in make_tiny_adapter_weights().items()}
    folder, base = save_adapter(tmp_path / "peft", weights), make_tiny_base(shapes={"blk.0.attn_q.weight": (8, 24)})
    assert read_export_refusal(folder, base) == (
        "blk.0.attn_q.weight has rows of 24 numbers, which q8_0's block size of 32 does not divide; use --type f16"
    )
    assert export_adapter(folder, tmp_path / "a.gguf", base=base, number_type="f16").weights == 1
