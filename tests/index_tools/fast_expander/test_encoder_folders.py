"""Folders of sentence-transformers: the vectors are those of the library itself, or the folder is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.index_tools.fast_expander.encoder_folder import read_encoder_folder
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import Encoder
from tests.helpers.expanders import TEXTS, TOPICS, write_old_encoder_folder, write_tiny_encoder
from tests.helpers.folders import edit_json_file

LONG = " ".join(word for topic in TOPICS.values() for word in topic)
SAMPLES = [*list(TEXTS.values())[::8], "boats", "planets, telescopes and galaxies: 42 MOONS!", LONG]


def save_with_library(
    tiny: Path, folder: Path, *, pooling: str | Sequence[str] = "mean", include_prompt: bool = True, **options: Any
) -> Path:
    """Save the tiny encoder as sentence-transformers 6 does. `max_tokens` is the length of texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(tiny), max_seq_length=options.pop("max_tokens", None))
    modules = [transformer, Pooling(32, pooling, include_prompt=include_prompt), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", local_files_only=True, **options).save(str(folder))
    return folder


def load_with_library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def convert_encoder(folder: Path, out: Path) -> Encoder:
    out.mkdir()
    return Encoder(out, write_encoder(folder, out))


def assert_same_vectors(folder: Path, out: Path) -> None:
    """Queries and documents have the vectors of the library, to a cosine of 0.999."""
    library, encoder = load_with_library(folder), convert_encoder(folder, out)
    for encode, encode_with_library in (
        (encoder.encode_query, library.encode_query),
        (encoder.encode_document, library.encode_document),
    ):
        expected_vectors = encode_with_library(SAMPLES, normalize_embeddings=True)
        for text, expected in zip(SAMPLES, expected_vectors, strict=True):
            assert encode(text) @ expected > 0.999, text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def saved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_library(tiny, tmp_path_factory.mktemp("encoders") / "saved")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A folder that sentence-transformers wrote, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


# -- the same vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean"},
        {"pooling": "cls"},
        {"pooling": ["cls"]},
        {"max_tokens": 12},
        {"include_prompt": False},
        {"prompts": {"query": "query: ", "document": "stars: "}},
        {"prompts": {"query": "query: ", "all": "rockets "}, "default_prompt_name": "all"},
    ],
    ids=str,
)
def test_a_folder_that_the_library_writes_gives_the_vectors_of_the_library(
    tiny: Path, tmp_path: Path, options: Mapping[str, Any]
) -> None:
    assert_same_vectors(save_with_library(tiny, tmp_path / "saved", **options), tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config_sentence_transformers", {"prompts": {"query": None, "document": None}}),
        ("sentence_bert_config", {"max_seq_length": 9}),
        ("sentence_bert_config", {"processor_kwargs": {"model_max_length": 8}, "max_seq_length": 20}),
        ("sentence_bert_config", {"do_lower_case": True}),
        ("tokenizer_config", {"model_max_length": 1e30}),
        ("tokenizer_config", {"do_lower_case": False}),
        ("1_Pooling/config", {"pooling_mode": "cls", "pooling_mode_mean_tokens": True}),
    ],
)
def test_a_folder_with_one_setting_changed_gives_the_vectors_of_the_library(
    copy: Path, tmp_path: Path, file: str, changes: Mapping[str, Any]
) -> None:
    edit_json_file(copy / f"{file}.json", changes)
    assert_same_vectors(copy, tmp_path / "out")


@pytest.mark.parametrize(
    "sentence_files",
    [
        {"sentence_distilbert_config": {"max_seq_length": 12, "do_lower_case": True}},
        {"sentence_xlnet_config": {"max_seq_length": 12}},
        {"sentence_bert_config": {}, "sentence_roberta_config": {"max_seq_length": 10}},
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 10}},
    ],
    ids=str,
)
def test_a_folder_of_an_old_version_gives_the_vectors_of_the_library(
    tmp_path: Path, sentence_files: Mapping[str, Mapping[str, object]]
) -> None:
    folder = write_old_encoder_folder(tmp_path / "old", **sentence_files)
    assert_same_vectors(folder, tmp_path / "out")


def test_lower_case_is_written_into_a_tokenizer_that_keeps_capitals(tmp_path: Path) -> None:
    settings: dict[str, Mapping[str, object]] = {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"},
        "sentence_bert_config": {"do_lower_case": True},
    }
    folder = write_old_encoder_folder(tmp_path / "old", **settings)
    tokenizer_path = folder / "0_Transformer" / "tokenizer.json"
    tokenizer = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    edit_json_file(tokenizer_path, {"normalizer": tokenizer["normalizer"] | {"lowercase": False}})
    assert_same_vectors(folder, tmp_path / "out")
    encoder = Encoder(tmp_path / "out", read_encoder_folder(folder).settings)
    np.testing.assert_array_equal(encoder.encode_query("BOATS"), encoder.encode_query("boats"))


def test_the_prompt_for_passages_goes_before_documents(tiny: Path, tmp_path: Path) -> None:
    """The library adds an empty prompt `document` when it saves, and then `encode_document` leaves `passage` out."""
    folder = save_with_library(tiny, tmp_path / "saved", prompts={"query": "query: ", "passage": "passage: "})
    library, encoder = load_with_library(folder), convert_encoder(folder, tmp_path / "out")
    for text in SAMPLES:
        expected = library.encode(text, prompt_name="passage", normalize_embeddings=True)
        assert encoder.encode_document(text) @ expected > 0.999


# -- refused ------------------------------------------------------------------------------------------------------------


def read_refusal(folder: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read_encoder_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        (["mean", "max"], "mean + max"),
        (["cls", "mean"], "cls + mean"),
        ("max", "max"),
        ("lasttoken", "lasttoken"),
        ("weightedmean", "weightedmean"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(tiny: Path, tmp_path: Path, pooling: Any, name: str) -> None:
    assert read_refusal(save_with_library(tiny, tmp_path / "saved", pooling=pooling)) == (
        f"FOLDER: its pooling is {name}; only the mean of the tokens or the first token can be read; name another encoder"
    )


@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean_tokens + max_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean_tokens + cls_token"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_mean_tokens": False}, "none"),
        ({"pooling_mode": 3}, "3"),
        ({"pooling_mode": [["mean"]]}, "['mean']"),
    ],
)
def test_a_pooling_in_the_words_of_an_old_version_is_refused_likewise(
    copy: Path, pooling: Mapping[str, Any], name: str
) -> None:
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    assert read_refusal(copy).startswith(f"FOLDER: its pooling is {name}; only the mean of the tokens or the first")


def test_a_prompt_that_the_pooling_leaves_out_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = save_with_library(tiny, tmp_path / "saved", include_prompt=False, prompts={"document": "stars: "})
    assert read_refusal(folder) == (
        "FOLDER: its pooling leaves out the prompt 'stars: ', which Querylift does not do; name another encoder"
    )


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("config_sentence_transformers", {"prompts": ["query: "]}, "prompts is ['query: '], not texts by name"),
        ("config_sentence_transformers", {"prompts": {"query": 3}}, "prompts is {'query': 3}, not texts by name"),
        ("config_sentence_transformers", {"default_prompt_name": "x"}, "default_prompt_name is 'x', and there is no such"),
        ("config_sentence_transformers", {"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'; name another"),
        ("sentence_bert_config", {"query_length": 32}, "query_length is 32, which is not supported; name another"),
        ("sentence_bert_config", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask', which is not"),
        ("sentence_bert_config", {"processor_kwargs": {"use_fast": False}}, "processor_kwargs is {'use_fast': False}, which"),
        ("sentence_bert_config", {"config_kwargs": {"num_hidden_layers": 1}}, "config_kwargs is {'num_hidden_layers': 1}, w"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_followed_is_named(
    copy: Path, file: str, changes: Mapping[str, Any], sentence: str
) -> None:
    edit_json_file(copy / f"{file}.json", changes)
    assert read_refusal(copy).startswith(f"FOLDER/{file}.json: {sentence}")


def test_a_text_that_is_cut_at_its_beginning_is_refused(copy: Path) -> None:
    edit_json_file(copy / "tokenizer_config.json", {"truncation_side": "left"})
    assert read_refusal(copy) == "FOLDER: truncation_side is 'left', which is not supported; name another encoder"


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        (["a.Transformer"], ": its module a.Transformer is not supported; name another encoder"),
        (["sentence_transformers.models.Transformer"], "/modules.json names no Pooling; name a folder as"),
        ([], "/modules.json names no Transformer; name a folder as"),
        (["sentence_transformers.models.Transformer", "sentence_transformers.models.Normalize"],
         ": its module sentence_transformers.models.Normalize is not supported; name another encoder"),
    ],
)  # fmt: skip
def test_modules_that_are_not_a_model_with_its_pooling_are_refused(
    copy: Path, modules: Sequence[str], sentence: str
) -> None:
    (copy / "modules.json").write_text(json.dumps([{"type": kind, "path": ""} for kind in modules]), encoding="utf-8")
    assert read_refusal(copy).startswith(f"FOLDER{sentence}")


def test_a_module_outside_the_folder_is_refused(copy: Path) -> None:
    modules = json.loads((copy / "modules.json").read_text(encoding="utf-8"))
    for path in ("../1_Pooling", "/1_Pooling"):
        modules[1]["path"] = path
        (copy / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
        assert read_refusal(copy).startswith(f"FOLDER/modules.json names {path!r}, which is outside the folder; name")


def test_a_length_of_one_for_anything_but_the_text_is_refused(copy: Path) -> None:
    edit_json_file(copy / "2_Normalize" / "config.json", {"module_input_name": "token_embeddings"})
    assert read_refusal(copy) == "FOLDER: module_input_name of 2_Normalize is 'token_embeddings'; name another encoder"
