"""Relevant documents as few-shot examples and as candidates."""

from pathlib import Path

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.trainer.candidates import Candidate, SourceDocument
from querylift.trainer.teaching.relevant_documents import draw_examples, read_document_candidates


def test_an_example_is_a_judged_query_with_the_beginning_of_its_best_document(judged_corpus: Path) -> None:
    corpus = load_corpus(str(judged_corpus))
    examples = draw_examples(corpus, "train", count=2, seed=1)
    assert examples == draw_examples(corpus, "train", count=2, seed=1)
    examples_by_id = {example.query_id: example for example in examples}
    assert {"1", "3"} <= examples_by_id.keys() <= {"1", "2", "3"}
    assert examples_by_id["1"].passage.startswith("Light bends. w0 w1")
    assert len(examples_by_id["1"].passage.split()) == 60
    assert (examples_by_id["3"].query, examples_by_id["3"].passage) == ("history of the steam engine", "Watt.")
    draws = {
        tuple(example.query_id for example in draw_examples(corpus, "train", count=1, seed=seed)) for seed in range(20)
    }
    assert len(draws) > 1


def test_relevant_documents_of_the_corpus_become_candidates_best_grade_first(judged_corpus: Path) -> None:
    candidates = list(read_document_candidates(load_corpus(str(judged_corpus)), "train", per_query=2, words=3))
    assert candidates[0] == Candidate(
        "1", "what causes a rainbow", "relevant-document", "judgments", "Rainbows Light bends. w0",
        {"doc_id": "d1", "grade": 2, "words": 3}, SourceDocument("docs", "d1"),
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
