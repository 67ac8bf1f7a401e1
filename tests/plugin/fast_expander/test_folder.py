"""An expander's folder is what was built, file by file, or is refused in one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import MODEL, TOKENIZER
from querylift.plugin.fast_expander.folder import ABOUT, Shape, check_files, facts_of_all, read_about
from querylift.plugin.fast_expander.neighbours import ENDS, TERMS, VECTORS, WEIGHTS
from querylift.plugin.fast_expander.vocabulary import WORD_ENDS, WORDS, Vocabulary, Word, write_vocabulary
from querylift.plugin.generators.fast_expander import open_parts
from tests.helpers.expanders import made_expander, tiny_encoder
from tests.helpers.folders import edit

FILES = [MODEL, TOKENIZER, VECTORS, ENDS, TERMS, WEIGHTS, WORDS, WORD_ENDS]
AGAIN = "build it with `querylift expander build`"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("folders")
    return made_expander(work / "whole", tiny_encoder(work / "encoder"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """The expander, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "expander"))


def refused(folder: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        open_parts(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_folder_is_opened_and_says_of_itself_what_was_written(whole: Path) -> None:
    about, parts = open_parts(whole)
    assert read_about(whole) == about == type(about).model_validate_json(about.model_dump_json())
    assert sorted(about.files) == sorted(FILES)
    assert about.source.names() == ("topics", "topics-1", "topics")
    assert about.shape == Shape(terms=40, power=0.5, documents=20, temperature=0.08)
    assert (len(parts.vocabulary), parts.field) == (40, "contents")


def test_a_folder_may_be_moved(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_parts(moved)[1].expand("boats") is not None


# -- expander.json ------------------------------------------------------------------------------------------------------


def test_what_is_no_expanders_folder_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone") == f"{tmp_path}/gone has no expander.json, so it is no expander; {AGAIN}"
    assert refused(tmp_path) == f"{tmp_path} has no expander.json, so it is no expander; {AGAIN}"
    (tmp_path / ABOUT).mkdir()
    assert "expander.json cannot be read ([Errno 21] Is a directory: " in refused(tmp_path)
    (tmp_path / ABOUT).rmdir()
    for text in ("", "{", "\udcff"):
        (tmp_path / ABOUT).write_bytes(text.encode(errors="surrogateescape"))
        assert f"{tmp_path}/expander.json cannot be read (" in refused(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_a_folder_of_another_version_is_refused(folder: Path, version: object) -> None:
    edit(folder / ABOUT, {"version": version})
    assert refused(folder) == f"{folder}/expander.json is of version {version!r}, this Querylift reads 1; {AGAIN}"


@pytest.mark.parametrize("text", ["[]", "1", '"expander"', "null"])
def test_json_that_is_no_object_is_of_no_version(folder: Path, text: str) -> None:
    (folder / ABOUT).write_text(text, encoding="utf-8")
    assert f"{folder}/expander.json is of version None" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"source": None}, "source is missing"),
        ({"form": "other"}, "form is 'other' (input should be 'neighbours'"),
        ({"shape": {"terms": 0}}, "shape.terms is 0 (input should be greater than or equal to 1)"),
        ({"shape": {"terms": 129}}, "shape.terms is 129 (input should be less than or equal to 128)"),
        ({"shape": {"power": 0}}, "shape.power is 0 (input should be greater than 0)"),
        ({"shape": {"temperature": 0}}, "shape.temperature is 0 (input should be greater than 0)"),
        ({"shape": {"documents": 201}}, "shape.documents is 201 (input should be less than or equal to 200)"),
        ({"reading": {"pooling": "max", "max_tokens": 64}}, "reading.pooling is 'max' (input should be 'mean' or 'cls')"),
        ({"files": {"words.bin": "aa"}}, "files.words.bin is 'aa' ("),
        ({"adapter": "x"}, "adapter is 'x' (extra inputs are not permitted)"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_of_its_kind_is_named(folder: Path, changes: Mapping[str, Any], sentence: str) -> None:
    edit(folder / ABOUT, changes)
    said = refused(folder)
    assert said.startswith(f"{folder}/expander.json: {sentence}")
    assert said.endswith(AGAIN)


# -- the files ----------------------------------------------------------------------------------------------------------


def _changed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        _changed,
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"\0",
    ],
    ids=["one bit", "one byte less", "half", "empty", "one byte more"],
)
def test_a_file_that_is_not_as_it_was_written_is_named(
    folder: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    damaged = damage((folder / name).read_bytes())
    (folder / name).write_bytes(damaged)
    assert refused(folder) == f"{folder}/{name} is not the file that was built ({len(damaged)} bytes); {AGAIN}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refused(folder) == f"{folder}/{name} cannot be read (No such file or directory); {AGAIN}"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (MODEL, "cannot be read as an encoder ("),
        (TOKENIZER, "cannot be read as a tokenizer ("),
        (VECTORS, "cannot be read as vectors ("),
        *((name, "cannot be read (") for name in (ENDS, TERMS, WEIGHTS, WORD_ENDS)),
    ],
)
def test_a_file_is_named_that_was_written_broken(folder: Path, name: str, sentence: str) -> None:
    """The hash is right, the content is not: a disk that was full, or a folder made by something else."""
    whole = (folder / name).read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:10], b"", b"nonsense" * 20):
        (folder / name).write_bytes(broken)
        edit(folder / ABOUT, {"files": {n: f.model_dump() for n, f in facts_of_all(folder, FILES).items()}})
        said = refused(folder)
        assert said.startswith(f"{folder}/{name} {sentence}")
        assert said.endswith("build the expander again")


def test_a_pickle_is_not_read(folder: Path) -> None:
    """An array of objects would run what stands in it."""
    np.save(folder / TERMS, np.array([{"a": 1}]), allow_pickle=True)
    edit(folder / ABOUT, {"files": {n: f.model_dump() for n, f in facts_of_all(folder, FILES).items()}})
    assert "documents.terms.npy cannot be read (" in refused(folder)


def test_files_that_are_not_named_are_nothing_to_it(folder: Path) -> None:
    (folder / "notes.txt").write_text("ours", encoding="utf-8")
    check_files(folder, read_about(folder))


# -- words --------------------------------------------------------------------------------------------------------------


def test_words_are_read_as_they_were_written(tmp_path: Path) -> None:
    given = [Word("boat", "boats"), Word("fish", ""), Word("müll", "Müll"), Word("法律", "法律"), Word("🍕", "🍕🍕")]
    assert write_vocabulary(tmp_path, iter(given)) == [WORDS, WORD_ENDS]
    found = Vocabulary(tmp_path)
    assert len(found) == 5
    assert [found[number] for number in range(5)] == given
    assert found[2] == Word("müll", "Müll")
