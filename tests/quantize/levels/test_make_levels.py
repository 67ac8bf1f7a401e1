"""`querylift quantize make` makes smaller files of a GGUF model and records them in a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import PROMPT_VERSION, build_prompt
from querylift.plugin.files import compute_file_digest
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, find_packaged_model
from querylift.quantize.commands.quantize import quantize
from querylift.quantize.gguf_file import open_gguf_reader
from querylift.quantize.levels.level_types import get_known_types, parse_types
from querylift.quantize.levels.make_levels import read_manifest
from tests.helpers.gguf_models import (
    ROWS,
    compute_gguf_logits,
    list_file_names,
    make_levels_by_type,
    read_make_refusal,
    write_calibration,
    write_random_gguf,
)

# --- files


def test_every_default_type_makes_a_file_that_is_smaller_than_the_one_before(level_folder: Path) -> None:
    types = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
    assert list_file_names(level_folder) == sorted(["manifest.json", *(f"tiny-{name}.gguf" for name in types)])
    sizes = [(level_folder / f"tiny-{name}.gguf").stat().st_size for name in types]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5


@pytest.mark.parametrize(
    ("type_name", "max_error"), [("Q8_0", 0.02), ("Q6_K", 0.05), ("Q5_K_M", 0.07), ("Q4_K_M", 0.11), ("Q4_0", 0.13)]
)
def test_llama_cpp_computes_nearly_the_same_logits_with_each_level(
    tiny_model: Path, level_folder: Path, type_name: str, max_error: float
) -> None:
    """The relative errors of the logits were 1.2, 3.2, 4.6, 7.4 and 9.1%."""
    text = build_prompt(ROWS[0]["query"]) + ROWS[0]["text"]
    expected = compute_gguf_logits(tiny_model, text)
    logits = compute_gguf_logits(level_folder / f"tiny-{type_name}.gguf", text)
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert len(expected) > 200
    assert error < max_error


def test_a_level_keeps_the_metadata_of_the_model(level_folder: Path) -> None:
    reader = open_gguf_reader(level_folder / "tiny-Q4_0.gguf")
    assert reader.fields[PROMPT_VERSION_KEY].contents() == PROMPT_VERSION
    assert reader.fields["tokenizer.ggml.merges"].contents() == ["Ġ t"]
    assert reader.fields["general.file_type"].contents() == get_known_types()["Q4_0"]


def test_the_manifest_records_the_source_and_every_file(tiny_model: Path, level_folder: Path) -> None:
    manifest = read_manifest(level_folder)
    assert manifest["source"] == {
        "file": "tiny.gguf", "size_bytes": tiny_model.stat().st_size, "sha256": compute_file_digest(tiny_model),
        "tensors": {"F16": 15, "F32": 5},
    }  # fmt: skip
    assert list(manifest["levels"]) == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
    for entry in manifest["levels"].values():
        file = level_folder / entry["file"]
        assert (entry["size_bytes"], entry["sha256"]) == (file.stat().st_size, compute_file_digest(file))
        assert entry["seconds"] > 0
        assert entry["importance"] is None
        assert entry["versions"]["llama-cpp-python"]
    assert manifest["levels"]["Q4_K_M"]["tensors"] == {"Q4_K": 12, "F32": 5, "Q6_K": 3}
    assert manifest["levels"]["Q4_0"]["tensors"] == {"Q4_0": 14, "F32": 5, "Q6_K": 1}


def test_the_command_prints_one_narrow_line_for_each_type(make_output: str) -> None:
    lines = make_output.splitlines()
    assert [line.split()[0] for line in lines] == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
    assert all(line.split()[2] == "MB" and line.endswith(" s") and len(line) < 80 for line in lines)
    assert lines[0].split()[1] == "1.3"


def test_tensors_whose_rows_do_not_fit_the_block_size_are_counted_by_their_fallback_type(tmp_path: Path) -> None:
    """llama.cpp uses another type for rows of 96 numbers: 96 is no multiple of the block size 256, but one of 32."""
    model = write_random_gguf(tmp_path / "narrow.gguf", hidden=96, kind="f32")
    result = CliRunner().invoke(quantize, ["make", str(model), "--types", "Q4_K_M", "--out", str(tmp_path / "out")])
    assert result.output.endswith(" s  12 of 20 tensors fell back to Q5_0, Q8_0\n")
    assert all(len(line) <= 80 for line in result.output.splitlines())
    level = read_manifest(tmp_path / "out")["levels"]["Q4_K_M"]
    assert level["fallbacks"] == {"Q5_0": 11, "Q8_0": 1}
    assert level["tensors"] == {"Q5_0": 11, "F32": 5, "Q8_0": 2, "Q4_K": 1, "Q6_K": 1}


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_a_model_with_unquantised_numbers_of_any_type_is_accepted(tmp_path: Path, kind: str) -> None:
    model = write_random_gguf(tmp_path / "other.gguf", kind=kind)
    assert make_levels_by_type(model, tmp_path / "out", "Q4_0")["Q4_0"].tensors == {"Q4_0": 14, "F32": 5, "Q6_K": 1}


def test_the_number_of_threads_does_not_change_the_file(tiny_model: Path, level_folder: Path, tmp_path: Path) -> None:
    level = make_levels_by_type(tiny_model, tmp_path, "Q4_K_M", threads=3)["Q4_K_M"]
    assert level.sha256 == read_manifest(level_folder)["levels"]["Q4_K_M"]["sha256"]


def test_the_option_json_prints_the_manifest(tiny_model: Path, level_folder: Path) -> None:
    result = CliRunner().invoke(
        quantize, ["make", str(tiny_model), "--types", "q8_0", "--out", str(level_folder), "--json"]
    )
    assert json.loads(result.output) == read_manifest(level_folder)


def test_a_quantised_model_is_accepted_only_with_requantize(level_folder: Path, tmp_path: Path) -> None:
    model = level_folder / "tiny-Q8_0.gguf"
    with pytest.raises(SettingsError) as error:
        make_levels_by_type(model, tmp_path, "Q4_0")
    sentence = (
        "is already quantised (Q8_0), and would lose precision twice; "
        "give its f32, f16 or bf16 file, or add --requantize"
    )
    assert str(error.value) == f"{model} {sentence}"
    assert make_levels_by_type(model, tmp_path, "Q4_0", requantize=True)["Q4_0"].file == "tiny-Q8_0-Q4_0.gguf"


@pytest.mark.model
def test_most_weights_of_the_packaged_model_do_not_fit_the_block_size_of_k_quants(tmp_path: Path) -> None:
    arguments = ["make", str(find_packaged_model()), "--types", "Q4_K_M", "--out", str(tmp_path), "--requantize"]
    result = CliRunner().invoke(quantize, arguments)
    assert "180 of 272 tensors fell back to Q5_0, Q8_0" in result.output
    level = tmp_path / f"{find_packaged_model().stem}-Q4_K_M.gguf"
    text = build_prompt("what causes a rainbow") + "A rainbow is caused by sunlight in drops of water."
    likeliest_tokens = compute_gguf_logits(level, text).argmax(axis=1)
    expected_tokens = compute_gguf_logits(find_packaged_model(), text).argmax(axis=1)
    assert (likeliest_tokens == expected_tokens).mean() > 0.8


# --- types


def test_a_pure_level_has_every_weight_in_its_own_type(tiny_model: Path, tmp_path: Path) -> None:
    level = make_levels_by_type(tiny_model, tmp_path, *parse_types("q4_0-pure"))["Q4_0-PURE"]
    assert (level.file, level.tensors) == ("tiny-Q4_0-PURE.gguf", {"Q4_0": 15, "F32": 5})


def test_types_may_have_any_case_and_duplicates_are_dropped() -> None:
    assert parse_types("q8_0, Q4_k_m,,Q8_0") == ["Q8_0", "Q4_K_M"]
    assert {"F16", "BF16", "Q2_K_S", "IQ2_XXS", "IQ4_NL", "TQ1_0", "MXFP4_MOE"} <= get_known_types().keys()


@pytest.mark.parametrize(
    ("text", "problem"), [("Q4_0,Q4_7", "the type 'Q4_7' is unknown"), (" , ", "no type is named")]
)
def test_the_error_for_an_unknown_type_lists_the_known_types(text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_types(text)
    assert str(error.value).startswith(f"{problem}; name one or more of F16, Q4_0, Q4_1, Q8_0, ")


def test_a_type_that_llama_cpp_lists_but_cannot_write_is_refused(tiny_model: Path) -> None:
    sentence = "cannot be quantised as NVFP4 (invalid output file type 39); name another model or type"
    assert read_make_refusal(tiny_model, "NVFP4") == f"{tiny_model} {sentence}"


def test_a_type_that_needs_an_importance_matrix_is_refused_without_one(tiny_model: Path) -> None:
    reason = "this quantization requires an importance matrix"
    assert read_make_refusal(tiny_model, "IQ2_XXS") == (
        f"{tiny_model} cannot be quantised as IQ2_XXS ({reason}); add --calibrate FILE"
    )


# --- reuse


def test_an_intact_level_is_reused_and_a_damaged_one_is_made_again(tiny_model: Path, tmp_path: Path) -> None:
    original_levels = make_levels_by_type(tiny_model, tmp_path, "Q8_0", "Q4_0")
    q8_0, q4_0 = tmp_path / "tiny-Q8_0.gguf", tmp_path / "tiny-Q4_0.gguf"
    q8_0_time = q8_0.stat().st_mtime_ns
    q4_0.write_bytes(q4_0.read_bytes()[:-1] + b"?")
    levels = make_levels_by_type(tiny_model, tmp_path, "Q8_0", "Q4_0")
    assert [level.is_reused for level in levels.values()] == [True, False]
    assert q8_0.stat().st_mtime_ns == q8_0_time
    assert levels["Q4_0"].sha256 == original_levels["Q4_0"].sha256 == compute_file_digest(q4_0)
    q8_0.unlink()
    assert not make_levels_by_type(tiny_model, tmp_path, "Q8_0")["Q8_0"].is_reused
    assert list(read_manifest(tmp_path)["levels"]) == ["Q8_0", "Q4_0"]


def test_a_level_of_another_calibration_or_library_version_is_made_again(tiny_model: Path, tmp_path: Path) -> None:
    make_levels_by_type(tiny_model, tmp_path, "Q8_0", "Q4_0")
    calibration = write_calibration(tmp_path)
    levels = make_levels_by_type(tiny_model, tmp_path, "Q8_0", "Q4_0", calibration=calibration)
    assert [level.is_reused for level in levels.values()] == [True, False]  # calibration does not change Q8_0
    assert make_levels_by_type(tiny_model, tmp_path, "Q4_0", calibration=calibration)["Q4_0"].is_reused
    assert not make_levels_by_type(tiny_model, tmp_path, "Q4_0")["Q4_0"].is_reused
    manifest = tmp_path / "manifest.json"
    version = read_manifest(tmp_path)["levels"]["Q8_0"]["versions"]["llama-cpp-python"]
    manifest.write_text(manifest.read_text().replace(f'"llama-cpp-python": "{version}"', '"llama-cpp-python": "0.0.1"'))
    assert not make_levels_by_type(tiny_model, tmp_path, "Q8_0")["Q8_0"].is_reused


def test_a_folder_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    make_levels_by_type(tiny_model, tmp_path, "Q8_0")
    other_model = write_random_gguf(tmp_path / "other" / "tiny.gguf", kind="bf16")
    with pytest.raises(SettingsError) as error:
        make_levels_by_type(other_model, tmp_path, "Q8_0")
    sentence = "holds levels of another model (tiny.gguf); remove the folder, or name another --out"
    assert str(error.value) == f"{tmp_path} {sentence}"
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(
        SettingsError, match=r"manifest\.json is not a manifest of quantised files; name another folder"
    ):
        make_levels_by_type(tiny_model, tmp_path, "Q8_0")
