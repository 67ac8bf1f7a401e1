"""Queries that share documents are one group, and whole groups are held out."""

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.document_groups import choose_groups, group_queries_by_document


def test_a_chain_of_shared_documents_is_one_group() -> None:
    relevant = {"a": ["1"], "b": ["1", "2"], "c": ["2"], "d": ["3"], "e": []}
    assert group_queries_by_document(relevant) == [["a", "b", "c"], ["d"], ["e"]]


def test_queries_without_documents_are_groups_of_their_own() -> None:
    assert group_queries_by_document({"b": [], "a": []}) == [["a"], ["b"]]


def _make_groups(*sizes: int) -> list[list[str]]:
    return [[f"{number}-{place}" for place in range(size)] for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "wanted", "chosen"),
    [
        ((1, 1, 1, 1, 9), 3, 3),
        ((4, 4, 4), 4, 4),
        ((4, 4, 4), 5, 4),  # 8 is further away
        ((3, 7, 7), 5, 3),  # 3 and 7 are equally near
        ((6, 50), 4, 6),  # no group has 4 or fewer
        ((2, 4, 6, 20), 11, 10),  # nothing gives 11, and 12 is as near as 10
        ((5, 5), 9, 5),  # one group must be left
    ],
)
def test_whole_groups_are_chosen_that_meet_the_number_or_come_nearest(
    sizes: tuple[int, ...], wanted: int, chosen: int
) -> None:
    groups = _make_groups(*sizes)
    for seed in range(5):
        query_ids = set(choose_groups(groups, wanted, seed=seed))
        assert len(query_ids) == chosen
        assert all(query_ids.issuperset(group) or query_ids.isdisjoint(group) for group in groups)


def test_the_seed_decides_the_choice() -> None:
    groups = _make_groups(*[1] * 20)
    choices = [choose_groups(groups, 5, seed=seed) for seed in (1, 1, 2)]
    assert choices[0] == choices[1] != choices[2]


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (
            (30, 1, 1),
            "--hold-out is 8, and shared relevant documents connect 30 of 32 queries, which must stay together; "
            "set --hold-out to 2, or use --by query",
        ),
        (
            (32,),
            "--hold-out is 8, and shared relevant documents connect 32 of 32 queries, which must stay together; "
            "use --by query",
        ),
        (
            (20, 20),
            "--hold-out is 8, and shared relevant documents connect 20 of 40 queries, which must stay together; "
            "set --hold-out to 20, or use --by query",
        ),
    ],
)
def test_a_group_that_is_too_large_is_one_sentence(sizes: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        choose_groups(_make_groups(*sizes), 8, seed=0)
    assert str(caught.value) == sentence
