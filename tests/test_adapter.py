"""A LoRA adapter as PEFT saves it becomes a file that llama.cpp puts on the model, to the same effect."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from plugin.errors import SettingsError
from plugin.expansion import PROMPT_VERSION
from plugin.generators.llama_file import file_digest, packaged_model
from quantize.adapter import Base, Exported, export_adapter, gguf_rows, read_base
from quantize.commands.quantize import quantize

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
# What transformers 5.23 and peft 0.21 write after it, in float32, with the adapter of `random_weights`.
WRITTEN_BY_PEFT = [504, 24594, 314, 2952, 411, 260, 12181, 282, 2591, 506, 5264, 28, 4170, 260, 24484, 282, 8118, 411]


def _name(layer: int, module: str, half: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"


def random_weights(rank: int = 4) -> Weights:
    """Random matrices for every linear layer of SmolLM2-135M, large enough to change what it writes."""
    random, weights = np.random.RandomState(rank), {}  # a generator whose numbers never change
    for layer in range(30):
        for module, (rows, columns) in SHAPES.items():
            weights[_name(layer, module, "A")] = (random.standard_normal((rank, columns)) * 0.05).astype("f4")
            weights[_name(layer, module, "B")] = (random.standard_normal((rows, rank)) * 0.05).astype("f4")
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
    return {_name(0, module, "A"): np.ones((4, 32), "f4"), _name(0, module, "B"): b}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of a GGUF file, the tensors as float32."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype("f4") for t in reader.tensors}
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


def _refused(folder: Path, base: Base | None = None, **options: Any) -> str:
    """What the export says, in one sentence, having written nothing."""
    out = folder.parent / "refused.gguf"
    with pytest.raises(SettingsError) as caught:
        export_adapter(folder, out, base=base or tiny_base(), **options)
    assert not list(folder.parent.glob("*refused.gguf*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the same effect as in transformers


@pytest.fixture(scope="module")
def base() -> Base:
    return read_base(packaged_model())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("student") / "peft", random_weights())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ...]]:
    """The base in float32, so that nothing hides behind rounding, and copies with one and two adapters in its weights."""
    files = [tmp_path_factory.mktemp("float32") / f"{number}.gguf" for number in range(3)]
    reader = gguf.GGUFReader(packaged_model())
    weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    for file, added in zip(files, [{}, _deltas(random_weights(), 8 / 4), _deltas(upper_weights(), 3 / 6)], strict=True):
        weights |= {name: weights[name] + delta for name, delta in added.items()}
        _write_model(file, reader, weights)
    yield tuple(files)
    for file in files:
        file.unlink()  # half a gigabyte each


def upper_weights() -> Weights:
    """Of an adapter on `random_weights`: of another rank, and for fewer layers and modules."""
    modules = ("q_proj", "k_proj", "down_proj")
    return {name: w for name, w in random_weights(6).items() if name.split(".")[6] in modules and ".7." not in name}


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


def _deltas(weights: Weights, scale: float) -> Weights:
    """What an adapter adds to each weight, with rows where the GGUF file has them."""
    deltas = {}
    for name in [name for name in weights if name.endswith("A.weight")]:
        _, _, _, _, layer, *module, _, _ = name.split(".")
        at = GGUF_NAMES[".".join(module)]
        delta = scale * weights[name.replace("lora_A", "lora_B")] @ weights[name]
        heads = {"attn_q": 9, "attn_k": 3}.get(at)
        deltas[f"blk.{layer}.{at}.weight"] = delta[_order(heads)] if heads else delta
    return deltas


def _order(heads: int) -> list[int]:
    """Row by row, without the code under test: 0, 32, 1, 33 ... of each head of 64."""
    return [head * 64 + i + half for head in range(heads) for i in range(32) for half in (0, 32)]


def _tokens() -> list[int]:
    from llama_cpp import Llama

    with closing(Llama(str(packaged_model()), vocab_only=True, verbose=False)) as model:
        return model.tokenize(PROMPT.encode(), add_bos=False, special=True)


def _logits(model: Path, adapter: Path | None = None, *, write: int = 0) -> tuple[Any, list[int]]:
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


@pytest.mark.model
def test_the_exported_adapter_does_what_adding_it_to_the_weights_does(
    tmp_path: Path, base: Base, folder: Path, models: tuple[Path, ...]
) -> None:
    """The largest difference among all logits, which span 60, was 0.00004, 0.004 and 0.11."""
    plain, merged, _ = models
    wanted, written = _logits(merged, write=len(WRITTEN_BY_PEFT))
    assert written == WRITTEN_BY_PEFT
    for number_type, largest in [("f32", 0.001), ("f16", 0.03), ("q8_0", 0.5)]:
        out = tmp_path / f"{number_type}.gguf"
        assert export_adapter(folder, out, base=base, number_type=number_type) == Exported(210, 4, ("peft",))
        logits, written = _logits(plain, out, write=len(WRITTEN_BY_PEFT))
        assert np.abs(logits - wanted).max() < largest
        assert written == WRITTEN_BY_PEFT


@pytest.mark.model
def test_without_the_permutation_it_does_something_else(
    tmp_path: Path, base: Base, folder: Path, models: tuple[Path, ...]
) -> None:
    plain, merged, _ = models
    two_rows_each = replace(base, heads=288, kv_heads=96)  # where no row has another place to go to
    export_adapter(folder, tmp_path / "wrong.gguf", base=two_rows_each, number_type="f32")
    assert np.abs(_logits(plain, tmp_path / "wrong.gguf")[0] - _logits(merged)[0]).max() > 2


@pytest.mark.model
def test_an_adapter_on_an_adapter_does_what_adding_both_to_the_weights_does(
    tmp_path: Path, base: Base, folder: Path, models: tuple[Path, ...]
) -> None:
    """The largest difference among all logits was 0.00004; without the lower one it is 7."""
    plain, _, both = models
    config = {"r": 6, "lora_alpha": 3, "base_model_name_or_path": str(folder)}
    upper, out = save_adapter(tmp_path / "dpo", upper_weights(), **config), tmp_path / "both.gguf"
    assert export_adapter(upper, out, base=base, number_type="f32") == Exported(210, 10, ("peft", "dpo"))
    wanted = _logits(both)[0]
    assert np.abs(_logits(plain, out)[0] - wanted).max() < 0.001
    save_adapter(upper, upper_weights(), **{**config, "base_model_name_or_path": "smollm2-135m"})
    export_adapter(upper, out, base=base, number_type="f32")
    assert np.abs(_logits(plain, out)[0] - wanted).max() > 2


# --- what stands in the file


@pytest.mark.model
def test_the_file_says_which_prompt_and_which_base_it_is_for(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "adapter.gguf"
    done = CliRunner().invoke(quantize, ["export", str(folder), "--out", str(out)])
    assert (done.exit_code, done.output) == (0, f"{out}: peft, 210 weights of rank 4, 10.4 MB\n")
    fields, tensors = _read(out)
    assert {key: value for key, value in fields.items() if not key.startswith("GGUF.")} == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 32.0,  # the rank that q8_0 rounds 4 up to; the scale stands in B
        "querylift.prompt_version": PROMPT_VERSION,
        "querylift.base.name": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "querylift.base.sha256": file_digest(packaged_model()),
        "querylift.adapter.names": ["peft"],
        "querylift.adapter.sha256": [file_digest(folder / "adapter_model.safetensors")],
    }
    assert len(tensors) == 420
    assert tensors["blk.29.ffn_down.weight.lora_a"].shape == (32, 1536)
    assert tensors["blk.29.ffn_down.weight.lora_b"].shape == (576, 32)


def test_rows_of_q_are_reordered_for_llama_and_for_nothing_else(tmp_path: Path) -> None:
    def exported(base: Base, module: str) -> list[int]:
        folder = save_adapter(tmp_path / "peft", tiny_weights(module), lora_alpha=4)
        export_adapter(folder, tmp_path / "a.gguf", base=base, number_type="f32")
        tensors = _read(tmp_path / "a.gguf")[1]
        return [int(row[0]) // 4 for row in next(t for name, t in tensors.items() if name.endswith("lora_b"))]

    assert exported(tiny_base(), "self_attn.q_proj") == [0, 2, 1, 3, 4, 6, 5, 7]
    assert exported(tiny_base(), "self_attn.v_proj") == [0, 1, 2, 3, 4, 5, 6, 7]
    assert exported(tiny_base(architecture="qwen3"), "self_attn.q_proj") == [0, 1, 2, 3, 4, 5, 6, 7]


def test_the_order_of_rows_is_the_one_written_out_by_hand() -> None:
    rows = np.arange(9 * 64).reshape(-1, 1)
    assert gguf_rows(rows, heads=9)[:, 0].tolist() == _order(9)


@pytest.mark.parametrize(
    ("config", "number_type", "rank", "scale"),
    [({}, "f16", 4, 8 / 4), ({"use_rslora": True}, "f32", 4, 8 / 2), ({"use_rslora": True}, "q8_0", 32, 8 / 2)],
)
def test_pefts_scale_stands_in_b_and_alpha_is_the_rank(
    tmp_path: Path, config: dict[str, object], number_type: str, rank: int, scale: float
) -> None:
    """PEFT scales by alpha / r, or by alpha / sqrt(r) with use_rslora; llama.cpp by alpha / (columns of lora_b)."""
    folder = save_adapter(tmp_path / "peft", tiny_weights("self_attn.v_proj"), **config)
    export_adapter(folder, tmp_path / "a.gguf", base=tiny_base(), number_type=number_type)
    fields, tensors = _read(tmp_path / "a.gguf")
    b = tensors["blk.0.attn_v.weight.lora_b"]
    assert fields["adapter.lora.alpha"] == b.shape[1] == rank
    assert np.abs(b[:, :4] / scale - np.arange(32).reshape(8, 4)).max() < 0.2
    assert not b[:, 4:].any()


def test_a_chain_becomes_one_adapter_with_every_weight_that_some_of_it_adapt(tmp_path: Path) -> None:
    """`dpo` lies on `sft`, whose folder it names from its own; a weight that one of them leaves alone has zeros there."""
    save_adapter(tmp_path / "sft", tiny_weights("self_attn.v_proj"))
    both = {**tiny_weights("self_attn.v_proj"), **tiny_weights()}
    dpo = save_adapter(tmp_path / "dpo", both, lora_alpha=2, base_model_name_or_path="../sft")
    done = export_adapter(dpo, tmp_path / "a.gguf", base=tiny_base(architecture="qwen3"), number_type="f32")
    assert done == Exported(2, 8, ("sft", "dpo"))
    fields, tensors = _read(tmp_path / "a.gguf")
    b = np.arange(32).reshape(8, 4)
    assert np.array_equal(tensors["blk.0.attn_v.weight.lora_b"], np.hstack([b * 2, b * 0.5]))
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_b"], np.hstack([b * 0.5, b * 0]))
    assert tensors["blk.0.attn_q.weight.lora_a"][:, 0].tolist() == [1] * 4 + [0] * 4
    weights = [tmp_path / name / "adapter_model.safetensors" for name in ("sft", "dpo")]
    assert fields["querylift.adapter.names"] == ["sft", "dpo"]
    assert fields["querylift.adapter.sha256"] == [file_digest(file) for file in weights]
    assert fields["adapter.lora.alpha"] == 8


@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16"])
def test_numbers_of_every_width_are_read(tmp_path: Path, stored: str) -> None:
    folder = save_adapter(tmp_path / "peft", {}, lora_alpha=4)
    arrays = tiny_weights("self_attn.v_proj")
    arrays[_name(0, "self_attn.v_proj", "B")] *= -0.25  # exact in 8 bits
    (folder / "adapter_model.safetensors").write_bytes(_safetensors(arrays, stored))
    export_adapter(folder, tmp_path / "a.gguf", base=tiny_base(), number_type="f32")
    tensors = _read(tmp_path / "a.gguf")[1]
    assert np.array_equal(tensors["blk.0.attn_v.weight.lora_b"], arrays[_name(0, "self_attn.v_proj", "B")])


def _safetensors(arrays: Weights, stored: str) -> bytes:
    """The format by hand: the header's size, the header as JSON, the numbers."""
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


# --- what is refused


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "IA3"}, "describes no LoRA adapter"),
        ({"use_dora": True}, "llama.cpp knows no adapter with use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "llama.cpp knows no adapter with rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "llama.cpp knows no adapter with alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "llama.cpp knows no adapter with modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights changed the base model"),
        ({"lora_alpha": None}, "r is 4 and lora_alpha is None"),
        ({"r": 8}, "are not of rank 8"),
    ],
)
def test_an_adapter_that_llama_cpp_cannot_express_is_refused(
    tmp_path: Path, config: dict[str, object], sentence: str
) -> None:
    assert sentence in _refused(save_adapter(tmp_path / "peft", tiny_weights(), **config))


@pytest.mark.parametrize(
    "name",
    ["base_model.model.model.embed_tokens.lora_embedding_A", "base_model.model.lm_head.weight",
     "base_model.model.lm_head.lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
     "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight"],
)  # fmt: skip
def test_a_tensor_with_no_place_in_the_file_is_named(tmp_path: Path, name: str) -> None:
    folder = save_adapter(tmp_path / "peft", {**tiny_weights(), name: np.ones((4, 32), "f4")})
    assert f"{name} cannot be exported; adapt only q_proj, k_proj" in _refused(folder)


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    assert _refused(folder) == f"{folder} has no adapter_config.json; name a folder as PEFT saves an adapter"
    save_adapter(folder, tiny_weights())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert _refused(folder) == (
        f"{folder} has no adapter_model.safetensors; save the adapter as safetensors, the only form that is read"
    )


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "peft", tiny_weights())
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for broken in (b"", b"\x80\x04 no safetensors", whole[:-1]):
        weights.write_bytes(broken)
        assert f"{weights} cannot be read" in _refused(folder)
    (folder / "adapter_config.json").write_text("{")
    assert f"{folder}/adapter_config.json cannot be read" in _refused(folder)


def test_half_a_pair_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    weights = tiny_weights()
    a, b = weights
    assert "lacks one of lora_A and lora_B of blk.0.attn_q" in _refused(
        save_adapter(tmp_path / "peft", {a: weights[a]})
    )
    assert "lacks any LoRA weight" in _refused(save_adapter(tmp_path / "peft", {}))
    for value in (np.nan, np.inf, 1e6):
        folder = save_adapter(tmp_path / "peft", {a: weights[a], b: weights[b] + np.float32(value)})
        assert "blk.0.attn_q.weight has infinite or very large numbers" in _refused(folder)


def test_another_models_adapter_is_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "peft", tiny_weights("mlp.up_proj"))
    assert _refused(folder) == (
        "blk.0.ffn_up.weight does not exist in tiny.gguf and 8 x 32 in the adapter; name the adapter's own base"
    )
    larger = tiny_base(shapes={"blk.0.ffn_up.weight": (16, 32)})
    assert "blk.0.ffn_up.weight is 16 x 32 in tiny.gguf and 8 x 32 in the adapter" in _refused(folder, larger)


def test_a_base_that_the_adapter_was_not_trained_on_is_refused_unless_the_user_vouches_for_it(tmp_path: Path) -> None:
    gguf_file, model = tmp_path / "a.gguf", tmp_path / "model"
    gguf_file.write_bytes(b"GGUF")
    model.mkdir()
    own = tiny_base(known_as=frozenset(), sha256=file_digest(gguf_file))
    for named, trained_on in [
        ("made:llama", "made:llama"),
        ("org/x", "org/x"),
        ("../model", model),
        (str(model), model),
    ]:
        folder = save_adapter(tmp_path / "peft", tiny_weights(), base_model_name_or_path=named)
        assert _refused(folder) == (
            f"{folder} was trained on {trained_on}, not on tiny.gguf; give that model's GGUF file with --base, "
            "or add --any-base if both are one model in two formats"
        )
        assert export_adapter(folder, tmp_path / "out.gguf", base=own, any_base=True).weights == 1
    for named in ("../a.gguf", str(gguf_file)):
        folder = save_adapter(tmp_path / "peft", tiny_weights(), base_model_name_or_path=named)
        assert f"was trained on {gguf_file}, not on tiny.gguf" in _refused(folder)
        assert export_adapter(folder, tmp_path / "out.gguf", base=own).weights == 1
    assert "was trained on smollm2-135m, not on tiny.gguf" in _refused(save_adapter(folder, tiny_weights()), own)


def test_a_chain_with_a_link_missing_or_broken_is_refused_whatever_the_user_says(tmp_path: Path) -> None:
    dpo, sft = tmp_path / "dpo", tmp_path / "sft"
    save_adapter(dpo, tiny_weights(), base_model_name_or_path="../sft")
    gone = "which is gone; put it there, or name its new place in adapter_config.json"
    assert _refused(dpo, any_base=True) == f"{dpo} was trained on ../sft, {gone}"
    weights = save_adapter(sft, tiny_weights(), base_model_name_or_path="../dpo") / "adapter_model.safetensors"
    assert _refused(dpo, any_base=True) == f"{dpo} stands on {dpo}, which stands on itself; train it on another base"
    save_adapter(sft, tiny_weights("self_attn.v_proj"), base_model_name_or_path=None)
    assert _refused(dpo) == f"{sft}/adapter_config.json names no base model; write it into base_model_name_or_path"
    save_adapter(sft, {name: w[:, :16] if "A" in name else w for name, w in tiny_weights().items()})
    assert "blk.0.attn_q.weight has another shape in each of sft and dpo" in _refused(dpo)
    weights.rename(sft / "adapter_model.bin")
    assert f"{sft} has no adapter_model.safetensors; save the adapter as safetensors" in _refused(dpo)
    (sft / "adapter_config.json").unlink()
    assert f"{sft} has no adapter_config.json" in _refused(dpo, any_base=True)


@pytest.mark.model
def test_a_base_that_is_no_such_model_is_refused(tmp_path: Path) -> None:
    other, cut = tmp_path / "other.gguf", tmp_path / "cut.gguf"
    writer = gguf.GGUFWriter(other, "gpt2")
    writer.add_head_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with packaged_model().open("rb") as whole:
        cut.write_bytes(whole.read(200_000))
    for path, sentence in [
        (tmp_path / "none.gguf", "cannot be read (No such file or directory)"),
        (other, "is of architecture gpt2; name one of llama or qwen3"),
        (cut, "give a complete GGUF file"),
    ]:
        with pytest.raises(SettingsError) as caught:
            read_base(path)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    folder, out = save_adapter(tmp_path / "peft", tiny_weights()), tmp_path / "a.gguf"
    out.write_text("old")
    with pytest.raises(SettingsError, match="very large"):
        export_adapter(
            save_adapter(tmp_path / "bad", {k: v * 1e9 for k, v in tiny_weights().items()}), out, base=tiny_base()
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "bad", "peft"]
    assert out.read_text() == "old"
    with pytest.raises(SettingsError, match=r"gone/a\.gguf cannot be written: No such file or directory"):
        export_adapter(folder, tmp_path / "gone" / "a.gguf", base=tiny_base())
    export_adapter(folder, out, base=tiny_base())
    first = out.read_bytes()
    export_adapter(folder, out, base=tiny_base())
    assert out.read_bytes() == first


def test_rows_that_q8_0_cannot_hold_are_refused_with_the_way_out(tmp_path: Path) -> None:
    weights = {name: w[:, :24] if name.endswith("A.weight") else w for name, w in tiny_weights().items()}
    folder, base = save_adapter(tmp_path / "peft", weights), tiny_base(shapes={"blk.0.attn_q.weight": (8, 24)})
    assert _refused(folder, base) == "blk.0.attn_q.weight has rows of 24 numbers, which q8_0 cannot hold; use f16"
    assert export_adapter(folder, tmp_path / "a.gguf", base=base, number_type="f16").weights == 1
