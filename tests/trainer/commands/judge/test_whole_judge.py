"""Annotations become a judge, and the judge grades a real index: with the packaged encoder, over the built-in corpus."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.index_tools.corpora import builtin_corpus
from querylift.index_tools.corpora.records import Document
from querylift.index_tools.corpora.trec_files import read_qrels
from querylift.index_tools.engine import Engine
from querylift.plugin.commands.main import querylift
from querylift.plugin.settings import parse_settings
from querylift.trainer.judge.annotations import Annotation
from tests.helpers.corpus_files import write_text_file
from tests.helpers.expanders import create_index, fill_index, remove_indices
from tests.helpers.judge_lessons import write_annotation_file

pytestmark = pytest.mark.engine
INDEX = "whole-judge"
MODULES = ("shutil", "json", "math", "random", "getpass", "tempfile", "textwrap", "statistics")
GRADES = {
    "remove a directory with all files in it": {"shutil.rmtree": 3, "shutil.move": 1, "math.sqrt": 0},
    "how much disk space is left": {"shutil.disk_usage": 3, "shutil.copytree": 1, "json.loads": 0},
    "read json from a string": {"json.loads": 3, "json.load": 2, "getpass.getpass": 0},
    "pick one item by chance": {"random.choice": 3, "random.shuffle": 1, "textwrap.wrap": 0},
}
"""What a person would say of twelve pairs of a query and a document."""
TABLE = '{"query": "average of numbers", "text": "arithmetic mean of data", "model": "writer-7b"}\n'


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    return {
        document.doc_id: document
        for document in builtin_corpus.iter_documents()
        if document.doc_id.split(".")[0] in MODULES
    }


@pytest.fixture(scope="module")
def url(opensearch: str, documents: dict[str, Document]) -> Iterator[str]:
    with Engine(parse_settings({"engine": opensearch})) as engine:
        remove_indices(engine, INDEX)
        create_index(engine, INDEX)
        sources = {
            document.doc_id: {
                "title": document.title,
                "text": document.text,
                "contents": f"{document.title} {document.text}",
            }
            for document in documents.values()
        }
        fill_index(engine, INDEX, sources)
        yield opensearch
        remove_indices(engine, INDEX)


def run(*arguments: str) -> str:
    """Return what a command prints, with the breaks of lines as spaces."""
    result = CliRunner().invoke(querylift, arguments)
    assert result.exception is None, (result.output, result.exception)
    return " ".join(result.output.split())


def rate_alternately(sheet: Path) -> None:
    """Rate the pairs of a sheet 0 and 3 in turn."""
    with sheet.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with sheet.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**row, "rating": number % 2 * 3} for number, row in enumerate(rows))


def annotate(documents: dict[str, Document]) -> list[Annotation]:
    return [
        Annotation(
            query_id=query.replace(" ", "-"),
            doc_id=doc_id,
            query=query,
            document=f"{documents[doc_id].title} {documents[doc_id].text}",
            grade=grade,
            model="a-person",
            reasoning="" if grade == 1 else f"The document {'does' if grade else 'does not do'} what the query asks.",
        )
        for query, grades in GRADES.items()
        for doc_id, grade in grades.items()
    ]


def test_a_judge_learns_from_annotations_and_every_table_that_rests_on_it_names_it(
    url: str, documents: dict[str, Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_annotation_file(tmp_path / "annotations.jsonl", annotate(documents))
    write_text_file(tmp_path / "queries.tsv", "q1\taverage of numbers\nq2\tmake a temporary file\n")
    write_text_file(tmp_path / "table.jsonl", TABLE)
    output = run("judge", "train", "annotations.jsonl", "--out", "trained", "--name", "judge-docs")
    assert "annotations 12 of 4 queries, by a-person trained on 12 pairs, 9 of them read with reasoning" in output
    output = run("judge", "export", "trained", "--out", "served")
    assert "judge judge-docs, 24 MB, taught by a-person" in output
    assert output.endswith("next querylift evaluate --judge served")

    shared = ("--index", INDEX, "--engine", url, "--judge", "served", "--queries", "queries.tsv")
    output = run("judge", "qrels", *shared, "--depth", "5", "--out", "judged.qrels")
    assert output.startswith("judged by judge-docs (taught by a-person); its agreement with people was not measured")
    judged = read_qrels(tmp_path / "judged.qrels")
    assert judged.keys() == {"q1", "q2"}
    relevant_ids = {
        query_id: {doc_id for doc_id in grades if grades[doc_id] >= 2} for query_id, grades in judged.items()
    }
    assert "statistics" in relevant_ids["q1"]
    assert {doc_id.split(".")[0] for doc_id in relevant_ids["q2"]} == {"tempfile"}
    assert {grade for grades in judged.values() for grade in grades.values()} <= {0, 1, 2, 3}

    output = run("evaluate", *shared, "--generator", "table:table.jsonl", "--mode", "widen", "--relevant-from", "1")
    assert "judged by judge-docs (taught by a-person); its agreement with people was not measured" in output
    assert "nDCG@10" in output
    assert "This rests on the grades of a model, judge-docs, and not on people's." in output

    check = ("judge", "check", "sheet.csv", "--index", INDEX, "--engine", url, "--judge", "served")
    run("judge", "sample", *shared, "--pairs", "12", "--out", "sheet.csv")
    rate_alternately(tmp_path / "sheet.csv")
    assert run(*check).endswith("Nothing was recorded. For tables and reports to name both kappas, add --record.")
    assert run(*check, "--record").endswith("recorded in served. Tables and reports name them now.")
    output = run("judge", "qrels", *shared, "--system", "plain", "--out", "again.qrels")
    assert "its agreement with people: kappa " in output
