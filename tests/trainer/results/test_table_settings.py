"""TABLE.toml: a wrong value is one sentence, and paths are relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.results.table_settings import read_results_settings
from tests.helpers.results import COLLECTION, ROWS


def read_table(folder: Path, text: str) -> Any:
    (folder / "table.toml").write_text(text, encoding="utf-8")
    return read_results_settings(folder / "table.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("weight = ", "is not TOML"),
        (ROWS, "collection is missing; every file needs it"),
        (COLLECTION, "row is missing; every file needs it"),
        ("weight = 0\n" + COLLECTION + ROWS, "weight is 0: input should be greater than 0"),
        ("weight = nan\n" + COLLECTION + ROWS, "weight is nan: input should be"),
        ("wieght = 1\n" + COLLECTION + ROWS, "wieght is not a setting; remove it, or mend its spelling"),
        ('teacher = "GPT"\n' + COLLECTION + ROWS, "teacher is 'GPT', which is not a row; use one of: no expansion"),
        (COLLECTION + "relevant_from = 0\n" + ROWS, "collection 'tiny', relevant_from is 0: input should be greater"),
        (COLLECTION + COLLECTION + ROWS, "collection 'tiny' comes 2 times; give every collection a name of its own"),
        (COLLECTION + ROWS + ROWS, "row 'no expansion' comes 2 times"),
        (COLLECTION + ROWS + "weight = 1\n", "row 'no expansion' is the first, the plain search; give it a name"),
        (COLLECTION + ROWS + '[[row]]\nname = "SFT"\n', "row 'SFT' has nothing to measure; give it tables or"),
        (COLLECTION + ROWS + '[[row]]\ngenerator = "none"\n', "row 2, name is missing; add it"),
        (COLLECTION + ROWS + '[[row]]\nname = "a\\u001b[1m"\ngenerator = "none"\n', "write one line of printable"),
        (
            COLLECTION + ROWS + '[[row]]\nname = "SFT"\ngenerator = "none"\ntables = [{ tiny = "t" }]\n',
            "row 'SFT': tables and generator are both given; keep one of them",
        ),
        (
            COLLECTION + ROWS + '[[row]]\nname = "SFT"\ntables = [{ dl19 = "t.jsonl" }]\n',
            "row 'SFT' has a table for 'dl19', which is not a collection; use one of: tiny",
        ),
        (COLLECTION + ROWS + '[[row]]\nname = "SFT"\ntables = [{}]\n', "row 'SFT' has tables without a file"),
        (
            COLLECTION + ROWS + '[[row]]\nname = "SFT"\ntables = [{ tiny = "t.jsonl" }]\n',
            "t.jsonl of row 'SFT' does not",
        ),
        (
            COLLECTION + ROWS + '[[row]]\nname = "SFT"\ngenerator = "none"\nagainst = "SFT"\n',
            "row 'SFT' is set against 'SFT'; name another row: no expansion",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_table(tmp_path, text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'table.toml'}")


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"gone.toml cannot be read \(No such file or directory\); name a TOML file"
    ):
        read_results_settings(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("corpus", "read"),
    [
        ("builtin", "builtin"),
        ("ir:beir/scifact", "ir:beir/scifact"),
        ("../data/scifact", "HERE/../data/scifact"),
        ("beir:scifact", "beir:HERE/scifact"),
        ("trec:old", "trec:HERE/old"),
        ("trec:documents=d.trec,topics=/t,qrels=q", "trec:documents=HERE/d.trec,topics=/t,qrels=HERE/q"),
    ],
)
def test_the_paths_of_a_corpus_are_relative_to_the_file(tmp_path: Path, corpus: str, read: str) -> None:
    settings = read_table(tmp_path, COLLECTION.replace('corpus = "tiny"', f'corpus = "{corpus}"') + ROWS)
    assert settings.collection[0].corpus == read.replace("HERE", str(tmp_path))


def test_the_paths_of_a_row_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").touch()
    row = '[[row]]\nname = "SFT"\ntables = [{ tiny = "t.jsonl" }]\ncurves = ["c.png"]\n'
    model = '[[row]]\nname = "model"\ngenerator = "llama:m.gguf"\n'
    base = '[[row]]\nname = "base"\ngenerator = "llama:base"\n'
    expander = '[[row]]\nname = "expander"\ngenerator = "expander:x"\n'
    _, sft, model_row, base_row, expander_row = read_table(
        tmp_path, COLLECTION + ROWS + row + model + base + expander
    ).row
    assert base_row.generator == "llama:base"
    assert expander_row.generator == f"expander:{tmp_path / 'x'}"
    assert sft.list_tables("tiny") == (tmp_path / "t.jsonl",)
    assert sft.list_tables("other") == ()
    assert (model_row.generator, sft.curves) == (f"llama:{tmp_path / 'm.gguf'}", (tmp_path / "c.png",))
    assert [row.count_runs("tiny") for row in (sft, model_row)] == [1, 1]
    assert [row.count_runs("other") for row in (sft, model_row)] == [0, 1]


def test_only_tables_are_cut_for_a_student(tmp_path: Path) -> None:
    row = '[[row]]\nname = "model"\ngenerator = "llama:base"\ncut_for = "smollm2-135m"\n'
    with pytest.raises(
        SettingsError, match=r"row 'model': cut_for is 'smollm2-135m' without tables; only the texts of"
    ):
        read_table(tmp_path, COLLECTION + ROWS + row)


def test_the_student_of_a_cut_is_a_name_or_a_path_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").touch()
    row = '[[row]]\nname = "{0}"\ntables = [{{ tiny = "t.jsonl" }}]\ncut_for = "{0}"\n'
    settings = read_table(tmp_path, COLLECTION + ROWS + row.format("smollm2-135m") + row.format("sft"))
    assert [row.cut_for for row in settings.row[1:]] == ["smollm2-135m", str(tmp_path / "sft")]
    assert "sft is cut to the 64 tokens that sft may write" in settings.notes
