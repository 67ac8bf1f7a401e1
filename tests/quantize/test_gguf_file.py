"""A GGUF file is read as the gguf package reads it, and damaged files raise the same errors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from querylift.plugin.generators.llama.model_file import find_shipped_adapter
from querylift.quantize.gguf_file import open_gguf_reader
from tests.helpers.gguf_models import write_random_gguf


@pytest.fixture(scope="module", params=["model", "adapter"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "model":
        return write_random_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf")
    adapter = find_shipped_adapter()
    assert adapter
    return adapter


def test_metadata_and_tensors_are_those_of_the_gguf_package(path: Path) -> None:
    reader, expected = open_gguf_reader(path), gguf.GGUFReader(path)
    assert {key: field.contents() for key, field in reader.fields.items()} == {
        key: field.contents() for key, field in expected.fields.items()
    }
    for tensor, expected_tensor in zip(reader.tensors, expected.tensors, strict=True):
        assert (tensor.name, tensor.tensor_type) == (expected_tensor.name, expected_tensor.tensor_type)
        np.testing.assert_array_equal(tensor.data, expected_tensor.data)


@pytest.mark.parametrize("size", [0, 30, 400])
def test_a_cut_file_raises_the_error_of_the_gguf_package(path: Path, tmp_path: Path, size: int) -> None:
    cut_file = tmp_path / "cut.gguf"
    cut_file.write_bytes(path.read_bytes()[:size])
    with pytest.raises((ValueError, LookupError)) as expected:
        gguf.GGUFReader(cut_file)
    with pytest.raises(expected.type):
        open_gguf_reader(cut_file)
