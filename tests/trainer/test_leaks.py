"""Training queries that are in an evaluation split are found."""

import time

import pytest

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.plugin.errors import SettingsError
from querylift.trainer.leaks import HeldOutSplit, Leak, collect_leaked_ids, find_leaks, raise_on_leaks
from tests.helpers.paths import SHARED_DATA

HELD_OUT = [
    HeldOutSplit(
        "docs:dev", "docs", {"1": "What causes a rainbow?", "2": "history of the steam engine", "3": "processed meat"}
    ),
    HeldOutSplit("law:test", "law", {"7": "夫妻一方经营个体工商户所欠债务，谁偿还？"}),
]


def _find(*training: tuple[str, str], corpus: str = "other") -> list[tuple[str, str, str, str]]:
    return [
        (leak.training_id, leak.split, leak.held_out_id, leak.reason)
        for leak in find_leaks(training, HELD_OUT, corpus=corpus)
    ]


def test_the_same_id_of_the_same_corpus_is_a_leak_whatever_its_text() -> None:
    assert _find(("2", "why do cats purr"), corpus="docs") == [("2", "docs:dev", "2", "the same id")]


def test_the_same_id_of_another_corpus_is_no_leak() -> None:
    assert _find(("2", "why do cats purr"), corpus="law") == []


def test_an_imported_id_names_its_own_corpus() -> None:
    assert _find(("docs:2", "why do cats purr"), ("law:2", "more")) == [("docs:2", "docs:dev", "2", "the same id")]


def test_the_same_id_is_a_leak_when_the_texts_are_a_third_alike() -> None:
    assert _find(("2", "steam engine inventors")) == [("2", "docs:dev", "2", "the same id, 50% alike")]
    assert _find(("8", "steam engine inventors")) == []


def test_two_corpora_of_the_same_name_are_both_held_out() -> None:
    held_out = [
        HeldOutSplit("a/docs:dev", "docs", {"1": "x rays"}),
        HeldOutSplit("b/docs:dev", "docs", {"2": "why do cats purr"}),
    ]
    leaks = find_leaks([("7", "Why do cats purr?"), ("docs:1", "y")], held_out)
    assert [(leak.training_id, leak.split) for leak in leaks] == [("7", "b/docs:dev"), ("docs:1", "a/docs:dev")]


@pytest.mark.parametrize(
    "text", ["What causes a rainbow?", "what CAUSES a   rainbow", "“What causes a rainbow”", "what-causes: a ｒainbow!"]
)
def test_the_same_text_is_a_leak_without_letter_case_punctuation_and_space(text: str) -> None:
    assert _find(("9", text)) == [("9", "docs:dev", "1", "the same text")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("the steam engine of history", "100% alike"),  # words: history of the steam engine
        ("processed meats", "80% alike"),  # runs of four characters: 12 of 15, words 1 of 3
        ("history of the first steam engine", "75% alike"),  # words 3 of 4
    ],
)
def test_another_word_order_inflection_or_word_is_a_leak(text: str, why: str) -> None:
    assert [leak[3] for leak in _find(("9", text))] == [why]


def test_a_near_duplicate_without_spaces_between_words_is_a_leak() -> None:
    assert [leak[1] for leak in _find(("9", "夫妻一方经营个体工商户所欠债务由谁来偿还"))] == ["law:test"]


@pytest.mark.parametrize(
    "text", ["what causes a tornado", "steam", "...", "", "what is the", "who invented the petrol engine"]
)
def test_a_question_about_something_else_is_no_leak(text: str) -> None:
    assert _find(("9", text)) == []


def test_a_higher_threshold_finds_less() -> None:
    training = [("9", "history of the first steam engine")]
    assert len(find_leaks(training, HELD_OUT, threshold=0.75)) == 1
    assert find_leaks(training, HELD_OUT, threshold=0.76) == ()
    with pytest.raises(ValueError, match="threshold is 0"):
        find_leaks(training, HELD_OUT, threshold=0)


def test_a_leak_shows_ids_and_hides_both_texts() -> None:
    leak = find_leaks([("9", "what causes a rainbow")], HELD_OUT)[0]
    assert leak == Leak("9", "docs:dev", "1", "the same text")
    assert "rainbow" not in repr(leak)


def test_the_error_names_five_leaks_counts_the_others_and_gives_the_remedy() -> None:
    leaks = find_leaks([(str(n), "what causes a rainbow") for n in range(10, 17)], HELD_OUT)
    with pytest.raises(SettingsError) as caught:
        raise_on_leaks(leaks)
    assert str(caught.value).startswith(
        "7 training queries are in an evaluation split: '10' is '1' of docs:dev (the same text); '11' is '1' of"
    )
    assert str(caught.value).endswith(
        "'14' is '1' of docs:dev (the same text); and 2 more; leave them out with --drop-leaks"
    )
    assert collect_leaked_ids(leaks) == {"10", "11", "12", "13", "14", "15", "16"}


def test_one_leak_is_named_and_no_leak_is_no_error() -> None:
    with pytest.raises(SettingsError, match=r"^1 training query is in an evaluation split: '9' is '1' of docs:dev \("):
        raise_on_leaks(find_leaks([("9", "what causes a rainbow"), ("9", "causes of a rainbow, what")], HELD_OUT))
    raise_on_leaks(())


def test_prefix_filtering_misses_no_pair() -> None:
    """The result is that of comparing every pair, on texts of few words."""
    texts = [f"a{n * n % 3} b{n % 4} c{n * n % 5} d{n % 3} e{n % 7}" for n in range(60)]
    held = [HeldOutSplit("x:all", "x", {str(n): text for n, text in enumerate(texts[30:])})]
    training = [(f"t{n}", text) for n, text in enumerate(texts[:30])]

    def are_alike(text: str, other_text: str) -> bool:
        sets = [(set(t.split()), {f" {t} "[i : i + 4] for i in range(len(t) - 1)}) for t in (text, other_text)]
        return any(len(a & b) / len(a | b) >= 0.6 for a, b in zip(*sets, strict=True))

    expected = {
        (f"t{n}", str(m)) for n, t in enumerate(texts[:30]) for m, h in enumerate(texts[30:]) if are_alike(t, h)
    }
    assert {(leak.training_id, leak.held_out_id) for leak in find_leaks(training, held)} == expected
    assert 20 < len(expected) < 900


@pytest.mark.data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the retrieval data is not beside the project (../shared/data)")
def test_near_duplicates_in_real_splits_are_found_fast() -> None:
    scifact, nfcorpus = load_corpus(str(SHARED_DATA / "scifact")), load_corpus(str(SHARED_DATA / "nfcorpus"))
    held_out = [
        HeldOutSplit(f"{corpus.name}:dev", corpus.name, corpus.read_queries("dev")) for corpus in (scifact, nfcorpus)
    ]
    started_s = time.perf_counter()
    scifact_leaks = find_leaks(scifact.read_queries("train").items(), held_out, corpus="scifact")
    nfcorpus_leaks = find_leaks(nfcorpus.read_queries("train").items(), held_out, corpus="nfcorpus")
    assert time.perf_counter() - started_s < 30
    assert (len(scifact_leaks), len(nfcorpus_leaks)) == (95, 49)
    assert ("2", "5") in {(leak.training_id, leak.held_out_id) for leak in scifact_leaks}
