"""A small random model and its default levels, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from querylift.quantize.commands.quantize import quantize
from tests.helpers.gguf_models import write_random_gguf


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of half a megabyte."""
    return write_random_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def make_output(tiny_model: Path) -> str:
    """The output of the command that makes the default types in the folder "out" beside the model."""
    result = CliRunner().invoke(quantize, ["make", str(tiny_model), "--out", str(tiny_model.parent / "out")])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="session")
def level_folder(tiny_model: Path, make_output: str) -> Path:
    """The folder with the default types of `tiny_model`."""
    return tiny_model.parent / "out"
