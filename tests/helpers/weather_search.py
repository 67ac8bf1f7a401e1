"""A small index on which the passages of `tests.helpers.lessons` help: its relevant documents share their words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from querylift.index_tools.corpora import corpus_names
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.settings import parse_settings
from querylift.trainer.rewards.labels import load_split_labels
from querylift.trainer.student.search_evaluation import SearchEvaluator

WORDS = ("dew", "mist", "sleet", "drizzle", "lightning", "tornado")
INDEX = "weather-test"


def write_weather_corpus(folder: Path) -> Path:
    """Write a BEIR folder with the split `watch`. Each query has one relevant document and three worse ones."""
    (folder / "qrels").mkdir(parents=True)
    documents, judgments = [], ["query-id\tcorpus-id\tscore"]
    for word in WORDS:
        documents.append(
            {"_id": f"good-{word}", "title": "", "text": f"{word} meteorologists measure instruments ground"}
        )
        documents += [{"_id": f"bad-{word}-{i}", "title": "", "text": f"{word} {word} story {i}"} for i in range(3)]
        judgments.append(f"w-{word}\tgood-{word}\t1")
    queries = [{"_id": f"w-{word}", "text": f"{word} story of the night"} for word in WORDS]
    for name, rows in (("corpus", documents), ("queries", queries)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "qrels" / "watch.tsv").write_text("\n".join(judgments) + "\n", encoding="utf-8")
    return folder


@contextmanager
def index_weather(folder: Path, engine_url: str) -> Iterator[None]:
    """Build the index of the corpus in `folder`, and remove it after the block."""
    with Engine(parse_settings({"engine": engine_url})) as engine:
        build_index(engine, corpus_names.load_corpus(str(folder)), IndexPlan(INDEX))
        yield
        engine.call("DELETE", f"/{INDEX}")


def make_weather_evaluator(folder: Path, engine_url: str) -> SearchEvaluator:
    """Return an evaluator of the split `watch`, at a weight that lets the expansion decide."""
    corpus = corpus_names.load_corpus(str(folder))
    return SearchEvaluator(
        name=f"{folder}:watch",
        queries=corpus.read_queries("watch"),
        labels=load_split_labels(corpus, "watch"),
        settings=parse_settings({"engine": engine_url}),
        index=INDEX,
        weight=5.0,
        batch_size=8,
        patience_s=0.1,
    )
