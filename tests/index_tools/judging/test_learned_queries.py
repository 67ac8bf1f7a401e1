"""A judge's record tells on which queries its grades are too good, without holding their words."""

from querylift.index_tools.judging.learned_queries import (
    compute_query_digests,
    count_learned_queries,
    describe_learned_queries,
)


def test_digests_hold_no_words_and_count_equal_queries_once() -> None:
    digests = compute_query_digests(["time zones", "Time  Zones", "leap year"])
    assert len(digests) == 2
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_learned_queries_are_known_again_in_other_letter_case() -> None:
    digests = compute_query_digests(["time zones", "leap year"])
    assert count_learned_queries(digests, ["TIME ZONES", "daylight saving"]) == 1
    assert count_learned_queries((), ["time zones"]) == 0


def test_the_warning_names_both_numbers_and_is_empty_without_such_queries() -> None:
    digests = compute_query_digests(["time zones"])
    assert describe_learned_queries(digests, ["time zones", "leap year"]).startswith(
        "the judge learned from 1 of these 2 queries;"
    )
    assert describe_learned_queries(digests, ["leap year"]) == ""
