"""A judge as a folder: what is saved, loaded, exported and opened gives the same grades, or is refused in one sentence."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.index_tools.judging.grader import Grader, QueryDocumentPair
from querylift.index_tools.judging.judge_folder import (
    SERVED_FILES,
    JudgeRecord,
    open_judge,
    read_judge_record,
    write_agreement,
    write_judge_record,
)
from querylift.plugin.errors import SettingsError
from querylift.plugin.files import compute_file_digest
from querylift.trainer.judge.student.judge_training import predict_probabilities, train_judge
from querylift.trainer.judge.student.saved_judge import export_judge, load_judge, make_record, save_judge
from tests.helpers.bert_folders import load_tiny_judge, make_config, make_topic_pairs, write_tiny_bert
from tests.helpers.folders import edit_json_file

ROWS = make_topic_pairs()
PAIRS = [QueryDocumentPair(row.query, row.document) for row in ROWS]


def train_and_save(base: Path, folder: Path, *, reading: str, layers: int) -> Path:
    """Train a judge whose probabilities are far from even, and save it."""
    training = {"epochs": 6, "batch_size": 8, "learning_rate": 3e-3, "classifier_learning_rate": 3e-2}
    student = {"base": str(write_tiny_bert(base, layers=layers)), "reading": reading, "trained_layers": 1}
    config = make_config(student=student, training=training)
    model = load_tiny_judge(base, reading=reading)
    summary = train_judge(model, ROWS, config, DEFAULT_SCALE)
    record = make_record(
        config.student,
        DEFAULT_SCALE,
        name="judge-tiny",
        teacher="teacher-large",
        thresholds=summary.thresholds,
        annotation_count=40,
    )
    save_judge(model, record, folder)
    expected = predict_probabilities(load_judge(folder)[0], ROWS)
    np.testing.assert_allclose(expected, predict_probabilities(model, ROWS), atol=2e-3)
    return folder


@pytest.fixture(scope="module", params=[("apart", 2), ("joint", 6)], ids=["apart", "joint"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a trained judge of two layers that reads apart, and one of six that reads jointly."""
    folder, (reading, layers) = tmp_path_factory.mktemp("judge"), request.param
    return train_and_save(folder / "base", folder / "trained", reading=reading, layers=layers)


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    export_judge(trained, trained.with_name("exported"))
    return trained.with_name("exported")


@pytest.fixture
def trained_copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "trained"))


@pytest.fixture
def exported_copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "exported"))


def read_error(action: Any, *arguments: Path) -> str:
    """Return the sentence with which `action` refuses."""
    with pytest.raises(SettingsError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the same grades ----------------------------------------------------------------------------------------------------


def test_the_exported_judge_gives_the_probabilities_of_pytorch(trained: Path, exported: Path) -> None:
    """Eight bits move them a little, and so a few grades next to a threshold."""
    model, record = load_judge(trained)
    expected = np.array(predict_probabilities(model, ROWS))
    predictions = open_judge(exported).grade_pairs(PAIRS)
    probabilities = np.array([prediction.probabilities for prediction in predictions])
    assert expected.max() - expected.min() > 0.2
    assert abs(probabilities - expected).max() < 0.05
    grades = (expected @ np.arange(4))[:, None] >= np.array(record.thresholds)
    same = [int(row.sum()) == prediction.grade for row, prediction in zip(grades, predictions, strict=True)]
    assert sum(same) >= 34
    assert len({prediction.grade for prediction in predictions}) == 4


def test_a_pair_gets_the_same_grade_alone_and_among_others(exported: Path) -> None:
    judge = open_judge(exported)
    counts: list[int] = []
    together = judge.grade_pairs([*PAIRS, *PAIRS[:5]], progress=counts.append)
    assert counts == list(range(1, 46))
    assert together == [judge.grade_pairs([pair])[0] for pair in [*PAIRS, *PAIRS[:5]]]
    assert judge.grade_pairs([]) == []


def test_texts_without_words_and_long_texts_are_graded(exported: Path) -> None:
    long_text = "sailing boats " * 300
    pairs = [QueryDocumentPair("", ""), QueryDocumentPair("🍕", "法律"), QueryDocumentPair(long_text, long_text)]
    for prediction in open_judge(exported).grade_pairs(pairs):
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
        assert prediction.grade in DEFAULT_SCALE.grades
        assert prediction.probability == prediction.probabilities[prediction.grade]


def test_the_record_says_what_the_judge_is(trained: Path, exported: Path) -> None:
    judge: Grader = open_judge(exported)
    assert (judge.name, judge.teacher, judge.scale) == ("judge-tiny", "teacher-large", DEFAULT_SCALE)
    record = read_judge_record(exported)
    assert record.files == {name: compute_file_digest(exported / name) for name in SERVED_FILES}
    assert record.model_copy(update={"files": {}}) == read_judge_record(trained)
    assert (record.base, record.annotations, record.agreement) == ("base", 40, None)


def test_the_agreement_is_added_to_the_record_and_the_judge_opens_as_before(exported_copy: Path) -> None:
    write_agreement(exported_copy, {"queries": 9, "kappa_grades": 0.3, "kappa_relevant": 0.4, "source": "sheet.csv"})
    agreement = read_judge_record(exported_copy).agreement
    assert agreement is not None
    assert (agreement.queries, agreement.source) == (9, "sheet.csv")
    assert open_judge(exported_copy).grade_pairs(PAIRS[:1])


def test_an_export_replaces_an_earlier_one_and_an_unfinished_one(trained: Path, exported_copy: Path) -> None:
    (exported_copy / "judge.json").unlink()
    (exported_copy / "judge.onnx").write_bytes(b"unfinished")
    export_judge(trained, exported_copy)
    export_judge(trained, exported_copy)
    assert {path.name for path in exported_copy.iterdir()} == {"judge.json", *SERVED_FILES}
    assert open_judge(exported_copy).grade_pairs(PAIRS[:1])


def test_the_same_judge_keeps_its_agreement_when_it_is_exported_again(trained: Path, exported_copy: Path) -> None:
    write_agreement(exported_copy, {"queries": 9, "kappa_grades": 0.3, "kappa_relevant": 0.4, "source": "sheet.csv"})
    assert export_judge(trained, exported_copy).agreement is not None
    assert read_judge_record(exported_copy).agreement is not None


def test_another_judge_does_not_inherit_the_agreement_of_the_folder(trained_copy: Path, exported_copy: Path) -> None:
    write_agreement(exported_copy, {"queries": 9, "kappa_grades": 0.3, "kappa_relevant": 0.4, "source": "sheet.csv"})
    other_record = read_judge_record(trained_copy).model_copy(update={"thresholds": (0.1, 0.2, 0.3)})
    write_judge_record(trained_copy, other_record)
    assert export_judge(trained_copy, exported_copy).agreement is None


# -- exported folders that cannot be opened -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVED_FILES)
def test_an_exported_judge_whose_file_is_cut_or_missing_is_refused(exported_copy: Path, name: str) -> None:
    path = exported_copy / name
    path.write_bytes(path.read_bytes()[:-100])
    assert read_error(open_judge, exported_copy) == (
        f"{path} is not the file that was exported, or is cut off; export the judge again with `querylift judge export`"
    )
    path.unlink()
    assert f"exported lacks {name}; export the judge again" in read_error(open_judge, exported_copy)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "judge.json is not JSON ("),
        ("\udc80", "judge.json is not JSON ("),
        ("[]", "judge.json is damaged (judge.json: Input should be a valid dictionary"),
        ("{}", "judge.json is damaged (name: Field required)"),
    ],
)
def test_a_broken_record_is_refused(exported_copy: Path, text: str, sentence: str) -> None:
    (exported_copy / "judge.json").write_bytes(text.encode(errors="surrogateescape"))
    assert sentence in read_error(open_judge, exported_copy)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "judge.json is damaged (format: Input should be 1)"),
        ({"thresholds": [1, 2]}, "thresholds are (1.0, 2.0), not one rising number for each grade above 0"),
        ({"thresholds": [3, 2, 1]}, "not one rising number for each grade above 0"),
        ({"meanings": ["no", "yes"], "thresholds": [1]}, "classifier.npz has weights of the shape (4, "),
    ],
)
def test_a_record_of_another_format_or_number_of_grades_is_refused(
    exported_copy: Path, changes: Mapping[str, object], sentence: str
) -> None:
    edit_json_file(exported_copy / "judge.json", changes)
    assert sentence in read_error(open_judge, exported_copy)


def test_files_that_are_damaged_and_recorded_so_are_refused_too(exported_copy: Path) -> None:
    sentences = {
        "judge.onnx": "judge.onnx cannot be read as an encoder (",
        "tokenizer.json": "tokenizer.json cannot be read as a tokenizer (",
        "classifier.npz": "classifier.npz is damaged (",
    }
    whole = {name: (exported_copy / name).read_bytes() for name in sentences}
    for name, sentence in sentences.items():
        (exported_copy / name).write_bytes(whole[name][:50])
        digests = {other: compute_file_digest(exported_copy / other) for other in SERVED_FILES}
        edit_json_file(exported_copy / "judge.json", {"files": digests})
        error = read_error(open_judge, exported_copy)
        assert sentence in error
        assert error.endswith("; export the judge again with `querylift judge export`")
        (exported_copy / name).write_bytes(whole[name])


def test_a_trained_judge_and_other_folders_are_not_opened(trained: Path, tmp_path: Path) -> None:
    assert "trained holds a trained judge that was not exported; run `querylift judge" in read_error(
        open_judge, trained
    )
    assert read_error(open_judge, tmp_path) == (
        f"{tmp_path} holds no judge: judge.json cannot be read (No such file or directory); "
        "name a folder that `querylift judge export` wrote"
    )
    file = tmp_path / "file"
    file.touch()
    assert "file holds no judge: judge.json cannot be read (Not a directory)" in read_error(open_judge, file)


# -- trained folders that cannot be exported ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "classifier.npz"])
def test_a_trained_judge_whose_file_is_cut_or_missing_is_neither_exported_nor_loaded(
    trained_copy: Path, tmp_path: Path, name: str
) -> None:
    path = trained_copy / name
    path.write_bytes(path.read_bytes()[:-60])
    assert name in read_error(export_judge, trained_copy, tmp_path / "out") or name == "model.safetensors"
    assert name in read_error(load_judge, trained_copy) or name == "model.safetensors"
    path.unlink()
    sentence = f"trained lacks {name}; train the judge again with `querylift judge train`"
    assert sentence in read_error(export_judge, trained_copy, tmp_path / "out")
    assert sentence in read_error(load_judge, trained_copy)
    assert not (tmp_path / "out" / "judge.json").exists()


def test_a_classifier_of_another_shape_is_refused(trained_copy: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, weight=np.zeros((4, 7), "f4"), bias=np.zeros(4, "f4"))
    (trained_copy / "classifier.npz").write_bytes(stream.getvalue())
    sentence = "classifier.npz has weights of the shape (4, 7), and judge.json and the encoder need (4, "
    assert sentence in read_error(export_judge, trained_copy, tmp_path / "out")
    assert sentence in read_error(load_judge, trained_copy)


def test_an_export_never_writes_over_other_files(trained_copy: Path, exported: Path, tmp_path: Path) -> None:
    assert "trained, which holds a trained model; name another" in read_error(export_judge, trained_copy, trained_copy)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "file, which is a file; name a folder" in read_error(export_judge, trained_copy, tmp_path / "file")
    sentence = read_error(export_judge, trained_copy, tmp_path / "file" / "out")
    assert "out, which cannot be made (Not a directory); name another folder" in sentence
    assert "which holds files but no judge; name another" in read_error(export_judge, trained_copy, tmp_path)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert "exported holds an exported judge; name the folder that" in read_error(
        export_judge, exported, tmp_path / "again"
    )


def test_a_record_is_refused_when_its_thresholds_do_not_rise(trained: Path) -> None:
    values = json.loads((trained / "judge.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="not one rising number"):
        JudgeRecord.model_validate(values | {"thresholds": [2, 1, 3]})
