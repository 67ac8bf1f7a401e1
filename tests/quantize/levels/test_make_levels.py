"""A GGUF model becomes smaller files of it, whole or not at all; an importance matrix makes them err where it matters less."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from llama_cpp import llama_cpp as api

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import PROMPT_VERSION, prompt
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, file_digest, packaged_model
from querylift.quantize.commands.quantize import quantize
from querylift.quantize.levels.importance_matrix import MOST_TOKENS, calibration_texts, read_means
from querylift.quantize.levels.make_levels import Calibration, Level, known_types, make, read_manifest, wanted_types
from querylift.quantize.levels.worker_process import run

Array = Any
Changes = Callable[[dict[str, Array]], None]
ROWS = [
    {"query": "why do cats purr", "text": "Cats purr by twitching the muscles of their larynx as they breathe."},
    {"query": "what causes a rainbow", "text": "Sunlight is refracted and reflected within drops of water."},
    {"query": "capital of france", "text": "Paris, on the Seine, is the capital and largest city of France."},
]


# --- a model made on the spot


def made_model(
    path: Path, *, hidden: int = 256, kind: str = "f16", arch: str = "llama", change: Changes = lambda tensors: None
) -> Path:
    """Two random layers and a tokenizer of single bytes; the columns of what goes into a weight are of very unlike size."""
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
    letters = _letters()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", *letters, "Ġt"])
    writer.add_token_types([3] + [1] * (len(letters) + 1))
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    tensors = weights(hidden, vocabulary=len(letters) + 2)
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


def weights(hidden: int, *, vocabulary: int) -> dict[str, Array]:
    random = np.random.RandomState(7)  # a generator whose numbers never change
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (hidden // 2, hidden), "attn_v": (hidden // 2, hidden),
        "attn_output": (hidden, hidden), "ffn_gate": (512, hidden), "ffn_up": (512, hidden), "ffn_down": (hidden, 512),
    }  # fmt: skip
    found = {"token_embd.weight": random.standard_normal((vocabulary, hidden)).astype("f4")}
    for layer in range(2):
        for name, (rows, columns) in shapes.items():
            weight = random.standard_normal((rows, columns)) / np.sqrt(columns)
            found[f"blk.{layer}.{name}.weight"] = weight.astype("f4")
        for name in ("attn_norm", "ffn_norm"):
            found[f"blk.{layer}.{name}.weight"] = np.exp(random.standard_normal(hidden) - 1).astype("f4")
    return found | {"output_norm.weight": np.ones(hidden, "f4")}


def _letters() -> list[str]:
    """Byte-level BPE's letter of each byte: itself where it can be seen, else one from U+0100 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]


# --- what is looked at


def read(path: Path) -> dict[str, Array]:
    """The tensors of a GGUF file as float32."""
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def logits(path: Path, text: str) -> Array:
    """What llama.cpp, with the model in `path`, gives each token of its vocabulary after each one of `text`."""
    log = api.llama_log_callback(lambda level, line, data: None)
    api.llama_log_set(log, ctypes.c_void_p(0))
    loading = api.llama_model_default_params()
    loading.use_extra_bufts = False
    model = api.llama_model_load_from_file(bytes(path), loading)
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
    found = np.ctypeslib.as_array(api.llama_get_logits(context), shape=shape).copy()
    api.llama_free(context)
    api.llama_model_free(model)
    api.llama_log_set(api.llama_log_callback(), ctypes.c_void_p(0))
    return found


def calibration(folder: Path, rows: list[dict[str, str]] = ROWS) -> Calibration:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Calibration(file)


def made(model: Path, out: Path, *types: str, **options: Any) -> dict[str, Level]:
    return {level.type: level for level in make(model, out, types, **options)}


def refused(model: Path, *types: str, **options: Any) -> str:
    """What `make` says, in one sentence, having written nothing."""
    out = model.parent / "refused"
    with pytest.raises(SettingsError) as caught:
        made(model, out, *(types or ("Q4_0",)), **options)
    assert not out.exists() or not [path.name for path in out.iterdir() if path.name != "importance.gguf"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def printed(tiny: Path) -> str:
    """What the command prints while it makes the default types in the folder "out" beside the model."""
    result = CliRunner().invoke(quantize, ["make", str(tiny), "--out", str(tiny.parent / "out")])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def out(tiny: Path, printed: str) -> Path:
    return tiny.parent / "out"


# --- the files


def test_every_default_type_is_a_file_of_its_own_and_each_is_smaller_than_the_one_before(out: Path) -> None:
    types = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
    assert names(out) == sorted(["manifest.json", *(f"tiny-{name}.gguf" for name in types)])
    sizes = [(out / f"tiny-{name}.gguf").stat().st_size for name in types]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5


@pytest.mark.parametrize(
    ("name", "most"), [("Q8_0", 0.02), ("Q6_K", 0.05), ("Q5_K_M", 0.07), ("Q4_K_M", 0.11), ("Q4_0", 0.13)]
)
def test_llama_cpp_reads_each_and_computes_nearly_what_the_model_does(
    tiny: Path, out: Path, name: str, most: float
) -> None:
    """By the logits' relative error: 1.2, 3.2, 4.6, 7.4 and 9.1% when written."""
    text = prompt(ROWS[0]["query"]) + ROWS[0]["text"]
    expected = logits(tiny, text)
    error = np.linalg.norm(logits(out / f"tiny-{name}.gguf", text) - expected) / np.linalg.norm(expected)
    assert len(expected) > 200
    assert error < most


def test_the_metadata_stays(out: Path) -> None:
    reader = gguf.GGUFReader(out / "tiny-Q4_0.gguf")
    assert reader.fields[PROMPT_VERSION_KEY].contents() == PROMPT_VERSION
    assert reader.fields["tokenizer.ggml.merges"].contents() == ["Ġ t"]
    assert reader.fields["general.file_type"].contents() == known_types()["Q4_0"]


def test_the_manifest_says_what_each_file_is_and_what_it_was_made_of(tiny: Path, out: Path) -> None:
    manifest = read_manifest(out)
    assert manifest["source"] == {
        "file": "tiny.gguf", "size_bytes": tiny.stat().st_size, "sha256": file_digest(tiny),
        "tensors": {"F16": 15, "F32": 5},
    }  # fmt: skip
    assert list(manifest["levels"]) == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
    for entry in manifest["levels"].values():
        file = out / entry["file"]
        assert (entry["size_bytes"], entry["sha256"]) == (file.stat().st_size, file_digest(file))
        assert entry["seconds"] > 0
        assert entry["importance"] is None
        assert entry["versions"]["llama-cpp-python"]
    assert manifest["levels"]["Q4_K_M"]["tensors"] == {"Q4_K": 12, "F32": 5, "Q6_K": 3}
    assert manifest["levels"]["Q4_0"]["tensors"] == {"Q4_0": 14, "F32": 5, "Q6_K": 1}


def test_the_command_prints_a_line_for_each_type_that_fits_a_narrow_terminal(printed: str) -> None:
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines] == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
    assert all(line.split()[2] == "MB" and line.endswith(" s") and len(line) < 80 for line in lines)
    assert lines[0].split()[1] == "1.3"


def test_rows_that_fit_no_block_of_the_type_are_counted_and_named(tmp_path: Path) -> None:
    """llama.cpp takes another type for rows of 96 numbers, which are no multiple of 256 and three of 32."""
    model = made_model(tmp_path / "narrow.gguf", hidden=96, kind="f32")
    result = CliRunner().invoke(quantize, ["make", str(model), "--types", "Q4_K_M", "--out", str(tmp_path / "out")])
    assert result.output.endswith(" s  12 of 20 tensors fell back to Q5_0, Q8_0\n")
    assert all(len(line) <= 80 for line in result.output.splitlines())
    level = read_manifest(tmp_path / "out")["levels"]["Q4_K_M"]
    assert level["fallbacks"] == {"Q5_0": 11, "Q8_0": 1}
    assert level["tensors"] == {"Q5_0": 11, "F32": 5, "Q8_0": 2, "Q4_K": 1, "Q6_K": 1}


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_a_model_of_any_plain_numbers_is_taken(tmp_path: Path, kind: str) -> None:
    model = made_model(tmp_path / "other.gguf", kind=kind)
    assert made(model, tmp_path / "out", "Q4_0")["Q4_0"].tensors == {"Q4_0": 14, "F32": 5, "Q6_K": 1}


def test_the_number_of_threads_changes_nothing(tiny: Path, out: Path, tmp_path: Path) -> None:
    level = made(tiny, tmp_path, "Q4_K_M", threads=3)["Q4_K_M"]
    assert level.sha256 == read_manifest(out)["levels"]["Q4_K_M"]["sha256"]


def test_json_is_the_manifest(tiny: Path, out: Path) -> None:
    result = CliRunner().invoke(quantize, ["make", str(tiny), "--types", "q8_0", "--out", str(out), "--json"])
    assert json.loads(result.output) == read_manifest(out)


def test_a_model_that_is_quantised_is_taken_only_where_the_user_says_so(out: Path, tmp_path: Path) -> None:
    model = out / "tiny-Q8_0.gguf"
    with pytest.raises(SettingsError) as caught:
        made(model, tmp_path, "Q4_0")
    sentence = "is quantised already (Q8_0), and would lose twice; give its f32, f16 or bf16 file, or add --requantize"
    assert str(caught.value) == f"{model} {sentence}"
    assert made(model, tmp_path, "Q4_0", requantize=True)["Q4_0"].file == "tiny-Q8_0-Q4_0.gguf"


@pytest.mark.model
def test_most_weights_of_the_packaged_model_fit_no_k_quant(tmp_path: Path) -> None:
    arguments = ["make", str(packaged_model()), "--types", "Q4_K_M", "--out", str(tmp_path), "--requantize"]
    result = CliRunner().invoke(quantize, arguments)
    assert "180 of 272 tensors fell back to Q5_0, Q8_0" in result.output
    small = tmp_path / f"{packaged_model().stem}-Q4_K_M.gguf"
    text = prompt("what causes a rainbow") + "A rainbow is caused by sunlight in drops of water."
    same = logits(small, text).argmax(axis=1) == logits(packaged_model(), text).argmax(axis=1)
    assert same.mean() > 0.8  # of the most likely next tokens


# --- types


def test_a_pure_level_has_every_weight_in_the_type_that_it_is_named_after(tiny: Path, tmp_path: Path) -> None:
    level = made(tiny, tmp_path, *wanted_types("q4_0-pure"))["Q4_0-PURE"]
    assert (level.file, level.tensors) == ("tiny-Q4_0-PURE.gguf", {"Q4_0": 15, "F32": 5})


def test_types_are_named_in_any_case_each_once() -> None:
    assert wanted_types("q8_0, Q4_k_m,,Q8_0") == ["Q8_0", "Q4_K_M"]
    assert {"F16", "BF16", "Q2_K_S", "IQ2_XXS", "IQ4_NL", "TQ1_0", "MXFP4_MOE"} <= known_types().keys()


@pytest.mark.parametrize(("text", "problem"), [("Q4_0,Q4_7", "no type 'Q4_7' is known"), (" , ", "no type is named")])
def test_an_unknown_type_is_answered_by_the_known_ones(text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        wanted_types(text)
    assert str(caught.value).startswith(f"{problem}; name any of F16, Q4_0, Q4_1, Q8_0, ")


def test_a_type_that_llama_cpp_names_and_cannot_write_is_refused(tiny: Path) -> None:
    sentence = "cannot be quantised as NVFP4 (invalid output file type 39); name another model or type"
    assert refused(tiny, "NVFP4") == f"{tiny} {sentence}"


def test_a_type_that_needs_an_importance_matrix_is_refused_without_one(tiny: Path) -> None:
    reason = "this quantization requires an importance matrix"
    assert refused(tiny, "IQ2_XXS") == (
        f"{tiny} cannot be quantised as IQ2_XXS ({reason}); give its data with --calibrate FILE"
    )


# --- what is there already


def test_a_level_that_is_whole_is_kept_and_a_damaged_one_made_again(tiny: Path, tmp_path: Path) -> None:
    first = made(tiny, tmp_path, "Q8_0", "Q4_0")
    q8_0, q4_0 = tmp_path / "tiny-Q8_0.gguf", tmp_path / "tiny-Q4_0.gguf"
    before = q8_0.stat().st_mtime_ns
    q4_0.write_bytes(q4_0.read_bytes()[:-1] + b"?")
    second = made(tiny, tmp_path, "Q8_0", "Q4_0")
    assert [level.kept for level in second.values()] == [True, False]
    assert q8_0.stat().st_mtime_ns == before
    assert second["Q4_0"].sha256 == first["Q4_0"].sha256 == file_digest(q4_0)
    q8_0.unlink()
    assert not made(tiny, tmp_path, "Q8_0")["Q8_0"].kept
    assert list(read_manifest(tmp_path)["levels"]) == ["Q8_0", "Q4_0"]


def test_a_level_of_other_settings_or_another_library_is_made_again(tiny: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path, "Q8_0", "Q4_0")
    asked = calibration(tmp_path)
    found = made(tiny, tmp_path, "Q8_0", "Q4_0", calibration=asked)
    assert [level.kept for level in found.values()] == [True, False]  # nothing changes the numbers of Q8_0
    assert made(tiny, tmp_path, "Q4_0", calibration=asked)["Q4_0"].kept
    assert not made(tiny, tmp_path, "Q4_0")["Q4_0"].kept
    manifest = tmp_path / "manifest.json"
    version = read_manifest(tmp_path)["levels"]["Q8_0"]["versions"]["llama-cpp-python"]
    manifest.write_text(manifest.read_text().replace(f'"llama-cpp-python": "{version}"', '"llama-cpp-python": "0.0.1"'))
    assert not made(tiny, tmp_path, "Q8_0")["Q8_0"].kept


def test_a_folder_of_another_model_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path, "Q8_0")
    other = made_model(tmp_path / "other" / "tiny.gguf", kind="bf16")
    with pytest.raises(SettingsError) as caught:
        made(other, tmp_path, "Q8_0")
    sentence = "holds levels of another model (tiny.gguf); remove it, or name another --out"
    assert str(caught.value) == f"{tmp_path} {sentence}"
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"manifest\.json is no manifest of quantised files; name another folder"):
        made(tiny, tmp_path, "Q8_0")


# --- which columns matter


@pytest.fixture(scope="module")
def calibrated(tiny: Path) -> Path:
    """A folder of levels that were made with a matrix."""
    folder = tiny.parent / "calibrated"
    made(tiny, folder, "Q4_K_M", "Q4_0", "IQ2_XXS", calibration=calibration(tiny.parent))
    return folder


@pytest.mark.parametrize("name", ["Q4_K_M", "Q4_0"])
def test_with_the_matrix_a_file_errs_less_where_it_matters(tiny: Path, out: Path, calibrated: Path, name: str) -> None:
    """Sum over the columns: mean square of the input times squared error of the weight. By 37% and 29% when written."""
    means, original = read_means(calibrated / "importance.gguf"), read(tiny)

    def error(folder: Path) -> float:
        rounded = read(folder / f"tiny-{name}.gguf")
        return sum(float((means[key] * (rounded[key] - original[key]) ** 2).sum()) for key in means)

    assert error(calibrated) < 0.8 * error(out)


def test_with_the_matrix_a_type_that_needs_one_is_made_and_the_manifest_says_so(calibrated: Path) -> None:
    manifest = read_manifest(calibrated)
    assert manifest["levels"]["IQ2_XXS"]["tensors"] == {"IQ2_XXS": 12, "F32": 5, "Q2_K": 2, "Q5_K": 1}
    matrix = manifest["importance"]
    assert {entry["importance"] for entry in manifest["levels"].values()} == {matrix["sha256"]}
    assert matrix["sha256"] == file_digest(calibrated / "importance.gguf")
    rows = calibrated.parent / "rows.jsonl"
    assert matrix["calibration"] == {"sha256": file_digest(rows), "rows": 200}
    assert (matrix["calibrated_on"], matrix["rows"], matrix["weights"]) == ("rows.jsonl", 3, 14)


def test_what_goes_into_each_weight_is_what_the_architecture_says(tmp_path: Path) -> None:
    """A text of one token needs neither positions nor attention, so that llama's computation fits here."""
    model = made_model(tmp_path / "tiny.gguf", kind="f32")
    run("measure", on_progress=print, model=str(model), out=str(tmp_path / "m.gguf"), texts=["a"], threads=1)
    weight, means = read(model), read_means(tmp_path / "m.gguf")

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean() + 1e-5) * weight[name]

    x = weight["token_embd.weight"][1 + _letters().index("a")]
    for layer in ("blk.0.", "blk.1."):
        h = norm(x, f"{layer}attn_norm.weight")
        values = (weight[f"{layer}attn_v.weight"] @ h).reshape(2, -1).repeat(2, axis=0).ravel()  # two heads share one
        x = x + weight[f"{layer}attn_output.weight"] @ values
        g = norm(x, f"{layer}ffn_norm.weight")
        gate, up = weight[f"{layer}ffn_gate.weight"] @ g, weight[f"{layer}ffn_up.weight"] @ g
        inner = gate / (1 + np.exp(-gate)) * up
        x = x + weight[f"{layer}ffn_down.weight"] @ inner
        inputs = {"attn_q": h, "attn_k": h, "attn_v": h, "attn_output": values}
        inputs |= {"ffn_gate": g, "ffn_up": g, "ffn_down": inner}
        for name, expected in inputs.items():
            found = means[f"{layer}{name}.weight"]
            assert np.allclose(found, expected**2, rtol=0.02, atol=1e-3 * (expected**2).mean()), f"{layer}{name}"


def test_the_rows_are_taken_from_all_over_the_file_and_blank_passages_are_not(tmp_path: Path) -> None:
    rows = [{"query": f"q{number}", "text": f"t{number}"} for number in range(10)]
    file = calibration(tmp_path, [{"query": "blank", "text": " "}, *rows]).file
    assert calibration_texts(file, rows=3) == [prompt(f"q{number}") + f"t{number}" for number in (0, 3, 6)]
    assert len(calibration_texts(file, rows=200)) == 10


def test_a_row_is_cut_to_what_a_served_sequence_holds(tiny: Path, tmp_path: Path) -> None:
    done = run(
        "measure", on_progress=print, model=str(tiny), out=str(tmp_path / "m.gguf"), texts=["a" * 999, "aa"], threads=1
    )
    assert done["tokens"] == MOST_TOKENS + 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "rows.jsonl has no passage to calibrate on; name JSON lines with query and text"),
        ('{"query": "a", "text": 1}', "rows.jsonl:1: 'text' is 1; write it as a text"),
        ('{"text": "a"}', "rows.jsonl:1: 'query' is None; write it as a text"),
        ("[]", "rows.jsonl:1: a JSON list, not an object"),
    ],
)
def test_a_calibration_file_without_passages_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises((DataError, SettingsError)) as caught:
        calibration_texts(file, rows=3)
    assert sentence in str(caught.value)


# --- what is refused


def _without_a_tensor(tensors: dict[str, Array]) -> None:
    del tensors["blk.1.ffn_up.weight"]


def _with_a_number_that_is_none(tensors: dict[str, Array]) -> None:
    tensors["blk.1.ffn_up.weight"][0, 0] = np.nan


def _with_a_weight_of_another_shape(tensors: dict[str, Array]) -> None:
    tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"][:, :100]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without_a_tensor, "cannot be used (tensor 'blk.1.ffn_up.weight' not found)"),
        (_with_a_number_that_is_none, "as Q4_0 (tensor 'blk.1.ffn_up.weight' has invalid data)"),
        (_with_a_weight_of_another_shape, "cannot be used (tensor 'blk.1.ffn_up.weight' has wrong shape"),
    ],
)
def test_a_model_whose_tensors_are_wrong_is_refused(tmp_path: Path, change: Changes, sentence: str) -> None:
    assert sentence in refused(made_model(tmp_path / "wrong.gguf", change=change))


def test_an_architecture_that_llama_cpp_does_not_know_is_refused(tmp_path: Path) -> None:
    model = made_model(tmp_path / "wrong.gguf", arch="perceptron")
    assert refused(model) == (
        f"the model {model} cannot be used (unknown model architecture: 'perceptron'); "
        "give a complete GGUF file that llama.cpp knows"
    )


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (0, "is not a GGUF file"),
        (20, "cannot be used (failed to read header)"),
        (1000, "cannot be used (failed to read key-value pairs)"),
        (1_000_000, "data is not within the file bounds, model is corrupted or incomplete)"),
        (-1, "data is not within the file bounds, model is corrupted or incomplete)"),
    ],
)
def test_a_file_that_ends_too_early_is_refused(tiny: Path, tmp_path: Path, size: int, sentence: str) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:size])
    assert sentence in refused(tmp_path / "cut.gguf")


@pytest.mark.parametrize("place", [8, 16])
def test_a_count_that_cannot_be_true_is_refused_at_once(tiny: Path, tmp_path: Path, place: int) -> None:
    """Where the header says how many tensors and how many values follow. The gguf package would count to it."""
    whole = bytearray(tiny.read_bytes())
    whole[place : place + 8] = (2**60).to_bytes(8, "little")
    (tmp_path / "broken.gguf").write_bytes(whole)
    assert "is 1152921504606846976 but must be in [0, " in refused(tmp_path / "broken.gguf")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.gguf").endswith("cannot be read (No such file or directory); name a GGUF file")
    (tmp_path / "text.gguf").write_text("hello")
    assert refused(tmp_path / "text.gguf").endswith("is not a GGUF file; convert it, or name another")


def test_a_folder_that_cannot_be_made_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"file cannot be made \(File exists\); name another --out"):
        made(tiny, tmp_path / "file", "Q4_0")


# --- what happens on the way

COMMAND = [sys.executable, "-m", "querylift", "quantize", "make"]


def start(tiny: Path, out: Path, types: str) -> subprocess.Popen[str]:
    command = [*COMMAND, str(tiny), "--types", types, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], object], *, process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def child_of(process: subprocess.Popen[str]) -> int:
    """The process id of its worker, as soon as it has one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: children.read_text().split(), process=process)
    return int(children.read_text().split()[0])


def test_a_full_disc_is_named_and_leaves_what_was_whole(tiny: Path, tmp_path: Path) -> None:
    """No file may have more than 900 KiB: one of Q4_0 fits, one of Q8_0 does not."""
    limited = ["bash", "-c", 'ulimit -f 900; exec "$@"', "_", *COMMAND]
    command = [*limited, str(tiny), "--types", "Q4_0,Q8_0", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    problem = f"{tmp_path}/tiny-Q8_0.gguf cannot be written: File too large; name another place"
    assert done.stderr == f"querylift: {problem}\n"
    assert names(tmp_path) == ["manifest.json", "tiny-Q4_0.gguf"]
    assert [level.kept for level in make(tiny, tmp_path, ["Q4_0", "Q8_0"])] == [True, False]


def test_a_run_that_is_killed_leaves_no_torn_file_and_nobody_behind_and_the_next_one_goes_on(
    tiny: Path, tmp_path: Path
) -> None:
    with start(tiny, tmp_path, "Q8_0,Q4_0") as process:
        until(lambda: list(tmp_path.glob(".tiny-Q4_0.gguf.*.tmp")), process=process)
        worker = child_of(process)
        process.kill()
    while Path(f"/proc/{worker}/stat").exists() and " Z " not in Path(f"/proc/{worker}/stat").read_text():
        time.sleep(0.01)
    left, whole = names(tmp_path)[0], names(tmp_path)[1:]
    assert left.startswith(".tiny-Q4_0.gguf.")
    assert whole == ["manifest.json", "tiny-Q8_0.gguf"]
    assert [level.kept for level in make(tiny, tmp_path, ["Q8_0"])] == [True]
    assert names(tmp_path) == ["manifest.json", "tiny-Q8_0.gguf"]
    assert [level.kept for level in make(tiny, tmp_path, ["Q8_0", "Q4_0"])] == [True, False]
    assert names(tmp_path) == ["manifest.json", "tiny-Q4_0.gguf", "tiny-Q8_0.gguf"]


def test_a_crash_of_llama_cpp_is_one_sentence(tiny: Path, tmp_path: Path) -> None:
    with start(tiny, tmp_path, "Q8_0,Q4_0") as process:
        until(lambda: list(tmp_path.glob(".tiny-Q4_0.gguf.*.tmp")), process=process)
        os.kill(child_of(process), signal.SIGABRT)
        printed, said = process.communicate()
    assert process.returncode == 2
    assert printed.startswith("Q8_0 ")
    reason = "llama.cpp ended by SIGABRT: it left no word"
    assert said == f"querylift: {tiny} cannot be quantised as Q4_0 ({reason}); name another model or type\n"
    assert names(tmp_path) == ["manifest.json", "tiny-Q8_0.gguf"]


def test_two_runs_do_not_write_in_one_folder(tiny: Path, tmp_path: Path) -> None:
    levels = make(tiny, tmp_path, ["Q8_0", "Q4_0"])
    next(levels)
    with pytest.raises(SettingsError, match="is being written by another process; wait for it, or name another --out"):
        made(tiny, tmp_path, "Q4_0")
    assert next(levels).type == "Q4_0"


def test_a_model_that_changes_meanwhile_is_not_mixed(tmp_path: Path) -> None:
    model, folder = made_model(tmp_path / "tiny.gguf"), tmp_path / "out"
    levels = make(model, folder, ["Q8_0", "Q4_0"])
    next(levels)
    os.utime(model, (1, 1))
    with pytest.raises(SettingsError, match=r"tiny\.gguf was changed meanwhile; run the command again"):
        next(levels)
    assert names(folder) == ["manifest.json", "tiny-Q8_0.gguf"]
