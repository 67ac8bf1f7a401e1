"""Lessons out of an index: the fast expander is the teacher, for the queries of a split or for some drawn from documents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from querylift.index_tools.corpora.loading import load
from querylift.plugin.errors import QueryliftError
from querylift.plugin.fast_expander.folder import ABOUT
from querylift.trainer import candidates
from querylift.trainer.commands.teach import teach as command
from querylift.trainer.teaching.fast_expander_teacher import QUERY_WORDS, queries_of
from tests.helpers.expanders import TEXTS, TOPICS, made_expander, tiny_encoder
from tests.helpers.folders import edit
from tests.helpers.lessons import write_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("lessons")
    return made_expander(work / "topics", tiny_encoder(work / "encoder"))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """The forty documents of four words each, and one without words; nobody asks anything."""
    return _corpus(tmp_path / "documents", {**TEXTS, "empty": " "})


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """The forty documents, two queries to learn from and one to measure on."""
    folder = _corpus(tmp_path / "asked", TEXTS)
    for split, queries in {"train": {"1": "harbour", "2": "how to bake dough"}, "dev": {"9": "planets"}}.items():
        _write(folder / f"queries.{split}.jsonl", queries)
    return folder


def _corpus(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir()
    _write(folder / "corpus.jsonl", texts)
    return folder


def _write(path: Path, texts: dict[str, str]) -> None:
    write_lines(path, [{"_id": i, "text": text} for i, text in texts.items()])


def _run(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    if done.exception is not None:
        raise done.exception
    return dict(json.loads(done.stdout))


def _words(out: Path) -> dict[str, list[str]]:
    return {row.query_id: row.text.split() for row in candidates.read(out)}


def test_the_expander_answers_a_splits_queries_with_words_of_its_index(
    tmp_path: Path, asked: Path, folder: Path
) -> None:
    out = tmp_path / "out.jsonl"
    told = _run(asked, "--split", "train", "--expander", folder, "--words", 3, "--out", out)
    assert told["expander"] == {"written": 2, "known": 0, "empty": 0}
    found = _words(out)
    assert {query_id: len(words) for query_id, words in found.items()} == {"1": 3, "2": 3}
    assert set(found["1"]) <= set(TOPICS["sea"])
    first = next(candidates.read(out))
    assert (first.method, first.params, first.model[:9]) == ("expander", {"words": 3}, "expander:")


def test_a_query_that_the_expander_cannot_read_is_counted_and_not_written(
    tmp_path: Path, asked: Path, folder: Path
) -> None:
    _write(asked / "queries.train.jsonl", {"1": "harbour", "2": "港口里的船"})
    told = _run(asked, "--split", "train", "--expander", folder, "--out", tmp_path / "out.jsonl")
    assert told["expander"] == {"written": 1, "known": 0, "empty": 1}
    assert set(_words(tmp_path / "out.jsonl")) == {"1"}


def test_queries_are_drawn_from_each_document_of_a_corpus_that_nobody_asks(
    tmp_path: Path, documents: Path, folder: Path
) -> None:
    out = tmp_path / "out.jsonl"
    _run(documents, "--expander", folder, "--pseudo-queries", 1, "--out", out)
    found = _words(out)
    assert set(found) == {f"doc:{doc_id}:0" for doc_id in TEXTS}
    topics = {query_id: query_id.removeprefix("doc:").partition("-")[0] for query_id in found}
    right = sum(set(words[:4]) <= set(TOPICS[topics[query_id]]) for query_id, words in found.items())
    assert right >= 36  # the encoder is small, and some queries are one word
    assert {len(words) for words in found.values()} == {8}


def test_pseudo_queries_are_short_seeded_and_of_as_many_documents_as_are_wanted(tmp_path: Path) -> None:
    long = {f"d{n}": " ".join(f"word{n}of{w}" for w in range(60)) + "." for n in range(20)}
    corpus = load(str(_corpus(tmp_path / "long", long)))
    made = queries_of(corpus, per_document=2, max_documents=5, seed=1)
    of = {query_id.split(":")[1] for query_id in made}
    assert (len(made), len(of)) == (10, 5)
    assert all(0 < len(query.split()) <= QUERY_WORDS for query in made.values())
    assert all(set(query.lower().split()) <= set(long[i.split(":")[1]].strip(".").split()) for i, query in made.items())
    assert queries_of(corpus, per_document=2, max_documents=5, seed=1) == made
    assert queries_of(corpus, per_document=2, max_documents=5, seed=2) != made
    assert len(queries_of(corpus, per_document=1, max_documents=99)) == 20


def test_a_pseudo_query_that_is_measured_is_left_out(tmp_path: Path, asked: Path, folder: Path) -> None:
    _write(asked / "queries.dev.jsonl", {"9": TEXTS["sky-0"]})
    arguments = [asked, "--split", "train", "--expander", folder, "--pseudo-queries", 4]
    with pytest.raises(QueryliftError, match=r"'doc:sky-0:\d' is '9' of asked:dev"):
        _run(*arguments, "--out", tmp_path / "refused.jsonl")
    with pytest.raises(QueryliftError, match=r"is '9' of asked:dev"):  # no split is asked, so every one is held out
        _run(asked, *arguments[3:], "--out", tmp_path / "refused.jsonl")
    told = _run(*arguments, "--drop-leaks", "--out", tmp_path / "out.jsonl")
    assert told["dropped"] >= 1
    assert TEXTS["sky-0"] not in {row.query for row in candidates.read(tmp_path / "out.jsonl")}


def test_words_of_another_number_do_not_go_into_a_file_that_was_begun(
    tmp_path: Path, asked: Path, folder: Path
) -> None:
    arguments = [asked, "--split", "train", "--expander", folder, "--out", tmp_path / "out.jsonl"]
    _run(*arguments)
    assert _run(*arguments)["expander"] == {"written": 0, "known": 2, "empty": 0}
    with pytest.raises(QueryliftError, match="expander"):
        _run(*arguments, "--words", 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pseudo-queries", "1", "--judged", "1"], "--pseudo-queries needs the index's words; give --expander"),
        (["--words", "3", "--judged", "1"], "--words needs the index's words; give --expander"),
        (["--expander", "gone", "--max-documents", "3"], "--max-documents needs --pseudo-queries"),
        (
            ["--expander", "gone", "--pseudo-queries", "1", "--limit", "3"],
            "--limit does not cut --pseudo-queries; say --max-documents",
        ),
        (["--expander", "gone"], "gone"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path: Path, asked: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(QueryliftError) as caught:
        _run(asked, "--split", "train", *arguments, "--out", tmp_path / "out.jsonl")
    assert sentence in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_expander_that_holds_nothing_itself_teaches_nothing(tmp_path: Path, asked: Path, folder: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit(copy / ABOUT, {"form": "cluster"})
    with pytest.raises(
        QueryliftError, match="is of the form 'cluster', which asks an engine; build one of another form"
    ):
        _run(asked, "--split", "train", "--expander", copy, "--out", tmp_path / "out.jsonl")


def test_a_corpus_without_words_is_refused(tmp_path: Path, folder: Path) -> None:
    empty = _corpus(tmp_path / "empty", {"1": " "})
    with pytest.raises(QueryliftError, match="empty has no document with words to ask about; name another corpus"):
        _run(empty, "--expander", folder, "--pseudo-queries", 1, "--out", tmp_path / "out.jsonl")
