"""`querylift train report` on an engine: rows are measured through the rewrite, and all files are written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from querylift.index_tools.corpora.records import Document
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.settings import parse_settings
from querylift.trainer.commands.report import report
from tests.helpers.results import COLLECTION, ROWS, create_png

INDEX = "results-test"
SECOND = 1 / math.log2(3)
"""nDCG@10 when the one relevant document is second."""
DOCUMENTS = [
    # A search for "apple" finds a1 before a2 (the shorter one); "pear" lifts a2. So it goes with "stone" and "river".
    Document("a1", "", "apple tree"),
    Document("a2", "", "apple pear orchard garden"),
    Document("s1", "", "stone wall"),
    Document("s2", "", "stone granite quarry mountain"),
    Document("r1", "", "river bank"),
    Document("r2", "", "river delta estuary harbour"),
]
QUERIES = {"q1": "apple", "q2": "stone", "q3": "river", "q4": "nowhere"}
GOOD = {"apple": "pear orchard", "stone": "granite quarry", "river": "delta estuary"}


def to_json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class _Corpus:
    language = "en"

    def iter_documents(self) -> Iterator[Document]:
        yield from DOCUMENTS


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[str]:
    with Engine(parse_settings({"engine": opensearch})) as connected_engine:
        build_index(connected_engine, _Corpus(), IndexPlan(INDEX))
        yield opensearch
        connected_engine.call("DELETE", f"/{INDEX}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus whose judged documents are second in a plain search, and tables that lift all or two of three of them."""
    corpus = tmp_path / "tiny"
    corpus.mkdir()
    (corpus / "queries.jsonl").write_text(
        to_json_lines([{"_id": q, "text": t} for q, t in QUERIES.items()]), encoding="utf-8"
    )
    judged = "q1\ta2\t1\nq2\ts2\t1\nq3\tr2\t1\nq4\ta1\t0\n"
    (corpus / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
    for name, words in {"all": GOOD, "two": {q: t for q, t in GOOD.items() if q != "river"}}.items():
        rows = [{"query": q, "text": t} for q, t in words.items()]
        (tmp_path / f"{name}.jsonl").write_text(to_json_lines(rows), encoding="utf-8")
    (tmp_path / "curves.png").write_bytes(create_png())
    return tmp_path


TABLE = f"""
weight = 0.5
teacher = "teacher"
{COLLECTION}
{ROWS}
[[row]]
name = "engine feedback"
generator = "none"
[[row]]
name = "teacher"
tables = [{{ tiny = "all.jsonl" }}]
[[row]]
name = "SFT"
tables = [{{ tiny = "two.jsonl" }}, {{ tiny = "all.jsonl" }}]
curves = ["curves.png", "gone.png"]
"""


Report = Callable[..., Result]


@pytest.fixture
def run(folder: Path, engine: str) -> Report:
    def run_report(text: str, *arguments: str) -> Result:
        (folder / "table.toml").write_text(text, encoding="utf-8")
        return CliRunner().invoke(report, [str(folder / "table.toml"), "--engine", engine, *arguments])

    return run_report


@pytest.mark.engine
def test_the_rows_are_measured_through_the_rewrite_and_all_files_are_written(run: Report, folder: Path) -> None:
    done = run(TABLE, "--out", str(folder / "out"))
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("report: "))
    lines = [line.split() for line in done.stdout.splitlines()]
    # Plain: second for all three, 1 / log2(3) = 0.631. SFT: 0.877 = (1 + 1 + 0.631) / 3 and 1.
    assert ["no", "expansion", "0.631", "-", "63%", "0%", *["-"] * 4] in lines
    assert ["teacher", "1.000", "-", "100%", "100%", *["0.250"] * 4] in lines
    assert ["SFT", "0.938", "2", "±0.087", "94%", "83%", "0.250", "0.250", "1.000", "1.000"] in lines
    assert "* engine feedback: no expansion for 3 of 3 queries (skipped;nothing 3)" in done.stdout
    assert "* SFT: no expansion for 1, 0 of 3 queries (skipped;nothing 1)" in done.stdout
    assert "gone.png cannot be read" in done.stderr
    assert {path.name for path in (folder / "out").iterdir()} == {"report.html", "results.json", "results.md"}
    assert "gone.png cannot be read" in (folder / "out/report.html").read_text(encoding="utf-8")


@pytest.mark.engine
def test_queries_that_share_a_relevant_document_with_training_queries_are_left_out(run: Report, folder: Path) -> None:
    training = folder / "train" / "tiny"
    training.mkdir(parents=True)
    (training / "queries.train.jsonl").write_text('{"_id": "t", "text": "quarry"}\n', encoding="utf-8")
    judged = "query-id\tcorpus-id\tscore\nt\ts2\t1\n"
    (training / "qrels.train.tsv").write_text(judged, encoding="utf-8")
    apart = COLLECTION + '\napart_from = ["train/tiny:train"]\n'
    done = run(TABLE.replace(COLLECTION, apart))
    assert done.exit_code == 0, done.output
    assert "1 of 4 queries are left out: training queries share relevant documents" in done.stdout
    assert f"on index {INDEX}, 2 queries" in done.stdout
    (training / "qrels.train.tsv").write_text(judged + "t\ta2\t1\nt\tr2\t1\nt\ta1\t1\n", encoding="utf-8")
    refused = run(TABLE.replace(COLLECTION, apart))
    assert str(refused.exception) == (
        f"every query of tiny shares a relevant document with apart_from, which is {folder / 'train/tiny:train'}; "
        "leave apart_from out, or name another split"
    )


@pytest.mark.engine
def test_the_json_has_every_number_and_says_which_tables_were_measured(run: Report, folder: Path) -> None:
    done = run(TABLE, "--json", "--out", str(folder / "out"))
    results = json.loads(done.stdout)
    assert results == json.loads((folder / "out/results.json").read_text(encoding="utf-8"))
    assert (results["engine"][:11], results["weight"], results["teacher"]) == ("OpenSearch ", 0.5, "teacher")
    (collection,) = results["collections"]
    assert {key: collection[key] for key in ("corpus", "split", "index", "mode", "queries", "relevant_from")} == {
        "corpus": "tiny",
        "split": "all",
        "index": INDEX,
        "mode": "boost",
        "queries": 3,
        "relevant_from": 1,
    }
    plain, _, teacher, sft = collection["rows"]
    assert (plain["against_plain"], plain["above"], plain["weight"]) == (None, None, None)
    assert sft["ndcg_at_10_by_seed"] == pytest.approx([(2 + SECOND) / 3, 1])
    assert sft["gain_kept"] == pytest.approx(5 / 6)
    assert sft["recall_at_100"] == 1
    assert (sft["above"], sft["against_above"]["losses"]) == ("teacher", 1)
    assert sft["against_plain"]["difference"] == pytest.approx((1 - SECOND) * 5 / 6)
    assert [sft["against_plain"][key] for key in ("wins", "ties", "losses", "p_value")] == [3, 0, 0, 0.25]
    assert sft["seeds"][1] == teacher["seeds"][0]
    assert sft["seeds"][0]["generator"] != sft["seeds"][1]["generator"]
    assert sft["seeds"][0]["outcomes"] == {"expanded": 2, "skipped;nothing": 1}


@pytest.mark.engine
def test_a_weight_given_is_that_of_the_rows_without_their_own(run: Report) -> None:
    results = json.loads(run(TABLE + "weight = 0.1\n", "--json", "--weight", "0.7").stdout)
    assert [row["weight"] for row in results["collections"][0]["rows"]] == [None, 0.7, 0.7, 0.1]
    assert results["notes"] == ["SFT is measured with weight 0.1"]


@pytest.mark.engine
def test_a_collection_that_a_row_lacks_is_left_empty_and_what_is_missing_is_named(run: Report) -> None:
    second = COLLECTION.replace('"tiny"\ncorpus', '"other"\ncorpus')
    done = run(TABLE.replace(ROWS, second + ROWS) + '[[row]]\nname = "again"\ngenerator = "none"\n')
    other_table = done.stdout.partition("\nother: ")[2]
    assert ["SFT", *["-"] * 8] in [line.split() for line in other_table.splitlines()]
    assert "* no share is shown: the teacher, teacher, has no result here" in other_table
    assert "* the row above again is here engine feedback" in other_table


@pytest.mark.engine
@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('index = "results-test"', 'index = "gone"', "has no index 'gone'; make it with `querylift index`, or name"),
        ('corpus = "tiny"', 'corpus = "gone"', "no corpus"),
        ("[[collection]]", '[[collection]]\nsplit = "dev"', "has no split 'dev'; its splits are all"),
        ("[[collection]]", "[[collection]]\nrelevant_from = 3", "collection 'tiny' cannot be measured: no query"),
        ('generator = "none"', 'generator = "gpt"', "generator is 'gpt'; use one of"),
        ("weight = 0.5", "weight = 0.5 # as it is", ""),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(run: Report, before: str, after: str, sentence: str) -> None:
    done = run(TABLE.replace(before, after))
    assert isinstance(done.exception, SettingsError) == bool(sentence)
    assert sentence in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.engine
def test_an_index_of_another_corpus_is_no_result(run: Report, folder: Path) -> None:
    (folder / "tiny/qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\telsewhere\t1\n", encoding="utf-8")
    error = run(TABLE).exception
    assert str(error).endswith("no query finds a relevant document on results-test; index tiny there")


@pytest.mark.engine
def test_a_collection_that_a_model_judged_names_the_model(run: Report, folder: Path) -> None:
    line = {"query_id": "q1", "doc_id": "a2", "model": "judge-a", "teacher": "teacher-b", "date": "2026-11-29"}
    (folder / "tiny/qrels.tsv.judged.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert "* judged by judge-a (taught by teacher-b)\n" in run(TABLE).stdout


@pytest.mark.parametrize("weight", ["0", "11", "nan"])
def test_a_wrong_weight_given_is_one_sentence(folder: Path, weight: str) -> None:
    (folder / "table.toml").write_text(TABLE, encoding="utf-8")
    done = CliRunner().invoke(report, [str(folder / "table.toml"), "--weight", weight])
    assert str(done.exception) == f"--weight is {weight}; use a number above 0 and at most 10"


def test_an_engine_that_is_not_there_is_one_sentence(folder: Path) -> None:
    (folder / "table.toml").write_text(TABLE, encoding="utf-8")
    done = CliRunner().invoke(report, [str(folder / "table.toml"), "--engine", "http://127.0.0.1:9"])
    assert isinstance(done.exception, EngineError)
    assert "no search engine answers at http://127.0.0.1:9" in str(done.exception)


@pytest.mark.engine
def test_a_teacher_that_is_cut_to_the_students_length_loses_the_words_behind_it(run: Report, folder: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the training stack: pip install '.[train]'")
    rows = [{"query": q, "text": f"{'and so on ' * 64}{t}"} for q, t in GOOD.items()]
    (folder / "long.jsonl").write_text(to_json_lines(rows), encoding="utf-8")
    row = '[[row]]\nname = "{}"\ntables = [{{ tiny = "long.jsonl" }}]\n'
    text = f'weight = 0.5\n{COLLECTION}{ROWS}{row.format("whole")}{row.format("cut")}cut_for = "made:llama"\n'
    done = run(text, "--json")
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    values = {row["name"]: row["ndcg_at_10"] for row in results["collections"][0]["rows"]}
    assert values == {"no expansion": pytest.approx(SECOND), "whole": 1.0, "cut": pytest.approx(SECOND)}
    assert "cut is cut to the 64 tokens that made:llama may write" in results["notes"]
