"""How a judge reads texts: cut, padded, kept; and which bases it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch

from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.student.judge_model import JudgeModel, find_base_folder, load_judge_model
from querylift.trainer.judge.student.student_config import StudentOptions
from tests.helpers.bert_folders import load_tiny_judge, make_topic_pairs, write_tiny_bert
from tests.helpers.expanders import write_tokenizer
from tests.helpers.folders import edit_json_file

READINGS = pytest.mark.parametrize("reading", ["apart", "joint"])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    """The tiny BERT, to be changed."""
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def tokenize_pairs(model: JudgeModel) -> list[tuple[tuple[int, ...], ...]]:
    """Return eight pairs of very different lengths."""
    rows = make_topic_pairs()[:8]
    return [model.tokenize_pair(row.query, " ".join([row.document] * (1 + 4 * n))) for n, row in enumerate(rows)]


# -- reading ------------------------------------------------------------------------------------------------------------


def test_each_text_is_cut_at_its_own_length_and_keeps_its_first_and_last_token(bert: Path) -> None:
    model = load_tiny_judge(bert, query_tokens=4, document_tokens=5, reasoning_tokens=6)
    query, document = model.tokenize_pair("boats " * 9, "stars " * 9)
    boats, stars = (model.tokenizer.token_to_id(word) for word in ("boats", "stars"))
    assert query == (2, boats, boats, 3)
    assert document == (2, stars, stars, stars, 3)
    _, reasoned = model.tokenize_pair("boats", "stars " * 9, "boats " * 9)
    assert reasoned == (2, stars, stars, stars, 3, boats, boats, boats, boats, 3)
    assert model.tokenize_pair("", "", " \n") == ((2, 3), (2, 3))


def test_a_joint_reading_is_one_text_with_one_first_token(bert: Path) -> None:
    model = load_tiny_judge(bert, reading="joint")
    boats, stars = (model.tokenizer.token_to_id(word) for word in ("boats", "stars"))
    assert model.tokenize_pair("boats", "stars", "boats") == ((2, boats, 3, stars, 3, boats, 3),)


@READINGS
def test_padding_changes_no_pairs_features(bert: Path, reading: str) -> None:
    model = load_tiny_judge(bert, reading=reading)
    pairs = tokenize_pairs(model)
    with torch.no_grad():
        together = model.compute_features(pairs)
        alone = torch.cat([model.compute_features([pair]) for pair in pairs])
    assert together.shape == (8, 32 if reading == "joint" else 65)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@READINGS
def test_features_are_those_of_transformers_whole_model(bert: Path, reading: str) -> None:
    from transformers import BertModel

    model, whole = load_tiny_judge(bert, reading=reading), BertModel.from_pretrained(bert).eval()
    pair = model.tokenize_pair("sailing boats", "stars and planets")
    with torch.no_grad():
        features = model.compute_features([pair])[0]
        states = [whole(torch.tensor([text])).last_hidden_state[0] for text in pair]
    if reading == "joint":
        torch.testing.assert_close(features, states[0][0], atol=1e-4, rtol=1e-4)
        return
    query, document = (torch.nn.functional.normalize(state.mean(0), dim=0) for state in states)
    parts = [query * document * 32**0.5, (query - document).abs() * 32**0.5, (query @ document)[None]]
    torch.testing.assert_close(features, torch.cat(parts), atol=1e-4, rtol=1e-4)


@READINGS
@pytest.mark.parametrize("trained_layers", [1, 2])
def test_kept_states_give_the_same_features(bert: Path, reading: str, trained_layers: int) -> None:
    """They are kept in sixteen bits."""
    model = load_tiny_judge(bert, reading=reading, trained_layers=trained_layers)
    pairs = tokenize_pairs(model)
    with torch.no_grad():
        fresh = model.compute_features(pairs)
        assert not model.kept_states
        first = model.compute_features(pairs, keep_states=True)
        assert set(model.kept_states) == {text for pair in pairs for text in pair}
        again = model.compute_features(pairs, keep_states=True)
        mixed = model.compute_features([*pairs, model.tokenize_pair("dough", "flour")])
    torch.testing.assert_close(first, fresh)
    torch.testing.assert_close(again, fresh, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(mixed[:8], again, atol=1e-4, rtol=1e-4)


# -- bases --------------------------------------------------------------------------------------------------------------


def read_error(folder: Path, **student: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_tiny_judge(folder, **student)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_base_that_lacks_a_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert f"copy lacks {name}; name a BERT folder with config.json, model.safetensors and" in read_error(copy)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "llama"}, "copy holds a model of type 'llama', not a BERT; name a BERT folder"),
        ({"model_type": None}, "config.json cannot be read (KeyError('model_type'))"),
        ({"hidden_act": "relu"}, "copy: hidden_act is 'relu', and only 'gelu' can be exported"),
        ({"num_hidden_layers": 3}, "model.safetensors lacks the weights encoder.layer.2."),
        ({"hidden_size": 64}, "copy cannot be loaded ("),
        ({"max_position_embeddings": 0}, "copy cannot be loaded ("),
    ],
)
def test_a_base_that_is_no_fitting_bert_is_refused(copy: Path, changes: dict[str, Any], sentence: str) -> None:
    edit_json_file(copy / "config.json", changes)
    assert sentence in read_error(copy)


def test_damaged_files_of_a_base_are_refused(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    for cut in (len(weights) // 2, 4, 0):
        (copy / "model.safetensors").write_bytes(weights[:cut])
        assert "copy cannot be loaded (" in read_error(copy)
    (copy / "model.safetensors").write_bytes(weights)
    (copy / "tokenizer.json").write_text("{", encoding="utf-8")
    assert "tokenizer.json cannot be read as a tokenizer (" in read_error(copy)
    for text in ("[", "[]"):
        (copy / "config.json").write_text(text, encoding="utf-8")
        assert "config.json cannot be read (" in read_error(copy)


def test_a_tokenizer_without_a_first_and_a_last_token_is_refused(copy: Path) -> None:
    write_tokenizer(copy, special=False)
    assert "tokenizer.json does not put a first and a last token around each text; name a BERT" in read_error(copy)


def test_texts_that_are_longer_than_the_base_reads_are_refused(copy: Path) -> None:
    sentence = read_error(copy, document_tokens=198)
    assert "student.document_tokens and student.reasoning_tokens make 277 tokens" in sentence
    assert "reads at most 256; lower them" in sentence
    load_tiny_judge(copy, document_tokens=170)
    assert "student.query_tokens, student.document_tokens" in read_error(copy, document_tokens=170, reading="joint")


def test_more_trained_layers_than_there_are_and_an_unknown_base_are_refused(bert: Path) -> None:
    assert "student.trained_layers is 3, but" in read_error(bert, trained_layers=3)
    with pytest.raises(SettingsError, match=r"student\.base is 'bert-large', and there is no such folder; name a BERT"):
        load_judge_model(StudentOptions(base="bert-large"), grade_count=4)


def test_an_old_folder_of_sentence_transformers_has_its_model_one_level_down(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "old" / "0_Transformer")
    assert find_base_folder(str(tmp_path / "old")) == tmp_path / "old" / "0_Transformer"
    (tmp_path / "old" / "modules.json").write_text(json.dumps([]), encoding="utf-8")
    assert load_tiny_judge(tmp_path / "old").width == 32
