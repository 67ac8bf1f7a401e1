"""An expander's folder opens when every file is unchanged. Otherwise one sentence says what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import MODEL_FILE, TOKENIZER_FILE
from querylift.plugin.fast_expander.expander_folder import (
    RECORD_FILE,
    ExpansionShape,
    check_files,
    collect_file_facts,
    read_expander_record,
)
from querylift.plugin.fast_expander.mapped_files import list_text_files
from querylift.plugin.fast_expander.neighbours_weigher import (
    IDS_NAME,
    TERM_ENDS_FILE,
    TERMS_FILE,
    VECTORS_FILE,
    WEIGHTS_FILE,
)
from querylift.plugin.fast_expander.vocabulary import WORDS_NAME, Vocabulary, Word, write_vocabulary
from querylift.plugin.generators.fast_expander import open_expander_model
from tests.helpers.expanders import write_expander, write_tiny_encoder
from tests.helpers.folders import edit_json_file

WORDS_FILE, WORD_ENDS_FILE = list_text_files(WORDS_NAME)
IDS_FILE, ID_ENDS_FILE = list_text_files(IDS_NAME)
FILES = [MODEL_FILE, TOKENIZER_FILE, VECTORS_FILE, TERM_ENDS_FILE, TERMS_FILE, WEIGHTS_FILE]
FILES += [IDS_FILE, ID_ENDS_FILE, WORDS_FILE, WORD_ENDS_FILE]
REMEDY = "build it with `querylift expander build`"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("folders")
    return write_expander(work / "whole", write_tiny_encoder(work / "encoder"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the expander, to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "expander"))


def read_error(folder: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        open_expander_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unchanged_folder_opens_and_its_record_holds_what_was_written(original: Path) -> None:
    record, model = open_expander_model(original)
    assert read_expander_record(original) == record == type(record).model_validate_json(record.model_dump_json())
    assert sorted(record.files) == sorted(FILES)
    assert record.source.list_index_names() == ("topics", "topics-1", "topics")
    assert record.shape == ExpansionShape(terms=40, power=0.5, documents=20, temperature=0.08)
    assert (len(model.vocabulary), model.group_ends) == (40, {("contents",): 40})


def test_a_folder_may_be_moved(folder: Path, tmp_path: Path) -> None:
    moved_folder = folder.rename(tmp_path / "elsewhere")
    assert open_expander_model(moved_folder)[1].expand("boats") is not None


# -- expander.json ------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_readable_record_is_an_error(tmp_path: Path) -> None:
    assert (
        read_error(tmp_path / "gone")
        == f"{tmp_path}/gone is not an expander, because it has no expander.json; {REMEDY}"
    )
    assert read_error(tmp_path) == f"{tmp_path} is not an expander, because it has no expander.json; {REMEDY}"
    (tmp_path / RECORD_FILE).mkdir()
    assert "expander.json cannot be read ([Errno 21] Is a directory: " in read_error(tmp_path)
    (tmp_path / RECORD_FILE).rmdir()
    for text in ("", "{", "\udcff"):
        (tmp_path / RECORD_FILE).write_bytes(text.encode(errors="surrogateescape"))
        assert f"{tmp_path}/expander.json cannot be read (" in read_error(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_a_folder_of_another_version_is_an_error(folder: Path, version: object) -> None:
    edit_json_file(folder / RECORD_FILE, {"version": version})
    assert (
        read_error(folder)
        == f"{folder}/expander.json has version {version!r}, but this Querylift reads version 1; {REMEDY}"
    )


@pytest.mark.parametrize("text", ["[]", "1", '"expander"', "null"])
def test_json_that_is_not_an_object_has_no_version(folder: Path, text: str) -> None:
    (folder / RECORD_FILE).write_text(text, encoding="utf-8")
    assert f"{folder}/expander.json has version None" in read_error(folder)


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
def test_the_error_for_an_invalid_value_names_the_key_and_the_value(
    folder: Path, changes: Mapping[str, Any], sentence: str
) -> None:
    edit_json_file(folder / RECORD_FILE, changes)
    error = read_error(folder)
    assert error.startswith(f"{folder}/expander.json: {sentence}")
    assert error.endswith(REMEDY)


# -- the files ----------------------------------------------------------------------------------------------------------


def _record_present_files(folder: Path) -> None:
    """Put the digests of the present files into the record."""
    facts_by_name = collect_file_facts(folder, FILES)
    edit_json_file(folder / RECORD_FILE, {"files": {name: facts.model_dump() for name, facts in facts_by_name.items()}})


def _flip_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        _flip_bit,
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"\0",
    ],
    ids=["one bit", "one byte less", "half", "empty", "one byte more"],
)
def test_the_error_for_a_changed_file_names_it(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    damaged_data = damage((folder / name).read_bytes())
    (folder / name).write_bytes(damaged_data)
    assert (
        read_error(folder)
        == f"{folder}/{name} has changed since it was built (it has {len(damaged_data)} bytes now); {REMEDY}"
    )


@pytest.mark.parametrize("name", FILES)
def test_the_error_for_a_missing_file_names_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert read_error(folder) == f"{folder}/{name} cannot be read (No such file or directory); {REMEDY}"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (MODEL_FILE, "cannot be read as an encoder ("),
        (TOKENIZER_FILE, "cannot be read as a tokenizer ("),
        (VECTORS_FILE, "cannot be read as vectors ("),
        *((name, "cannot be read (") for name in (TERM_ENDS_FILE, TERMS_FILE, WEIGHTS_FILE, WORD_ENDS_FILE)),
    ],
)
def test_the_error_for_a_file_with_broken_content_names_it(folder: Path, name: str, sentence: str) -> None:
    """The digest is right and the content is not: the disk was full, or another program made the folder."""
    data = (folder / name).read_bytes()
    for broken_data in (data[: len(data) // 2], data[:10], b"", b"nonsense" * 20):
        (folder / name).write_bytes(broken_data)
        _record_present_files(folder)
        error = read_error(folder)
        assert error.startswith(f"{folder}/{name} {sentence}")
        assert error.endswith("build the expander again")


def test_a_pickle_is_not_read(folder: Path) -> None:
    """Reading an array of pickled objects could run their code."""
    np.save(folder / TERMS_FILE, np.array([{"a": 1}]), allow_pickle=True)
    _record_present_files(folder)
    assert "documents.terms.npy cannot be read (" in read_error(folder)


def test_files_that_the_record_does_not_list_do_not_matter(folder: Path) -> None:
    (folder / "notes.txt").write_text("ours", encoding="utf-8")
    check_files(folder, read_expander_record(folder))


# -- words --------------------------------------------------------------------------------------------------------------


def test_the_vocabulary_holds_the_words_that_were_written(tmp_path: Path) -> None:
    words = [Word("boat", "boats"), Word("fish", ""), Word("müll", "Müll"), Word("法律", "法律"), Word("🍕", "🍕🍕")]
    assert write_vocabulary(tmp_path, iter(words)) == [WORDS_FILE, WORD_ENDS_FILE]
    vocabulary = Vocabulary(tmp_path)
    assert len(vocabulary) == 5
    assert [vocabulary[number] for number in range(5)] == words
    assert vocabulary[2] == Word("müll", "Müll")
