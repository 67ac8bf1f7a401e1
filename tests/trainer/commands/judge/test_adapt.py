"""`querylift judge adapt` on the command line, and on an index of a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.index_tools.engine import Engine
from querylift.plugin.commands.main import querylift
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import parse_settings
from querylift.trainer.student.loss_curves import read_curves
from tests.helpers.expanders import TEXTS, create_index, fill_index, remove_indices
from tests.helpers.judge_lessons import write_annotation_file

INDEX = "judge-adaptation"
CONFIG = """
[model]
base = "made:llama"
compute = "float32"
[lora]
rank = 4
[pretrain]
block_tokens = 64
epochs = 4
learning_rate = 1e-2
batch_size = 4
logging_steps = 2
save_steps = 0
[sft]
epochs = 1
"""


@pytest.fixture(scope="module")
def url(opensearch: str) -> Iterator[str]:
    with Engine(parse_settings({"engine": opensearch})) as engine:
        remove_indices(engine, INDEX)
        create_index(engine, INDEX)
        fill_index(engine, INDEX, TEXTS)
        yield opensearch
        remove_indices(engine, INDEX)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def run_adapt(*arguments: object) -> Result:
    return CliRunner().invoke(querylift, ["judge", "adapt", *map(str, arguments)])


def read_error(*arguments: object) -> str:
    """Return the sentence that the console prints, with exit code 2."""
    error = run_adapt(*arguments).exception
    assert isinstance(error, SettingsError), error
    return str(error)


@pytest.mark.engine
def test_a_model_learns_the_texts_of_an_index(url: str, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--index", INDEX, "--engine", url, "--config", config, "--max-documents", 30)
    result = run_adapt("pretrain", *options, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["folder"] == str(out) and summary["examples"] > 3 and summary["steps"] > 4
    assert result.stderr.startswith("plan: pre-train made:llama on up to 30 documents of index judge-adaptation")
    assert "reading contents of judge-adaptation" in result.stderr
    losses = [row["loss"] for row in read_curves(out / "curves.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.engine
def test_an_index_or_a_field_that_is_missing_is_one_sentence(url: str, config: Path, tmp_path: Path) -> None:
    options = ("--engine", url, "--config", config, "--out", tmp_path / "out")
    assert "there is no index gone at" in read_error("pretrain", "--index", "gone", *options)
    missing_field = read_error("pretrain", "--index", INDEX, "--field", "gone", *options)
    assert "--field is 'gone': judge-adaptation has no such field" in missing_field


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "--index and --corpus name two sources of documents; give exactly one of them"),
        (("--index", "i", "--corpus", "builtin"), "give exactly one of them"),
        (("--corpus", "builtin", "--field", "title"), "--field names fields of --index, which is not given"),
        (("--corpus", "gone"), "there is no corpus 'gone'"),
    ],
)
def test_the_source_of_documents_must_be_clear(
    options: tuple[str, ...], sentence: str, config: Path, tmp_path: Path
) -> None:
    assert sentence in read_error("pretrain", *options, "--out", tmp_path / "out", "--config", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_a_scale_or_a_model_that_does_not_exist_is_one_sentence(step: str, config: Path, tmp_path: Path) -> None:
    annotations = write_annotation_file(tmp_path / "a.jsonl")
    options = ("--annotations", annotations, "--out", tmp_path / "out", "--config", config)
    wrong_scale = read_error(step, "--model", "made:llama", *options, "--scale", "stars")
    assert "--scale is 'stars'; name one of graded, umbrela, binary" in wrong_scale
    assert "there is no model 'gone'; name a Hugging Face folder" in read_error(step, "--model", "gone", *options)


def test_an_unknown_setting_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[reward]\nhumour = 1\n", encoding="utf-8")
    annotations = write_annotation_file(tmp_path / "a.jsonl")
    options = ("--annotations", annotations, "--out", tmp_path / "out", "--config", tmp_path / "config.toml")
    error = read_error("dpo", "--model", "made:llama", *options)
    assert "reward.humour is not a setting; trainer/configs/judge shows them all" in error


def test_the_help_lists_the_three_steps() -> None:
    output = run_adapt("--help").output
    assert all(f"  {step}  " in output for step in ("pretrain", "sft", "dpo"))
