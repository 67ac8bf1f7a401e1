"""Which documents of a ranking are graded, and how they are cut."""

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.document_cut import cut_document
from querylift.trainer.judge.pair_choice import PairChoice, choose_pairs

RANKING = [f"d{rank}" for rank in range(1, 301)]


def _choose(choice: PairChoice, **run: list[str]) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    for query_id, doc_id in choose_pairs(run, choice):
        chosen.setdefault(query_id, []).append(doc_id)
    return chosen


def test_the_first_documents_and_random_ones_further_down_are_chosen() -> None:
    doc_ids = _choose(PairChoice(first=3, random=5, depth=200), q=RANKING)["q"]
    assert doc_ids[:3] == ["d1", "d2", "d3"]
    ranks = [int(doc_id.removeprefix("d")) for doc_id in doc_ids[3:]]
    assert len(set(ranks)) == 5
    assert all(4 <= rank <= 200 for rank in ranks)


def test_the_draw_depends_on_the_seed_and_the_query_alone() -> None:
    choice = PairChoice(first=2, random=4)
    both = _choose(choice, q=RANKING, p=RANKING)
    assert _choose(choice, q=RANKING) == {"q": both["q"]}
    assert both["q"] != both["p"]
    assert _choose(PairChoice(first=2, random=4, seed=1), q=RANKING)["q"] != both["q"]


def test_a_short_ranking_gives_what_it_has() -> None:
    assert sorted(_choose(PairChoice(first=2, random=4), q=["a", "b", "c"], p=[])["q"]) == ["a", "b", "c"]


def test_no_deeper_ranking_is_asked_for_than_is_drawn_from() -> None:
    assert PairChoice(first=7, random=0).hits == 7
    assert PairChoice(first=7, random=1, depth=50).hits == 50


@pytest.mark.parametrize(
    ("first", "random", "depth", "sentence"),
    [
        (0, 0, 10, "--first and --random are both 0"),
        (10, 10, 15, "--depth is 15, too few for 10 first and 10 random documents; give at least 20"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(first: int, random: int, depth: int, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        PairChoice(first, random, depth)


def test_documents_are_cut_after_a_word_and_texts_without_spaces_after_characters() -> None:
    assert cut_document(" one\ttwo\n\nthree four", 3) == "one two three"
    assert cut_document("雪" * 100, 3) == "雪" * 6
    assert cut_document("ก" * 100, 3) == "ก" * 15
    assert cut_document("x" * 100, 3) == "x" * 30
    assert cut_document("", 3) == ""
