"""`querylift train teach` takes documents from the index that holds them, when the corpus has queries and judgments only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.corpora.index_documents import read_documents_from_index
from querylift.index_tools.corpora.records import Document
from querylift.index_tools.engine import Engine, make_index_action
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import parse_settings
from tests.helpers.teach_command import run_teach, write_rows

pytestmark = pytest.mark.engine
INDEX, OWN_INDEX = "teach-documents", "teach-own"


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as client:
        yield client
        client.call("DELETE", f"/{INDEX},{OWN_INDEX}", params={"ignore_unavailable": "true"})


def _index_and_remove_documents(engine: Engine, corpus: Path) -> None:
    build_index(engine, load_corpus(str(corpus)), IndexPlan(INDEX))
    (corpus / "corpus.jsonl").unlink()


def _index_own_documents(engine: Engine) -> None:
    """Index two documents in another shape than that of `querylift index`."""
    sources: dict[str, dict[str, Any]] = {
        "d1": {"name": "Rainbow", "body": {"main": ["Light bends", "in drops."]}},
        "d2": {"name": "Cats", "body": {"main": "Cats purr."}},
    }
    actions = (make_index_action(OWN_INDEX, doc_id, source) for doc_id, source in sources.items())
    assert all(ok for ok, _ in engine.send_bulk_actions(actions))
    engine.call("POST", f"/{OWN_INDEX}/_refresh")


def test_relevant_documents_come_from_the_index_as_from_the_file(
    engine: Engine, judged_corpus: Path, tmp_path: Path
) -> None:
    options = (judged_corpus, "--split", "train", "--judged", 2)
    run_teach(*options, "--out", tmp_path / "file.jsonl")
    _index_and_remove_documents(engine, judged_corpus)
    run_teach(*options, "--out", tmp_path / "index.jsonl", "--index", INDEX, "--engine", engine.url)
    assert (tmp_path / "index.jsonl").read_text() == (tmp_path / "file.jsonl").read_text() != ""


def test_all_documents_of_an_index_can_be_read(engine: Engine, judged_corpus: Path) -> None:
    corpus = load_corpus(str(judged_corpus))
    _index_and_remove_documents(engine, judged_corpus)
    documents = list(read_documents_from_index(corpus, parse_settings({"engine": engine.url}), INDEX).iter_documents())
    assert sorted(document.doc_id for document in documents) == ["d1", "d2", "d3", "d4"]
    assert Document("d3", "", "Steam Watt.") in documents


def test_the_text_fields_of_an_index_of_ones_own_are_named(engine: Engine, judged_corpus: Path, tmp_path: Path) -> None:
    _index_own_documents(engine)
    (judged_corpus / "corpus.jsonl").unlink()
    options = [judged_corpus, "--split", "train", "--judged", 1, "--out", tmp_path / "out.jsonl"]
    options += ["--index", OWN_INDEX, "--engine", engine.url]
    with pytest.raises(SettingsError, match="no document of teach-own has a text in title, text; name its text fields"):
        run_teach(*options)
    run_teach(*options, "--text", "name", "--text", "body.main")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["text"] == "Rainbow Light bends in drops."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--judged", "1"], "'docs' has no documents; name the index that holds them with --index"),
        (["--judged", "1", "--index", "gone"], "there is no index gone at http.*; name another with --index"),
        (["--judged", "1", "--text", "body"], "--text names fields of --index, which is not given"),
        (["--import", "FILE", "--index", INDEX], "--index is for --judged, --prompt few-shot or --pseudo-queries"),
    ],
)
def test_missing_documents_are_told_before_anything_is_written(
    engine: Engine, judged_corpus: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    (judged_corpus / "corpus.jsonl").unlink()
    file = write_rows(tmp_path / "in.jsonl", {"query": "q", "text": "words"})
    arguments = [str(file) if option == "FILE" else option for option in options]
    with pytest.raises(SettingsError, match=sentence):
        run_teach(
            judged_corpus, "--split", "train", "--out", tmp_path / "out.jsonl", "--engine", engine.url, *arguments
        )
    assert not (tmp_path / "out.jsonl").exists()
