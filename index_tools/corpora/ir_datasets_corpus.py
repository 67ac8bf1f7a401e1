"""A corpus that the library ir_datasets downloads and reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from querylift.index_tools.corpora.corpus import UNNAMED_SPLIT, Corpus, JudgedQueries
from querylift.index_tools.corpora.records import Document, Qrels, normalize_id
from querylift.plugin.errors import MissingExtra, SettingsError

_DEEP_LEARNING_PASSAGES = re.compile(r"msmarco-passage(-v2)?/trec-dl-")
"""NIST grades these passages 0 to 3, and grade 1 ('related') is not relevant. In its document data, grade 1 is relevant."""


def open_ir_datasets_corpus(dataset_id: str) -> Corpus:
    """Open a dataset of ir_datasets. Raise SettingsError when the id is unknown or the dataset has no documents."""
    dataset = _load_dataset(dataset_id)
    if not dataset.has_docs():
        raise SettingsError(f"'ir:{dataset_id}' has no documents; name a dataset that has some")
    return Corpus(
        dataset_id,
        lambda: map(_convert_document, dataset.docs_iter()),
        {UNNAMED_SPLIT: partial(_read_judged_queries, dataset)} if dataset.has_queries() else {},
        language=dataset.docs_lang() or "en",
        relevant_from=2 if _DEEP_LEARNING_PASSAGES.match(dataset_id) else 1,
    )


def _load_dataset(dataset_id: str) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtra("ir_datasets", "index") from error
    try:
        return ir_datasets.load(dataset_id)
    except KeyError as error:
        raise SettingsError(f"ir_datasets has no {dataset_id!r}; take an id from https://ir-datasets.com") from error


def _convert_document(doc: Any) -> Document:
    title = str(getattr(doc, "title", None) or "").strip()
    text = _get_default_text(doc, names=("text", "body", "contents"))
    # When a document has a title, its default text begins with the title.
    return Document(normalize_id(doc.doc_id), title, text.removeprefix(title).strip() if title else text)


def _read_judged_queries(dataset: Any) -> JudgedQueries:
    """Return queries and judgments. Judgments of queries that the dataset does not hold are dropped."""
    queries = {
        normalize_id(query.query_id): _get_default_text(query, names=("text", "title", "query"))
        for query in dataset.queries_iter()
    }
    qrels: Qrels = {}
    for qrel in dataset.qrels_iter() if dataset.has_qrels() else ():
        query_id = normalize_id(qrel.query_id)
        if query_id in queries:
            qrels.setdefault(query_id, {})[normalize_id(qrel.doc_id)] = qrel.relevance
    return queries, qrels


def _get_default_text(record: Any, *, names: Iterable[str]) -> str:
    if hasattr(record, "default_text"):
        return str(record.default_text())
    text = next((getattr(record, name) for name in names if hasattr(record, name)), None)
    if text is None:
        raise SettingsError(f"a {type(record).__name__} of this dataset holds no text; name a dataset of texts")
    return str(text)
