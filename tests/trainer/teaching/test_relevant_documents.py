"""Relevant documents as few-shot examples and as candidates."""

from pathlib import Path

import pytest

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.trainer.candidates import Candidate, SourceDocument
from querylift.trainer.teaching.relevant_documents import draw_examples, read_document_candidates
from tests.helpers.corpus_files import QRELS_HEADER, format_jsonl, write_text_file


def test_an_example_is_a_judged_query_with_the_beginning_of_its_best_document(judged_corpus: Path) -> None:
    corpus = load_corpus(str(judged_corpus))
    examples = draw_examples(corpus, "train", count=2, seed=1)
    assert examples == draw_examples(corpus, "train", count=2, seed=1)
    examples_by_id = {example.query_id: example for example in examples}
    assert {"1", "3"} <= examples_by_id.keys() <= {"1", "2", "3"}
    assert examples_by_id["1"].passage.startswith("Light bends. w0 w1")
    assert len(examples_by_id["1"].passage.split()) == 40
    assert (examples_by_id["3"].query, examples_by_id["3"].passage) == ("history of the steam engine", "Watt.")
    draws = {
        tuple(example.query_id for example in draw_examples(corpus, "train", count=1, seed=seed)) for seed in range(20)
    }
    assert len(draws) > 1


def test_relevant_documents_of_the_corpus_become_candidates_best_grade_first(judged_corpus: Path) -> None:
    candidates = list(read_document_candidates(load_corpus(str(judged_corpus)), "train", per_query=2, words=3))
    assert candidates[0] == Candidate(
        "1", "what causes a rainbow", "relevant-document", "judgments", "Rainbows Light bends. w0",
        {"doc_id": "d1", "grade": 2, "words": 3}, ended=False, document=SourceDocument("docs", "d1"),
    )  # fmt: skip
    assert [(c.query_id, c.text) for c in candidates if c.query_id != "2"][1:] == [
        ("1", "Cats purr."),
        ("3", "Steam Watt."),
    ]
    assert {c.text for c in candidates if c.query_id == "2"} <= {"Cats purr.", "Only a title"}
    doc_ids = {
        tuple(
            c.params["doc_id"]
            for c in read_document_candidates(load_corpus(str(judged_corpus)), "train", per_query=1, seed=seed)
            if c.query_id == "2"
        )
        for seed in range(20)
    }
    assert doc_ids == {("d2",), ("d4",), ()}


@pytest.mark.parametrize(
    ("document", "text", "ended"),
    [
        ("公民从事工商业经营，经依法登记，为个体工商户。", "公民从事工商", False),
        ("公民从事工商", "公民从事工商", True),
        ("神経細胞は電気信号を", "神経細胞は電", False),
        ("การท่องเที่ยวแห่งประเทศไทย", "การท่องเที่ยวแห่", False),
        ("one two three four", "one two three", False),
    ],
)
def test_a_document_is_cut_by_words_of_its_script_and_then_goes_on(
    tmp_path: Path, document: str, text: str, ended: bool
) -> None:
    write_text_file(tmp_path / "c/corpus.jsonl", format_jsonl(d1=document))
    write_text_file(tmp_path / "c/queries.jsonl", format_jsonl(q1="query"))
    write_text_file(tmp_path / "c/qrels/train.tsv", QRELS_HEADER + "q1\td1\t1\n")
    (candidate,) = read_document_candidates(load_corpus(str(tmp_path / "c")), "train", per_query=1, words=3)
    assert (candidate.text, candidate.ended) == (text, ended)
