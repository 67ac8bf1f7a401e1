"""`querylift judge train` and `export` on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.index_tools.judging.grader import QueryDocumentPair
from querylift.index_tools.judging.judge_folder import open_judge, read_judge_record
from querylift.plugin.commands.main import querylift
from querylift.plugin.errors import DataError, QueryliftError
from querylift.plugin.files import compute_file_digest
from querylift.trainer.judge.annotations import Annotation
from tests.helpers.bert_folders import make_topic_pairs, write_tiny_bert
from tests.helpers.corpus_files import write_text_file
from tests.helpers.judge_lessons import write_annotation_file

ROWS = make_topic_pairs()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def folder(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a working folder with forty annotations, and a configuration that trains on the tiny BERT."""
    write_config(tmp_path, bert)
    write_annotation_file(tmp_path / "annotations.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(folder: Path, bert: Path, lines: str = "") -> None:
    student = f'[student]\nbase = "{bert}"\ntrained_layers = 1\n'
    training = f"[training]\nepochs = 2\nbatch_size = 8\nlearning_rate = 1e-3\n{lines}"
    write_text_file(folder / "judge.toml", student + training)


def run_judge(*arguments: str) -> Result:
    return CliRunner().invoke(querylift, ["judge", *arguments])


def train(*arguments: str, files: Iterable[str] = ("annotations.jsonl",)) -> Result:
    return run_judge("train", *files, "--config", "judge.toml", "--out", "trained", *arguments)


def train_and_read(*arguments: str, files: Iterable[str] = ("annotations.jsonl",)) -> dict[str, Any]:
    """Return the results as JSON."""
    result = train("--json", *arguments, files=files)
    assert result.exception is None, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def read_error(result: Result) -> str:
    """Return the sentence that the console prints, with exit code 2."""
    assert isinstance(result.exception, QueryliftError), result.exception
    assert result.exception.exit_code == 2
    assert "\n" not in str(result.exception)
    return str(result.exception)


# -- what it does -------------------------------------------------------------------------------------------------------


def test_a_judge_is_trained_and_exported_and_grades(folder: Path) -> None:
    output = train("--name", "judge-topics").output
    assert "annotations  40 of 5 queries, by teacher-large" in output
    assert "trained on   40 pairs, 40 of them read with reasoning" in output
    assert "loss         " in output
    assert "duplicates" not in output
    assert "left out" not in output
    assert "next         querylift judge export trained --out trained.served" in output
    exported = run_judge("export", "trained", "--out", "trained.served").output
    assert exported.startswith("trained.served: judge judge-topics, ")
    assert " MB, taught by teacher-large\n" in exported
    judge = open_judge(folder / "trained.served")
    assert judge.grade_pairs([QueryDocumentPair("sailing boats", "harbour waves")])[0].grade in range(4)


def test_the_judge_is_named_after_its_folder(folder: Path) -> None:
    train()
    assert read_judge_record(folder / "trained").name == "trained"


def test_pairs_without_reasoning_train_the_standard_pass_and_are_counted(folder: Path) -> None:
    rows = [replace(row, reasoning="") if number < 15 else row for number, row in enumerate(ROWS)]
    write_annotation_file(folder / "annotations.jsonl", rows)
    results = train_and_read()
    assert (results["pairs"], results["with_reasoning"]) == (40, 25)


@pytest.mark.parametrize("method", ["crsd", "standard", "soft", "kl"])
def test_every_method_trains_on_annotations_without_any_reasoning(folder: Path, method: str) -> None:
    write_annotation_file(folder / "annotations.jsonl", [replace(row, reasoning="", criteria={}) for row in ROWS])
    results = train_and_read("--method", method)
    assert (results["method"], results["pairs"], results["with_reasoning"]) == (method, 40, 0)


def test_pairs_with_several_grades_get_the_majoritys_and_are_counted(folder: Path) -> None:
    """Of the first pair, the other files give grade 3 twice, and of the second grade 2 once."""
    write_annotation_file(folder / "b.jsonl", [replace(ROWS[0], grade=3, model="b"), replace(ROWS[1], grade=2)])
    write_annotation_file(folder / "c.jsonl", [replace(ROWS[0], grade=3), ROWS[2]])
    files = ("annotations.jsonl", "b.jsonl", "c.jsonl")
    results = train_and_read(files=files)
    assert (results["annotations"], results["conflicting_duplicates"]) == (40, 2)
    assert results["teacher"] == "b, teacher-large"
    assert "duplicates   2 pairs had several grades; the majority's was taken" in train(files=files).output


@pytest.mark.parametrize(
    "text",
    [
        "sailing-boats-harbour 0 d1 2\nboats-harbour-waves 0 d1 0\n",
        "sailing-boats-harbour\tsailing boats harbour\nboats-harbour-waves\tboats harbour waves\n",
        '{"_id": "sailing-boats-harbour", "text": "a"}\n{"_id": "boats-harbour-waves", "text": "b"}\n',
    ],
    ids=["qrels", "tsv", "jsonl"],
)
def test_queries_of_a_file_are_left_out_and_counted(folder: Path, text: str) -> None:
    write_text_file(folder / "test.queries", text)
    results = train_and_read("--without-queries", "test.queries")
    assert (results["annotations"], results["queries"], results["left_out"]) == (24, 3, 16)
    again = train("--without-queries", "test.queries")
    assert "left out     16 annotations of the queries of --without-queries" in again.output


def test_another_scale_decides_how_many_grades_there_are(folder: Path) -> None:
    write_annotation_file(folder / "annotations.jsonl", [replace(row, grade=row.grade // 2) for row in ROWS])
    train_and_read("--scale", "binary")
    record = read_judge_record(folder / "trained")
    assert (record.scale_name, record.relevant_from, len(record.thresholds)) == ("binary", 1, 1)


# -- the manifest -------------------------------------------------------------------------------------------------------


def test_the_manifest_records_everything_that_decides_the_judge(folder: Path, bert: Path) -> None:
    write_text_file(folder / "test.tsv", "q1\train\n")
    train("--without-queries", "test.tsv", "--seed", "4")
    manifest = json.loads((folder / "trained" / "manifest.json").read_text(encoding="utf-8"))
    assert {name: entry["sha256"] for name, entry in manifest["inputs"].items()} == {
        "annotations 1": compute_file_digest(folder / "annotations.jsonl"),
        "base config.json": compute_file_digest(bert / "config.json"),
        "base model.safetensors": compute_file_digest(bert / "model.safetensors"),
        "base tokenizer.json": compute_file_digest(bert / "tokenizer.json"),
        "without queries": compute_file_digest(folder / "test.tsv"),
    }
    assert manifest["settings"].keys() == {"student", "training", "loss", "scale", "name"}
    assert manifest["settings"]["scale"]["relevant_from"] == 2
    assert manifest["seed"] == manifest["settings"]["training"]["seed"] == 4
    assert {"torch", "transformers"} <= manifest["versions"].keys()
    assert "classifier.npz" in manifest["outputs"]


def test_a_finished_training_is_not_run_again(folder: Path) -> None:
    first = train_and_read()
    written = (folder / "trained" / "model.safetensors").stat().st_mtime_ns
    assert train_and_read() == first
    assert (folder / "trained" / "model.safetensors").stat().st_mtime_ns == written
    (folder / "trained" / "classifier.npz").unlink()
    assert train_and_read() == first
    assert (folder / "trained" / "model.safetensors").stat().st_mtime_ns != written


def test_another_seed_other_annotations_and_another_base_are_refused(folder: Path, tmp_path: Path) -> None:
    train()
    assert "trained was begun with another setting (training " in read_error(train("--seed", "1"))
    assert "another setting (name trained, now other)" in read_error(train("--name", "other"))
    write_config(folder, write_tiny_bert(tmp_path / "other", seed=4))
    assert "trained was begun with another input (base model.safetensors: " in read_error(train())
    write_annotation_file(folder / "annotations.jsonl", ROWS[:30])
    assert "trained was begun with another input (annotations 1: annotations.jsonl)" in read_error(train())


def test_a_training_never_writes_over_other_files(folder: Path, bert: Path) -> None:
    weights = (bert / "model.safetensors").read_bytes()
    arguments = ("train", "annotations.jsonl", "--config", "judge.toml", "--out")
    assert "which is the base; name another folder" in read_error(run_judge(*arguments, str(bert)))
    assert "--out is ., which holds files but no training; name another" in read_error(run_judge(*arguments, "."))
    assert "judge.toml cannot be written (" in read_error(run_judge(*arguments, "judge.toml"))
    assert (bert / "model.safetensors").read_bytes() == weights


# -- bad input ----------------------------------------------------------------------------------------------------------


def test_a_grade_off_the_scale_is_refused_with_its_line(folder: Path) -> None:
    write_annotation_file(folder / "annotations.jsonl", [*ROWS[:2], replace(ROWS[2], grade=4)])
    error = train().exception
    assert isinstance(error, DataError)
    assert str(error).startswith("annotations.jsonl:3: grade 4 is off the scale; give a whole number from 0 to 3")
    write_annotation_file(folder / "annotations.jsonl", ROWS)
    assert read_error(train("--scale", "binary")).startswith("annotations.jsonl:5: grade 2 is off the scale; give a")
    assert not (folder / "trained").exists()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "annotations.jsonl holds no annotation; write some with `querylift judge annotate`"),
        (
            [row for row in ROWS if row.grade == 1],
            "all 10 annotations of annotations.jsonl have grade 1; a judge learns from two grades or more",
        ),
    ],
)
def test_no_annotation_and_one_class_only_are_refused(folder: Path, rows: list[Annotation], sentence: str) -> None:
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    assert sentence in read_error(train())
    assert not (folder / "trained").exists()


def test_a_grade_that_no_annotation_has_is_learned_as_absent(folder: Path) -> None:
    write_annotation_file(folder / "annotations.jsonl", [row for row in ROWS if row.grade in (0, 2)])
    results = train_and_read()
    assert results["pairs"] == 20
    assert len(results["thresholds"]) == 3


def test_queries_that_leave_nothing_and_faulty_files_of_queries_are_refused(folder: Path) -> None:
    ids = sorted({row.query_id for row in ROWS})
    write_text_file(folder / "all.tsv", "".join(f"{query_id}\ttext\n" for query_id in ids))
    sentence = read_error(train("--without-queries", "all.tsv"))
    assert "annotations.jsonl without the queries of all.tsv holds no annotation" in sentence
    write_text_file(folder / "bad.tsv", "q1\train\nsnow\n")
    assert read_error(train("--without-queries", "bad.tsv")).startswith("bad.tsv:2: this line has no query id")
    assert "'missing.tsv' cannot be read" in read_error(train("--without-queries", "missing.tsv"))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("epoch = 3\n", "judge.toml: training.epoch is not a setting; trainer/configs/judge_student shows them all"),
        ("[los]\ntemperature = 1\n", "judge.toml: los is not a setting; trainer/configs/judge_student shows them all"),
        ("[loss]\ntemperature = 0\n", "judge.toml: loss.temperature is 0: input should be greater than 0"),
        ('method = "best"\n', "judge.toml: training.method is 'best': input should be 'crsd', "),
        ("[loss\n", "judge.toml is not TOML: "),
    ],
)
def test_an_unknown_key_and_a_wrong_value_of_the_configuration_are_refused(
    folder: Path, bert: Path, lines: str, sentence: str
) -> None:
    write_config(folder, bert, lines)
    assert sentence in read_error(train())


def test_a_missing_configuration_a_base_and_annotations_that_cannot_be_read_are_refused(folder: Path) -> None:
    arguments = ("--out", "trained", "--config")
    assert "missing.toml does not exist; name a configuration file, or one of judge-minilm" in read_error(
        run_judge("train", "annotations.jsonl", *arguments, "missing.toml")
    )
    assert "'missing.jsonl' cannot be read" in read_error(train(files=["missing.jsonl"]))
    write_text_file(folder / "judge.toml", '[student]\nbase = "nowhere"\n')
    assert "student.base is 'nowhere', and there is no such folder" in read_error(train())
    write_text_file(folder / "judge.toml", f'[student]\nbase = "{folder}"\n')
    assert f"{folder} lacks config.json; name a BERT folder" in read_error(train())


def test_a_folder_that_holds_no_trained_judge_is_not_exported(folder: Path) -> None:
    sentence = read_error(run_judge("export", "nowhere", "--out", "served"))
    assert sentence == (
        "nowhere holds no judge: judge.json cannot be read (No such file or directory); "
        "name a folder that `querylift judge train` wrote"
    )
    train()
    weights = folder / "trained" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "trained: its weights cannot be read (" in read_error(run_judge("export", "trained", "--out", "served"))
    assert not (folder / "served" / "judge.json").exists()
