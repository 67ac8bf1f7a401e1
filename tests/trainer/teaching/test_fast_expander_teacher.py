"""The fast expander as a teacher, for the queries of a split and for pseudo-queries."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.plugin.errors import QueryliftError
from querylift.plugin.fast_expander.expander_folder import RECORD_FILE
from querylift.trainer.candidates import SourceDocument, read_candidates
from querylift.trainer.teaching.fast_expander_teacher import MAX_PSEUDO_QUERY_WORDS, draw_pseudo_queries
from tests.helpers.expanders import TEXTS, TOPICS, write_expander, write_tiny_encoder
from tests.helpers.folders import edit_json_file
from tests.helpers.lessons import write_json_lines
from tests.helpers.teach_command import run_teach


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("lessons")
    return write_expander(work / "topics", write_tiny_encoder(work / "encoder"))


@pytest.fixture
def unjudged_corpus(tmp_path: Path) -> Path:
    """Forty documents of four words each, and one without words. There are no queries."""
    return _write_corpus(tmp_path / "documents", {**TEXTS, "empty": " "})


@pytest.fixture
def split_corpus(tmp_path: Path) -> Path:
    """The forty documents, with two queries to train on and one to measure on."""
    folder = _write_corpus(tmp_path / "asked", TEXTS)
    for split, queries in {"train": {"1": "harbour", "2": "how to bake dough"}, "dev": {"9": "planets"}}.items():
        _write_texts(folder / f"queries.{split}.jsonl", queries)
    return folder


def _write_corpus(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir()
    _write_texts(folder / "corpus.jsonl", texts)
    return folder


def _write_texts(path: Path, texts: dict[str, str]) -> None:
    write_json_lines(path, [{"_id": i, "text": text} for i, text in texts.items()])


def _read_words(out: Path) -> dict[str, list[str]]:
    return {row.query_id: row.text.split() for row in read_candidates(out)}


def test_the_expander_answers_a_splits_queries_with_words_of_its_index(
    tmp_path: Path, split_corpus: Path, folder: Path
) -> None:
    out = tmp_path / "out.jsonl"
    results = run_teach(split_corpus, "--split", "train", "--expander", folder, "--words", 3, "--out", out)
    assert results["expander"] == {"written": 2, "known": 0, "empty": 0, "without_end": 0}
    words_by_query = _read_words(out)
    assert {query_id: len(words) for query_id, words in words_by_query.items()} == {"1": 3, "2": 3}
    assert set(words_by_query["1"]) <= set(TOPICS["sea"])
    candidate = next(read_candidates(out))
    assert (candidate.method, candidate.params, candidate.model[:9]) == ("expander", {"words": 3}, "expander:")


def test_a_query_that_the_expander_cannot_read_is_counted_and_not_written(
    tmp_path: Path, split_corpus: Path, folder: Path
) -> None:
    _write_texts(split_corpus / "queries.train.jsonl", {"1": "harbour", "2": "港口里的船"})
    results = run_teach(split_corpus, "--split", "train", "--expander", folder, "--out", tmp_path / "out.jsonl")
    assert results["expander"] == {"written": 1, "known": 0, "empty": 1, "without_end": 0}
    assert set(_read_words(tmp_path / "out.jsonl")) == {"1"}


def test_pseudo_queries_are_drawn_from_each_document_of_a_corpus_without_queries(
    tmp_path: Path, unjudged_corpus: Path, folder: Path
) -> None:
    out = tmp_path / "out.jsonl"
    run_teach(unjudged_corpus, "--expander", folder, "--pseudo-queries", 1, "--out", out)
    words_by_query = _read_words(out)
    assert set(words_by_query) == {f"doc:{doc_id}:0" for doc_id in TEXTS}
    topics = {query_id: query_id.removeprefix("doc:").partition("-")[0] for query_id in words_by_query}
    on_topic = sum(set(words[:4]) <= set(TOPICS[topics[query_id]]) for query_id, words in words_by_query.items())
    assert on_topic >= 36  # the encoder is small, and some queries are one word
    assert {len(words) for words in words_by_query.values()} == {8}


def test_pseudo_queries_are_short_and_seeded_and_limited_to_some_documents(tmp_path: Path) -> None:
    texts = {f"d{n}": " ".join(f"word{n}of{w}" for w in range(60)) + "." for n in range(20)}
    corpus = load_corpus(str(_write_corpus(tmp_path / "long", texts)))
    queries = draw_pseudo_queries(corpus, per_document=2, max_documents=5, seed=1)
    doc_ids = {query_id.split(":")[1] for query_id in queries}
    assert (len(queries), len(doc_ids)) == (10, 5)
    assert all(0 < len(query.text.split()) <= MAX_PSEUDO_QUERY_WORDS for query in queries.values())
    assert all(
        set(query.text.lower().split()) <= set(texts[query.document.doc_id].strip(".").split())
        for query in queries.values()
    )
    assert draw_pseudo_queries(corpus, per_document=2, max_documents=5, seed=1) == queries
    assert draw_pseudo_queries(corpus, per_document=2, max_documents=5, seed=2) != queries
    assert len(draw_pseudo_queries(corpus, per_document=1, max_documents=99)) == 20


def test_a_held_out_pseudo_query_is_left_out(tmp_path: Path, split_corpus: Path, folder: Path) -> None:
    _write_texts(split_corpus / "queries.dev.jsonl", {"9": TEXTS["sky-0"]})
    arguments = [split_corpus, "--split", "train", "--expander", folder, "--pseudo-queries", 4]
    with pytest.raises(QueryliftError, match=r"'doc:sky-0:\d' is '9' of asked:dev"):
        run_teach(*arguments, "--out", tmp_path / "refused.jsonl")
    with pytest.raises(QueryliftError, match=r"is '9' of asked:dev"):  # no split is named, so every split is held out
        run_teach(split_corpus, *arguments[3:], "--out", tmp_path / "refused.jsonl")
    results = run_teach(*arguments, "--drop-leaks", "--out", tmp_path / "out.jsonl")
    assert results["dropped"] >= 1
    assert TEXTS["sky-0"] not in {row.query for row in read_candidates(tmp_path / "out.jsonl")}


def test_by_document_pseudo_queries_of_held_out_documents_are_left_out(
    tmp_path: Path, split_corpus: Path, folder: Path
) -> None:
    (split_corpus / "qrels.dev.tsv").write_text("query-id\tcorpus-id\tscore\n9\tsky-0\t1\n")
    _write_texts(split_corpus / "queries.dev.jsonl", {"9": "something else entirely"})
    arguments = [
        split_corpus,
        "--split",
        "train",
        "--expander",
        folder,
        "--pseudo-queries",
        1,
        "--held-out-by",
        "document",
    ]
    with pytest.raises(QueryliftError, match=r"document 'sky-0' of 'doc:sky-0:0' is relevant to '9' of asked:dev"):
        run_teach(*arguments, "--out", tmp_path / "refused.jsonl")
    assert run_teach(*arguments, "--drop-leaks", "--out", tmp_path / "out.jsonl")["dropped_by_document"] == 1
    documents = {candidate.document for candidate in read_candidates(tmp_path / "out.jsonl")}
    assert SourceDocument("asked", "sky-1") in documents
    assert SourceDocument("asked", "sky-0") not in documents


def test_a_file_is_refused_with_another_number_of_words(tmp_path: Path, split_corpus: Path, folder: Path) -> None:
    arguments = [split_corpus, "--split", "train", "--expander", folder, "--out", tmp_path / "out.jsonl"]
    run_teach(*arguments)
    assert run_teach(*arguments)["expander"] == {"written": 0, "known": 2, "empty": 0, "without_end": 0}
    with pytest.raises(QueryliftError, match="expander"):
        run_teach(*arguments, "--words", 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pseudo-queries", "1", "--judged", "1"], "--pseudo-queries needs the index's words; give --expander"),
        (["--words", "3", "--judged", "1"], "--words needs the index's words; give --expander"),
        (["--expander", "gone", "--max-documents", "3"], "--max-documents needs --pseudo-queries"),
        (
            ["--expander", "gone", "--pseudo-queries", "1", "--limit", "3"],
            "--limit does not limit --pseudo-queries; give --max-documents",
        ),
        (["--expander", "gone"], "gone"),
    ],
)
def test_a_wrong_option_is_reported_in_one_sentence(
    tmp_path: Path, split_corpus: Path, arguments: list[str], sentence: str
) -> None:
    with pytest.raises(QueryliftError) as caught:
        run_teach(split_corpus, "--split", "train", *arguments, "--out", tmp_path / "out.jsonl")
    assert sentence in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_expander_of_the_form_cluster_is_refused(tmp_path: Path, split_corpus: Path, folder: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit_json_file(copy / RECORD_FILE, {"form": "cluster"})
    with pytest.raises(
        QueryliftError, match="is of the form 'cluster', which asks an engine; build one of another form"
    ):
        run_teach(split_corpus, "--split", "train", "--expander", copy, "--out", tmp_path / "out.jsonl")


def test_a_corpus_without_words_is_refused(tmp_path: Path, folder: Path) -> None:
    empty = _write_corpus(tmp_path / "empty", {"1": " "})
    with pytest.raises(QueryliftError, match="empty has no document with words to ask about; name another corpus"):
        run_teach(empty, "--expander", folder, "--pseudo-queries", 1, "--out", tmp_path / "out.jsonl")
