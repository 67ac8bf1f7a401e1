"""An importance matrix makes a quantised file more exact in the columns that matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import build_prompt
from querylift.plugin.files import compute_file_digest
from querylift.quantize.levels.importance_matrix import MAX_TOKENS_PER_TEXT, read_calibration_texts, read_mean_squares
from querylift.quantize.levels.make_levels import read_manifest
from querylift.quantize.levels.worker_process import run_in_worker
from tests.helpers.gguf_models import (
    Array,
    list_byte_letters,
    make_levels_by_type,
    read_tensors,
    write_calibration,
    write_random_gguf,
)


@pytest.fixture(scope="module")
def calibrated_folder(tiny_model: Path) -> Path:
    """A folder of levels that were made with an importance matrix."""
    folder = tiny_model.parent / "calibrated"
    make_levels_by_type(
        tiny_model, folder, "Q4_K_M", "Q4_0", "IQ2_XXS", calibration=write_calibration(tiny_model.parent)
    )
    return folder


@pytest.mark.parametrize("type_name", ["Q4_K_M", "Q4_0"])
def test_an_importance_matrix_reduces_the_error_of_important_columns(
    tiny_model: Path, level_folder: Path, calibrated_folder: Path, type_name: str
) -> None:
    """The error is the sum of the input's mean square times the weight's squared error. It was 37% and 29% smaller."""
    mean_squares, original = read_mean_squares(calibrated_folder / "importance.gguf"), read_tensors(tiny_model)

    def compute_error(folder: Path) -> float:
        quantised = read_tensors(folder / f"tiny-{type_name}.gguf")
        return sum(float((mean_squares[key] * (quantised[key] - original[key]) ** 2).sum()) for key in mean_squares)

    assert compute_error(calibrated_folder) < 0.8 * compute_error(level_folder)


def test_a_type_that_needs_an_importance_matrix_is_made_with_one_and_the_manifest_records_it(
    calibrated_folder: Path,
) -> None:
    manifest = read_manifest(calibrated_folder)
    assert manifest["levels"]["IQ2_XXS"]["tensors"] == {"IQ2_XXS": 12, "F32": 5, "Q2_K": 2, "Q5_K": 1}
    matrix = manifest["importance"]
    assert {entry["importance"] for entry in manifest["levels"].values()} == {matrix["sha256"]}
    assert matrix["sha256"] == compute_file_digest(calibrated_folder / "importance.gguf")
    rows = calibrated_folder.parent / "rows.jsonl"
    assert matrix["calibration"] == {"sha256": compute_file_digest(rows), "rows": 200}
    assert (matrix["calibrated_on"], matrix["rows"], matrix["weights"]) == ("rows.jsonl", 3, 14)


def test_the_measured_inputs_of_each_weight_are_those_of_the_llama_architecture(tmp_path: Path) -> None:
    """With a text of one token, positions and attention play no part, so the computation is short."""
    model = write_random_gguf(tmp_path / "tiny.gguf", kind="f32")
    run_in_worker("measure", on_progress=print, model=str(model), out=str(tmp_path / "m.gguf"), texts=["a"], threads=1)
    weight, mean_squares = read_tensors(model), read_mean_squares(tmp_path / "m.gguf")

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean() + 1e-5) * weight[name]

    x = weight["token_embd.weight"][1 + list_byte_letters().index("a")]
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
            measured = mean_squares[f"{layer}{name}.weight"]
            assert np.allclose(measured, expected**2, rtol=0.02, atol=1e-3 * (expected**2).mean()), f"{layer}{name}"


def test_calibration_rows_are_spread_over_the_file_without_blank_passages(tmp_path: Path) -> None:
    rows = [{"query": f"q{number}", "text": f"t{number}"} for number in range(10)]
    file = write_calibration(tmp_path, [{"query": "blank", "text": " "}, *rows]).file
    assert read_calibration_texts(file, rows=3) == [build_prompt(f"q{number}") + f"t{number}" for number in (0, 3, 6)]
    assert len(read_calibration_texts(file, rows=200)) == 10


def test_a_calibration_text_is_cut_to_the_length_of_a_served_sequence(tiny_model: Path, tmp_path: Path) -> None:
    result = run_in_worker(
        "measure",
        on_progress=print,
        model=str(tiny_model),
        out=str(tmp_path / "m.gguf"),
        texts=["a" * 999, "aa"],
        threads=1,
    )
    assert result["tokens"] == MAX_TOKENS_PER_TEXT + 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "rows.jsonl has no passage to calibrate with; name JSON lines with query and text"),
        ('{"query": "a", "text": 1}', "rows.jsonl:1: 'text' is 1; write a text"),
        ('{"text": "a"}', "rows.jsonl:1: 'query' is None; write a text"),
        ("[]", "rows.jsonl:1: this line is a JSON list; write an object"),
    ],
)
def test_a_calibration_file_without_passages_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises((DataError, SettingsError)) as error:
        read_calibration_texts(file, rows=3)
    assert sentence in str(error.value)
