"""Pairs are chosen by reward. Every query without a pair has one reason."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import Candidate
from querylift.trainer.commands.pairs import pairs as pairs_command
from querylift.trainer.rewards.pairs import (
    REASONS,
    PairOptions,
    make_pairs,
    make_voted_candidate,
    select_best,
)
from querylift.trainer.rewards.scored_candidates import (
    Reward,
    RewardBasis,
    ScoredCandidate,
    read_scored_candidates,
    write_scored_candidates,
)

BASIS = RewardBasis(
    weights=(0.2,), mix={"ndcg_at_10": 1.0}, index="ours", index_state="ab12", labels_digest="cd34", rules="ef56"
)


def _make_scored(
    reward: float, text: str, *, query_id: str = "q1", method: str = "zero-shot", basis: RewardBasis | None = None
) -> ScoredCandidate:
    candidate = Candidate(query_id, f"words of {query_id}", method, "teacher", text)
    return ScoredCandidate(candidate, text, text, Reward(query_id, reward, {}, {}), "made", basis)


def _find_reason(candidates: list[ScoredCandidate], **options: Any) -> str:
    result = make_pairs(candidates, PairOptions(**options))
    assert result.pairs == ()
    assert sum(result.reasons.values()) == 1
    return next(reason for reason, count in result.reasons.items() if count)


def test_the_best_is_chosen_and_the_worst_rejected() -> None:
    result = make_pairs(
        [_make_scored(0.1, "fair"), _make_scored(0.3, "good", method="few-shot"), _make_scored(-0.2, "bad")],
        PairOptions(margin=0.05),
    )
    assert [pair.to_json() for pair in result.pairs] == [
        {
            "query_id": "q1",
            "query": "words of q1",
            "chosen": "good",
            "rejected": "bad",
            "chosen_reward": 0.3,
            "rejected_reward": -0.2,
            "chosen_method": "few-shot",
            "rejected_method": "zero-shot",
            "margin": 0.5,
            "chosen_ended": True,
            "rejected_ended": True,
        }
    ]
    assert (result.queries_with_pair, result.queries) == (1, 1)


def test_pairs_come_largest_margin_first_and_a_candidate_is_taken_again_after_the_others() -> None:
    candidates = [_make_scored(0.0, "a"), _make_scored(0.1, "b"), _make_scored(0.3, "c"), _make_scored(0.35, "d")]
    result = make_pairs(candidates, PairOptions(strategy="all", margin=0.1, cap=4))
    assert [pair.chosen + pair.rejected for pair in result.pairs] == ["da", "cb", "ca", "db"]
    assert len(make_pairs(candidates, PairOptions(strategy="all", margin=0.1, cap=9)).pairs) == 5


def test_of_two_pairs_with_one_margin_the_one_that_differs_in_words_is_taken() -> None:
    candidates = [_make_scored(0.0, "old words here"), _make_scored(0.5, "old words there"), _make_scored(0.5, "new")]

    def take_first(**options: Any) -> set[str]:
        all_options = [PairOptions(strategy="all", cap=1, seed=seed, **options) for seed in range(8)]
        return {make_pairs(candidates, options).pairs[0].chosen for options in all_options}

    assert take_first(order="words") == {"new"}
    assert take_first(order="margin") == {"new", "old words there"}


def test_chinese_passages_differ_by_their_signs() -> None:
    candidates = [_make_scored(0.0, "合同违约责任"), _make_scored(0.5, "合同违约赔偿"), _make_scored(0.4, "天气预报")]
    (pair,) = make_pairs(candidates, PairOptions(strategy="all", cap=1, order="words")).pairs
    assert pair.chosen == "天气预报"


def test_standardized_rewards_give_both_indices_pairs_at_one_margin() -> None:
    small = replace(BASIS, index="small")
    candidates = [
        _make_scored(0.4, "a", basis=BASIS),
        _make_scored(0.0, "b", basis=BASIS),
        _make_scored(0.04, "a", query_id="q2", basis=small),
        _make_scored(0.0, "b", query_id="q2", basis=small),
    ]
    assert len(make_pairs(candidates, PairOptions(margin=0.05)).pairs) == 1
    # Each reward lies .2 (or .02) from the mean of its query, which is the standard deviation.
    pairs = make_pairs(candidates, PairOptions(margin=1.9, standardize=True)).pairs
    assert [pair.margin for pair in pairs] == [pytest.approx(2.0)] * 2
    assert [pair.chosen_reward for pair in pairs] == [pytest.approx(2.0)] * 2


def test_rewards_without_an_index_are_not_standardized() -> None:
    with pytest.raises(SettingsError, match="candidate of query 'q1' does not say which index it was scored on; score"):
        make_pairs([_make_scored(0.4, "a"), _make_scored(0.0, "b")], PairOptions(standardize=True))


def test_an_index_where_all_candidates_score_alike_keeps_its_rewards() -> None:
    result = make_pairs([_make_scored(0.3, text, basis=BASIS) for text in "ab"], PairOptions(standardize=True))
    assert result.reasons["all candidates score alike"] == 1


def test_a_random_order_depends_on_the_seed_and_not_on_other_queries() -> None:
    candidates = [_make_scored(i / 10, f"text {i}") for i in range(8)]
    options = PairOptions(strategy="all", order="random", cap=5, seed=3)
    random_pairs = make_pairs(candidates, options).pairs
    assert random_pairs == make_pairs([_make_scored(0.5, "x", query_id="q0"), *candidates], options).pairs
    assert random_pairs != make_pairs(candidates, PairOptions(strategy="all", order="random", cap=5, seed=4)).pairs


@pytest.mark.parametrize(
    ("candidates", "options", "reason"),
    [
        ([_make_scored(0.5, "a", method="student")], {"pools": ("zero-shot",)}, "no candidates in the pool"),
        ([_make_scored(0.5, "")], {}, "no candidates in the pool"),
        ([_make_scored(0.5, "a")], {}, "one candidate only"),
        ([_make_scored(0.5, "same"), _make_scored(0.5, "same")], {}, "one candidate only"),
        ([_make_scored(0.5, "a"), _make_scored(0.5, "b")], {"margin": 0.0}, "all candidates score alike"),
        ([_make_scored(0.0, "a"), _make_scored(0.04, "b")], {"margin": 0.05}, "margin too small"),
        ([_make_scored(-0.3, "a"), _make_scored(-0.1, "b")], {}, "nothing at the floor"),
        ([_make_scored(-0.3, "a"), _make_scored(0.1, "b")], {"min_gain": 0.2}, "nothing at the floor"),
        ([_make_scored(0.0, "a"), _make_scored(0.3, "b b b")], {"max_length_ratio": 2.0}, "lengths too different"),
    ],
)
def test_a_query_without_a_pair_has_one_reason(
    candidates: list[ScoredCandidate], options: dict[str, Any], reason: str
) -> None:
    assert _find_reason(candidates, **options) == reason


def test_without_a_floor_the_better_of_two_harmful_passages_is_chosen() -> None:
    result = make_pairs([_make_scored(-0.3, "worse"), _make_scored(-0.1, "bad")], PairOptions(floor=False))
    assert [(pair.chosen, pair.rejected) for pair in result.pairs] == [("bad", "worse")]


def test_a_margin_that_is_met_exactly_counts() -> None:
    assert len(make_pairs([_make_scored(0.3, "a"), _make_scored(0.1, "b")], PairOptions(margin=0.2)).pairs) == 1


def test_pools_are_mixed_and_of_equal_passages_one_of_fitting_length_is_taken() -> None:
    candidates = [
        _make_scored(0.4, "a a", method="student"),
        _make_scored(0.0, "b b b b b b b", method="few-shot"),
        _make_scored(0.0, "c c c", method="few-shot"),
        _make_scored(0.9, "d d", method="zero-shot"),
    ]
    result = make_pairs(candidates, PairOptions(pools=("student", "few-shot"), max_length_ratio=1.5))
    assert [(pair.chosen, pair.rejected) for pair in result.pairs] == [("a a", "c c c")]


_CANDIDATES = st.lists(
    st.builds(
        _make_scored,
        st.sampled_from([-0.5, -0.1, -0.04, 0.0, 0.04, 0.1, 0.3, 0.7]),
        st.sampled_from(["", "a", "b b", "c c c c", "d d d d d d d d", "e e"]),
        query_id=st.sampled_from(["q1", "q2", "q3"]),
        method=st.sampled_from(["zero-shot", "few-shot", "student"]),
    ),
    max_size=24,
)
_FLOORS = st.sampled_from([(True, 0.0), (True, 0.1), (False, 0.0)])
_OPTIONS = st.builds(
    lambda floor, choice, **options: PairOptions(
        floor=floor[0], min_gain=floor[1], strategy=choice[0], order=choice[1], **options
    ),
    pools=st.sampled_from([(), ("student",), ("zero-shot", "few-shot")]),
    choice=st.sampled_from(
        [("best-worst", "margin"), ("best-worst", "random"), ("all", "margin"), ("all", "words"), ("all", "random")]
    ),
    margin=st.sampled_from([0.0, 0.05, 0.3]),
    floor=_FLOORS,
    cap=st.integers(1, 5),
    max_length_ratio=st.sampled_from([None, 1.0, 2.0]),
    seed=st.integers(0, 3),
)


@given(_CANDIDATES, _OPTIONS)
def test_every_pair_meets_every_condition_and_every_query_is_accounted_for(
    candidates: list[ScoredCandidate], options: PairOptions
) -> None:
    result = make_pairs(candidates, options)
    assert result == make_pairs(candidates, options)
    for pair in result.pairs:
        assert pair.margin == pair.chosen_reward - pair.rejected_reward > 0
        assert pair.margin >= options.margin - 1e-9
        assert pair.chosen and pair.rejected and pair.chosen != pair.rejected
        assert not options.floor or pair.chosen_reward >= options.min_gain - 1e-9
        assert not options.pools or {pair.chosen_method, pair.rejected_method} <= set(options.pools)
        lengths = sorted(len(text.split()) for text in (pair.chosen, pair.rejected))
        assert options.max_length_ratio is None or lengths[1] <= options.max_length_ratio * lengths[0]
    most_pairs = options.cap if options.strategy == "all" else 1
    assert all(count <= most_pairs for count in Counter(pair.query_id for pair in result.pairs).values())
    assert tuple(result.reasons) == REASONS
    assert result.queries == len({scored.candidate.query_id for scored in candidates})


@given(_CANDIDATES, st.integers(1, 3), st.sampled_from([-1.0, 0.0, 0.1]))
def test_the_best_candidates_are_those_with_the_highest_rewards(
    candidates: list[ScoredCandidate], per_query: int, floor: float
) -> None:
    best = select_best(candidates, per_query=per_query, floor=floor)
    for query_id in ("q1", "q2", "q3"):
        rewards = [scored.reward.value for scored in best if scored.candidate.query_id == query_id]
        assert rewards == sorted(rewards, reverse=True)
        assert len(rewards) <= per_query
        assert all(reward > floor for reward in rewards)


def test_a_candidate_that_changes_nothing_is_not_among_the_best() -> None:
    assert select_best([_make_scored(0.0, "a"), _make_scored(-0.1, "b")]) == ()
    assert [
        scored.passage
        for scored in select_best([_make_scored(0.1, "a"), _make_scored(0.4, "b"), _make_scored(0.2, "c")], per_query=2)
    ] == [
        "b",
        "c",
    ]


def _make_candidate(text: str, model: str = "teacher") -> Candidate:
    return Candidate("q1", "words", "zero-shot", model, text)


def test_a_word_counts_once_per_candidate_and_words_rank_by_count() -> None:
    result = make_voted_candidate(
        [
            _make_candidate("The axon, the Axon and the nerve.", "one"),
            _make_candidate("nerve axon"),
            _make_candidate("Nerve fibre"),
        ],
        words=2,
        min_count=2,
    )
    assert result == Candidate(
        "q1",
        "words",
        "voted",
        "one+teacher",
        "nerve axon",
        {"voters": 3, "words": 2, "min_count": 2, "idf": False},
    )


def test_with_idf_rare_words_come_first_and_words_of_no_document_are_dropped() -> None:
    candidates = [_make_candidate("the axon ghost"), _make_candidate("the axon ghost"), _make_candidate("the")]
    result = make_voted_candidate(candidates, words=5, idf={"the": 0.1, "axon": 3.0})
    assert result is not None
    assert result.text == "axon the"


def test_candidates_without_a_common_word_give_no_voted_candidate() -> None:
    assert make_voted_candidate([_make_candidate("axon"), _make_candidate("nerve")], words=5) is None
    with pytest.raises(ValueError, match="of one query"):
        make_voted_candidate([], words=5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strategy": "worst"}, "'worst'; use 'best-worst' or 'all'"),
        ({"order": "size"}, "'size'; use 'margin', 'words' or 'random'"),
        ({"order": "words"}, "the order 'words' does nothing with the strategy 'best-worst'; use 'all'"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"cap": 0}, "cap is 0"),
        (
            {"floor": False, "min_gain": 0.1},
            "min_gain is 0.1 without a floor; leave it out, or add the floor",
        ),
        ({"max_length_ratio": 0.5}, "max_length_ratio is 0.5"),
    ],
)
def test_invalid_pair_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        PairOptions(**options)


def test_the_command_writes_pairs_and_counts_the_reasons_of_queries_without_one(tmp_path: Path) -> None:
    write_scored_candidates(
        tmp_path / "a.jsonl",
        [_make_scored(0.4, "good"), _make_scored(0.1, "bad"), _make_scored(0.1, "x", query_id="q2")],
    )
    write_scored_candidates(
        tmp_path / "b.jsonl", [_make_scored(0.9, "z", query_id="q3"), _make_scored(0.9, "y", query_id="q3")]
    )
    out = tmp_path / "pairs.jsonl"
    arguments = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--out", str(out)]
    text = CliRunner().invoke(pairs_command, arguments, catch_exceptions=False).output
    summary = json.loads(CliRunner().invoke(pairs_command, [*arguments, "--json"], catch_exceptions=False).output)
    assert text.splitlines()[0].split() == ["queries", "with", "a", "pair", "1", "33%"]
    assert (summary["queries"], summary["queries_with_a_pair"], summary["pairs"]) == (3, 1, 1)
    assert summary["without_a_pair"]["one candidate only"] == 1
    assert summary["without_a_pair"]["all candidates score alike"] == 1
    (line,) = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["chosen"] == "good"
    assert json.loads((tmp_path / "pairs.jsonl.manifest.json").read_text())["done"] is True


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": (0.2, 0.4)}, r"the rewards come from different weights, \[0\.2\] and \[0\.2, 0\.4\]; score all"),
        (
            {"mix": {"recall_at_100": 1.0}},
            r"different mixes, \{'ndcg_at_10': 1\.0\} and \{'recall_at_100': 1\.0\}; score",
        ),
        (
            {"labels_digest": "00"},
            r"of index 'ours' come from different labels, 'made' \(cd34\) and 'made' \(00\); score",
        ),
        ({"index_state": "00"}, "of index 'ours' come from different states of the index, ab12 and 00; score"),
        ({"rules": "00"}, "of index 'ours' come from different settings of the index, ef56 and 00; score"),
    ],
)
def test_rewards_that_were_made_in_different_ways_are_not_compared(changes: dict[str, Any], sentence: str) -> None:
    candidates = [
        _make_scored(0.4, "good", basis=BASIS),
        _make_scored(0.1, "bad", query_id="q2", basis=replace(BASIS, **changes)),
    ]
    with pytest.raises(SettingsError, match=sentence):
        make_pairs(candidates, PairOptions())


def test_candidates_of_two_indices_may_be_paired_but_not_for_one_query() -> None:
    their_basis = replace(BASIS, index="theirs", index_state="00", labels_digest="00", rules="00")
    ours = [_make_scored(0.4, "good", basis=BASIS), _make_scored(0.1, "bad", basis=BASIS)]
    theirs = [_make_scored(0.6, text, query_id="q2", basis=their_basis) for text in ("good", "better")]
    assert make_pairs([*ours, *theirs], PairOptions()).queries == 2
    with pytest.raises(SettingsError, match="of query 'q1' come from different indices, 'ours' and 'theirs'"):
        make_pairs([*ours, _make_scored(0.2, "fair", basis=their_basis)], PairOptions())
    with pytest.raises(SettingsError, match="different weights"):
        make_pairs(
            [*ours, _make_scored(0.2, "x", query_id="q3", basis=replace(their_basis, weights=(0.4,)))], PairOptions()
        )


def test_lines_without_a_basis_are_read_and_paired(tmp_path: Path) -> None:
    scored = [_make_scored(0.4, "good"), _make_scored(0.1, "bad", basis=BASIS)]
    write_scored_candidates(tmp_path / "scored.jsonl", scored)
    old_line, new_line = (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()
    assert ("basis" in json.loads(old_line), "basis" in json.loads(new_line)) == (False, True)
    assert list(read_scored_candidates(tmp_path / "scored.jsonl")) == scored
    assert len(make_pairs(scored, PairOptions()).pairs) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pool", "zero-shot", "--pool", "nope"], r"is of --pool 'nope'; take any of few-shot, zero-shot"),
        (["--no-floor", "--min-gain", "0.1"], "min_gain is 0.1 without a floor"),
        (["--out", "."], "a folder; name a file"),
        (["--out", "scored.jsonl"], "which is also read"),
    ],
)
def test_a_command_that_could_not_pair_what_it_names_is_refused(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    scored, out = tmp_path / "scored.jsonl", tmp_path / "pairs.jsonl"
    write_scored_candidates(scored, [_make_scored(0.4, "good"), _make_scored(0.1, "bad", method="few-shot")])
    changes = [str(tmp_path / argument) if argument in (".", "scored.jsonl") else argument for argument in arguments]
    with pytest.raises(SettingsError, match=sentence):
        CliRunner().invoke(pairs_command, [str(scored), "--out", str(out), *changes], catch_exceptions=False)
    assert [file.name for file in tmp_path.iterdir()] == ["scored.jsonl"]


def test_an_empty_file_of_scored_candidates_is_refused(tmp_path: Path) -> None:
    write_scored_candidates(tmp_path / "scored.jsonl", [])
    arguments = [str(tmp_path / "scored.jsonl"), "--out", str(tmp_path / "pairs.jsonl")]
    with pytest.raises(SettingsError, match=r"scored\.jsonl holds no candidate; write candidates there with"):
        CliRunner().invoke(pairs_command, arguments, catch_exceptions=False)
