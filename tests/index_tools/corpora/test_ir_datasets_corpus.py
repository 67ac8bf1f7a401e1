"""A dataset of ir_datasets is a corpus."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import ir_datasets
import pytest
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import GenericDoc, JsonlDocs, TrecQrels, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.corpora.records import Document
from querylift.plugin.errors import MissingExtra, SettingsError
from tests.helpers.corpus_files import read_all_splits, write_text_file


class TitledDoc(NamedTuple):
    doc_id: str
    title: str
    abstract: str

    def default_text(self) -> str:
        return f"{self.title} {self.abstract}"


class BareDoc(NamedTuple):
    doc_id: str
    title: str
    text: str


def register_dataset(name: str, folder: Path, *, docs: JsonlDocs | TsvDocs) -> None:
    queries = write_text_file(folder / "queries.tsv", "q1\tfirst\nq2\tnever judged\n")
    qrels = write_text_file(folder / "qrels.txt", "q1 0 d1 2\nq1 0 d2 0\nno-text 0 d1 1\n")
    parts = TsvQueries(LocalDownload(queries)), TrecQrels(LocalDownload(qrels), {})
    ir_datasets.registry.register(name, Dataset(docs, *parts))


def test_a_dataset_of_ir_datasets_is_loaded_by_its_id(tmp_path: Path) -> None:
    docs = write_text_file(tmp_path / "docs.tsv", "d1\tone\nd2\ttwo\n")
    register_dataset("querylift-test/plain", tmp_path, docs=TsvDocs(LocalDownload(docs), GenericDoc, lang="zh"))
    for spec in ("ir:querylift-test/plain", "irds:querylift-test/plain"):
        corpus = load_corpus(spec)
        assert (corpus.name, corpus.language, corpus.relevant_from) == ("querylift-test/plain", "zh", 1)
        assert list(corpus.iter_documents()) == [Document("d1", "", "one"), Document("d2", "", "two")]
        assert read_all_splits(corpus) == {"all": ({"q1": "first", "q2": "never judged"}, {"q1": {"d1": 2, "d2": 0}})}


@pytest.mark.parametrize("doc_class", [TitledDoc, BareDoc])
def test_the_title_of_a_document_is_not_repeated_in_its_text(
    tmp_path: Path, doc_class: type[TitledDoc] | type[BareDoc]
) -> None:
    row = dict(zip(doc_class._fields, ("d1", "A title", "and a text"), strict=True))
    docs = JsonlDocs(LocalDownload(write_text_file(tmp_path / "docs.jsonl", json.dumps(row) + "\n")), doc_class)
    register_dataset(f"querylift-test/{doc_class.__name__}", tmp_path, docs=docs)
    corpus = load_corpus(f"ir:querylift-test/{doc_class.__name__}")
    assert corpus.language == "en"
    assert list(corpus.iter_documents()) == [Document("d1", "A title", "and a text")]


def test_the_passages_of_trec_deep_learning_are_relevant_from_2() -> None:
    assert load_corpus("ir:msmarco-passage/trec-dl-2019/judged").relevant_from == 2
    assert load_corpus("ir:msmarco-document/trec-dl-2019/judged").relevant_from == 1
    assert load_corpus("ir:msmarco-passage/trec-dl-2019/judged", relevant_from=3).relevant_from == 3


def test_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(SettingsError, match="ir_datasets has no 'querylift-test/nothing'"):
        load_corpus("ir:querylift-test/nothing")


def test_without_ir_datasets_the_error_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(
        MissingExtra, match=r"ir_datasets is not installed; run in the checkout of Querylift: pip install '\.\[index\]'"
    ):
        load_corpus("ir:beir/scifact/test")
