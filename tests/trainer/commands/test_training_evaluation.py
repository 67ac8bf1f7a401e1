"""`sft --evaluate-on`: the split is none of the training queries, and none of the reported ones unless that is allowed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.sft import sft
from querylift.trainer.student.loss_curves import read_curves
from tests.helpers.lessons import write_json_lines, write_passage_file
from tests.helpers.rewards import NO_ENGINE_URL
from tests.helpers.weather_search import INDEX, WORDS, index_weather, write_weather_corpus

CONFIG = """
[model]
base = "made:llama"
compute = "float32"
[lora]
rank = 4
[sft]
epochs = 2
batch_size = 4
[evaluation]
every_steps = 2
limit = 4
keep = "best"
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    return write_weather_corpus(tmp_path / "weather")


def run_sft(folder: Path, rows: Path, *options: str, held_out: Sequence[str] = ("none",)) -> str:
    arguments = [str(rows), "--config", str(folder / "c.toml"), "--out", str(folder / "sft"), *options]
    arguments += [argument for spec in held_out for argument in ("--held-out", spec)]
    return CliRunner().invoke(sft, arguments, catch_exceptions=False).output


@pytest.mark.engine
def test_the_command_evaluates_the_first_queries_of_the_split(corpus: Path, tmp_path: Path, opensearch: str) -> None:
    rows = write_passage_file(tmp_path / "rows.jsonl")
    with index_weather(corpus, opensearch):
        options = ["--evaluate-on", f"{corpus}:watch", "--index", INDEX, "--engine", opensearch]
        output = run_sft(tmp_path, rows, *options)
    curves = [row for row in read_curves(tmp_path / "sft/curves.jsonl") if "eval_ndcg_at_10" in row]
    assert [row["step"] for row in curves] == [0, 2, 4, 6]
    manifest = json.loads((tmp_path / "sft/manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["evaluation"]["on"] == f"{corpus}:watch"
    assert manifest["results"]["evaluation"]["evaluations"] == 4
    assert output.splitlines()[-1].startswith("weights of step ")


def test_a_row_of_the_evaluated_split_is_refused(corpus: Path, tmp_path: Path) -> None:
    rows = write_json_lines(
        tmp_path / "rows.jsonl",
        [{"query_id": "a", "query": f"{WORDS[0]} story of the night", "text": "wet grass in the morning"}],
    )
    with pytest.raises(
        SettingsError, match="1 training query is in an evaluation split: 'a' is 'w-dew' of weather:watch"
    ):
        run_sft(tmp_path, rows, "--evaluate-on", f"{corpus}:watch", "--index", INDEX)


def test_a_reported_split_is_refused_unless_that_is_allowed(corpus: Path, tmp_path: Path) -> None:
    rows, spec = write_passage_file(tmp_path / "rows.jsonl"), f"{corpus}:watch"
    options = ["--evaluate-on", spec, "--index", INDEX, "--engine", NO_ENGINE_URL]
    with pytest.raises(SettingsError, match="of which 4 queries are in the held-out split weather:watch"):
        run_sft(tmp_path, rows, *options, held_out=[spec])
    with pytest.raises(SettingsError, match=NO_ENGINE_URL):  # the next obstacle: nothing answers there
        run_sft(tmp_path, rows, *options, "--allow-reported", held_out=[spec])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--evaluate-on", "{corpus}:watch"), "without an index; name the one to search with --index"),
        (("--index", "products"), "belong to --evaluate-on, which is missing; name a split with it"),
        (("--evaluate-on", "{corpus}:gone", "--index", "products"), "gone"),
    ],
)
def test_a_wrong_option_is_named(corpus: Path, tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    rows = write_passage_file(tmp_path / "rows.jsonl")
    with pytest.raises(SettingsError, match=sentence):
        run_sft(tmp_path, rows, *(option.format(corpus=corpus) for option in options))
