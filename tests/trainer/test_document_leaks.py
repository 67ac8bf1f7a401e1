"""Training rows that were made from a document of an evaluation split are found."""

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import Candidate, SourceDocument
from querylift.trainer.document_leaks import (
    TrainingDocument,
    collect_leaking_queries,
    find_document_leaks,
    get_candidate_document,
    list_row_documents,
    make_held_out_documents,
    raise_on_document_leaks,
    select_relevant_documents,
)
from querylift.trainer.leaks import HeldOutSplit

ABSTRACT = (
    "Light and water. A rainbow is caused by sunlight that is bent, reflected and bent again in drops of rain, so that each "
    "colour leaves the drop at an angle of its own, and an observer with the sun behind sees a circle of colours "
    "at forty-two degrees."
)
CHINESE = "彩虹的成因。阳光进入雨滴后发生折射和反射，不同颜色的光以不同的角度离开雨滴，因此观察者看到彩色的圆弧。"
HELD_OUT = [
    HeldOutSplit(
        "docs:dev",
        "docs",
        {"q1": "what causes a rainbow"},
        make_held_out_documents(
            {"q1": ["d1", "d2"], "q2": ["d1"], "q3": ["d3"]}, {"d1": ABSTRACT, "d2": CHINESE, "d3": "Why cats purr"}
        ),
    )
]


def _find(*documents: TrainingDocument) -> list[str]:
    return [str(leak) for leak in find_document_leaks(documents, HELD_OUT)]


def test_the_same_document_of_the_same_corpus_is_a_leak_whatever_its_text() -> None:
    assert _find(TrainingDocument("7", "docs", "d1", "rewritten")) == [
        "document 'd1' of '7' is relevant to 'q1' of docs:dev (the same id)"
    ]


def test_the_same_id_of_another_corpus_is_no_leak() -> None:
    assert _find(TrainingDocument("7", "law", "d1", "rewritten")) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ABSTRACT.upper(), "the same text"),
        (f"{ABSTRACT} More that the student never reads.", "the same text"),
        (ABSTRACT.replace("sunlight", "light"), r"\d\d% alike"),
        (CHINESE, "the same text"),
        (CHINESE.replace("阳光", "日光"), r"\d\d% alike"),
    ],
)
def test_a_row_whose_document_nobody_recorded_is_a_leak_by_its_text(text: str, reason: str) -> None:
    (leak,) = find_document_leaks([TrainingDocument("7", "", "", text)], HELD_OUT)
    with pytest.raises(SettingsError, match=rf"a text of '7' is relevant to 'q1' of docs:dev \({reason}\)"):
        raise_on_document_leaks([leak])


def test_a_text_about_the_same_subject_is_no_leak() -> None:
    passage = (
        "A rainbow is caused by sunlight and rain. Raindrops act as prisms and split white light into its colours."
    )
    assert _find(TrainingDocument("7", "", "", passage), TrainingDocument("8", "", "", "")) == []


def test_the_same_id_without_a_corpus_is_a_leak_when_the_texts_are_a_third_alike() -> None:
    assert _find(TrainingDocument("7", "", "d3", "Why dogs bark, and cats purr")) == [
        "document 'd3' of '7' is relevant to 'q3' of docs:dev (the same id, 50% alike)"
    ]
    assert _find(TrainingDocument("7", "", "d3", "How boats float")) == []


def test_a_document_of_two_training_queries_leaks_in_both() -> None:
    documents = [TrainingDocument(query_id, "docs", "d1", "") for query_id in ("7", "8")]
    leaks = find_document_leaks([*documents, TrainingDocument("9", "docs", "d9", "")], HELD_OUT)
    assert collect_leaking_queries(leaks) == {"7", "8"}
    assert leaks[0].held_out_ids == ("q1", "q2")


def test_splits_without_documents_have_no_leaks() -> None:
    assert find_document_leaks([TrainingDocument("7", "docs", "d1", "")], [HeldOutSplit("docs:dev", "docs", {})]) == ()


def test_a_leak_hides_the_text() -> None:
    assert "rainbow" not in repr(find_document_leaks([TrainingDocument("7", "docs", "d1", ABSTRACT)], HELD_OUT))


def test_the_error_names_five_leaks_counts_the_others_and_gives_the_remedy() -> None:
    leaks = find_document_leaks([TrainingDocument(str(n), "docs", "d1", "") for n in range(7)], HELD_OUT)
    with pytest.raises(SettingsError) as caught:
        raise_on_document_leaks(leaks)
    assert str(caught.value).startswith(
        "7 training texts are of documents that are relevant to held-out queries: document 'd1' of '0' is relevant to"
    )
    assert str(caught.value).endswith("(the same id); and 2 more; leave them out with --drop-leaks")
    with pytest.raises(
        SettingsError, match=r"^1 training text is of a document that is relevant to held-out queries: "
    ):
        raise_on_document_leaks(leaks[:1])
    raise_on_document_leaks(())


def test_only_documents_of_the_lowest_relevant_grade_or_higher_count() -> None:
    assert select_relevant_documents({"1": {"a": 1, "b": 2, "c": 3}, "2": {"d": 1}}, relevant_from=2) == {
        "1": ["b", "c"],
        "2": [],
    }


def test_candidates_rows_and_pairs_give_their_texts_and_what_is_known_of_the_document() -> None:
    source = SourceDocument("x", "d1")
    candidate = Candidate("7", "q", "relevant-document", "judgments", "light", {"doc_id": "d1"}, document=source)
    document = TrainingDocument("7", "x", "d1", "light")
    assert get_candidate_document(candidate) == document
    assert list(list_row_documents(candidate.to_json())) == [document]
    older_row = {"query_id": 7, "text": "light", "params": {"doc_id": "d1"}}
    assert list(list_row_documents(older_row)) == [TrainingDocument("7", "", "d1", "light")]
    pair = {"query_id": "7", "chosen": "light", "rejected": "rain"}
    assert [row.text for row in list_row_documents(pair)] == ["light", "rain"]
    own = {
        "query_id": "7",
        "chosen": "light",
        "chosen_method": "student",
        "rejected": "rain",
        "rejected_method": "few-shot",
    }
    assert [row.text for row in list_row_documents(own)] == ["rain"]
    assert list(list_row_documents({"text": 3, "params": [], "document": "d1"})) == []
