"""A model that cannot be quantised is refused in one sentence, and no file is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from querylift.plugin.errors import SettingsError
from tests.helpers.gguf_models import Array, TensorChange, make_levels_by_type, read_make_refusal, write_random_gguf


def _remove_tensor(tensors: dict[str, Array]) -> None:
    del tensors["blk.1.ffn_up.weight"]


def _insert_nan(tensors: dict[str, Array]) -> None:
    tensors["blk.1.ffn_up.weight"][0, 0] = np.nan


def _shorten_tensor(tensors: dict[str, Array]) -> None:
    tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"][:, :100]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_remove_tensor, "cannot be used (tensor 'blk.1.ffn_up.weight' not found)"),
        (_insert_nan, "as Q4_0 (tensor 'blk.1.ffn_up.weight' has invalid data)"),
        (_shorten_tensor, "cannot be used (tensor 'blk.1.ffn_up.weight' has wrong shape"),
    ],
)
def test_a_model_with_wrong_tensors_is_refused(tmp_path: Path, change: TensorChange, sentence: str) -> None:
    assert sentence in read_make_refusal(write_random_gguf(tmp_path / "wrong.gguf", change=change))


def test_an_architecture_that_llama_cpp_does_not_support_is_refused(tmp_path: Path) -> None:
    model = write_random_gguf(tmp_path / "wrong.gguf", arch="perceptron")
    assert read_make_refusal(model) == (
        f"the model {model} cannot be used (unknown model architecture: 'perceptron'); "
        "give a complete GGUF file that llama.cpp supports"
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
def test_a_file_that_ends_too_early_is_refused(tiny_model: Path, tmp_path: Path, size: int, sentence: str) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_model.read_bytes()[:size])
    assert sentence in read_make_refusal(tmp_path / "cut.gguf")


@pytest.mark.parametrize("offset", [8, 16])
def test_an_impossible_count_is_refused_at_once(tiny_model: Path, tmp_path: Path, offset: int) -> None:
    """Bytes 8 and 16 hold the counts of tensors and of values. The gguf package would count up to them."""
    content = bytearray(tiny_model.read_bytes())
    content[offset : offset + 8] = (2**60).to_bytes(8, "little")
    (tmp_path / "broken.gguf").write_bytes(content)
    assert "is 1152921504606846976 but must be in [0, " in read_make_refusal(tmp_path / "broken.gguf")


def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    assert read_make_refusal(tmp_path / "none.gguf").endswith(
        "cannot be read (No such file or directory); name a GGUF file"
    )
    (tmp_path / "text.gguf").write_text("hello")
    assert read_make_refusal(tmp_path / "text.gguf").endswith("is not a GGUF file; convert it, or name another")


def test_an_output_folder_that_cannot_be_written_is_named(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"file cannot be written \(File exists\); name another output"):
        make_levels_by_type(tiny_model, tmp_path / "file", "Q4_0")
