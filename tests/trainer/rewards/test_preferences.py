"""Pairs are made by reward, purely: what is preferred, how much, and why a query gives none."""

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
from querylift.trainer.rewards.preferences import REASONS, PairOptions, best, pairs, voted
from querylift.trainer.rewards.scored_candidates import Basis, Reward, Scored, read_scored, write_scored

BASIS = Basis(
    weights=(0.2,), mix={"ndcg_at_10": 1.0}, index="ours", index_state="ab12", labels_digest="cd34", rules="ef56"
)


def _scored(
    reward: float, text: str, *, query_id: str = "q1", method: str = "zero-shot", basis: Basis | None = None
) -> Scored:
    candidate = Candidate(query_id, f"words of {query_id}", method, "teacher", text)
    return Scored(candidate, text, text, Reward(query_id, reward, {}, {}), "made", basis)


def _reason(candidates: list[Scored], **options: Any) -> str:
    found = pairs(candidates, PairOptions(**options))
    assert found.pairs == ()
    assert sum(found.reasons.values()) == 1
    return next(reason for reason, count in found.reasons.items() if count)


def test_the_best_is_chosen_and_the_worst_rejected() -> None:
    found = pairs(
        [_scored(0.1, "fair"), _scored(0.3, "good", method="few-shot"), _scored(-0.2, "bad")], PairOptions(margin=0.05)
    )
    assert [pair.to_json() for pair in found.pairs] == [
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
        }
    ]
    assert (found.paired, found.queries) == (1, 1)


def test_all_pairs_over_the_margin_come_largest_first_up_to_the_cap() -> None:
    candidates = [_scored(0.0, "a"), _scored(0.1, "b"), _scored(0.3, "c"), _scored(0.35, "d")]
    found = pairs(candidates, PairOptions(strategy="all", margin=0.1, cap=4))
    assert [pair.chosen + pair.rejected for pair in found.pairs] == ["da", "ca", "db", "cb"]
    assert len(pairs(candidates, PairOptions(strategy="all", margin=0.1, cap=9)).pairs) == 5


def test_a_random_order_follows_the_seed_and_no_other_query() -> None:
    candidates = [_scored(i / 10, f"text {i}") for i in range(8)]
    options = PairOptions(strategy="all", order="random", cap=5, seed=3)
    alone = pairs(candidates, options).pairs
    assert alone == pairs([_scored(0.5, "x", query_id="q0"), *candidates], options).pairs
    assert alone != pairs(candidates, PairOptions(strategy="all", order="random", cap=5, seed=4)).pairs


@pytest.mark.parametrize(
    ("candidates", "options", "reason"),
    [
        ([_scored(0.5, "a", method="student")], {"pools": ("zero-shot",)}, "no candidates in the pool"),
        ([_scored(0.5, "")], {}, "no candidates in the pool"),
        ([_scored(0.5, "a")], {}, "one candidate only"),
        ([_scored(0.5, "same"), _scored(0.5, "same")], {}, "one candidate only"),
        ([_scored(0.5, "a"), _scored(0.5, "b")], {"margin": 0.0}, "all candidates score alike"),
        ([_scored(0.0, "a"), _scored(0.04, "b")], {"margin": 0.05}, "margin too small"),
        ([_scored(-0.3, "a"), _scored(-0.1, "b")], {}, "nothing at the floor"),
        ([_scored(-0.3, "a"), _scored(0.1, "b")], {"min_gain": 0.2}, "nothing at the floor"),
        ([_scored(0.0, "a"), _scored(0.3, "b b b")], {"max_length_ratio": 2.0}, "lengths too different"),
    ],
)
def test_a_query_without_a_pair_has_one_reason(candidates: list[Scored], options: dict[str, Any], reason: str) -> None:
    assert _reason(candidates, **options) == reason


def test_without_the_floor_the_lesser_evil_is_chosen() -> None:
    found = pairs([_scored(-0.3, "worse"), _scored(-0.1, "bad")], PairOptions(floor=False))
    assert [(pair.chosen, pair.rejected) for pair in found.pairs] == [("bad", "worse")]


def test_a_margin_that_is_met_to_the_digit_counts() -> None:
    assert len(pairs([_scored(0.3, "a"), _scored(0.1, "b")], PairOptions(margin=0.2)).pairs) == 1


def test_pools_are_mixed_and_of_equals_one_that_fits_in_length_is_taken() -> None:
    candidates = [
        _scored(0.4, "a a", method="student"),
        _scored(0.0, "b b b b b b b", method="few-shot"),
        _scored(0.0, "c c c", method="few-shot"),
        _scored(0.9, "d d", method="zero-shot"),
    ]
    found = pairs(candidates, PairOptions(pools=("student", "few-shot"), max_length_ratio=1.5))
    assert [(pair.chosen, pair.rejected) for pair in found.pairs] == [("a a", "c c c")]


_CANDIDATES = st.lists(
    st.builds(
        _scored,
        st.sampled_from([-0.5, -0.1, -0.04, 0.0, 0.04, 0.1, 0.3, 0.7]),
        st.sampled_from(["", "a", "b b", "c c c c", "d d d d d d d d", "e e"]),
        query_id=st.sampled_from(["q1", "q2", "q3"]),
        method=st.sampled_from(["zero-shot", "few-shot", "student"]),
    ),
    max_size=24,
)
_FLOORS = st.sampled_from([(True, 0.0), (True, 0.1), (False, 0.0)])
_OPTIONS = st.builds(
    lambda floor, **options: PairOptions(floor=floor[0], min_gain=floor[1], **options),
    pools=st.sampled_from([(), ("student",), ("zero-shot", "few-shot")]),
    strategy=st.sampled_from(["best-worst", "all"]),
    margin=st.sampled_from([0.0, 0.05, 0.3]),
    floor=_FLOORS,
    cap=st.integers(1, 5),
    max_length_ratio=st.sampled_from([None, 1.0, 2.0]),
    order=st.sampled_from(["margin", "random"]),
    seed=st.integers(0, 3),
)


@given(_CANDIDATES, _OPTIONS)
def test_every_pair_meets_every_condition_and_every_query_is_accounted_for(
    candidates: list[Scored], options: PairOptions
) -> None:
    found = pairs(candidates, options)
    assert found == pairs(candidates, options)
    for pair in found.pairs:
        assert pair.margin == pair.chosen_reward - pair.rejected_reward > 0
        assert pair.margin >= options.margin - 1e-9
        assert pair.chosen and pair.rejected and pair.chosen != pair.rejected
        assert not options.floor or pair.chosen_reward >= options.min_gain - 1e-9
        assert not options.pools or {pair.chosen_method, pair.rejected_method} <= set(options.pools)
        lengths = sorted(len(text.split()) for text in (pair.chosen, pair.rejected))
        assert options.max_length_ratio is None or lengths[1] <= options.max_length_ratio * lengths[0]
    most = options.cap if options.strategy == "all" else 1
    assert all(count <= most for count in Counter(pair.query_id for pair in found.pairs).values())
    assert tuple(found.reasons) == REASONS
    assert found.queries == len({one.candidate.query_id for one in candidates})


@given(_CANDIDATES, st.integers(1, 3), st.sampled_from([-1.0, 0.0, 0.1]))
def test_the_best_are_those_that_helped_most(candidates: list[Scored], per_query: int, floor: float) -> None:
    kept = best(candidates, per_query=per_query, floor=floor)
    for query_id in ("q1", "q2", "q3"):
        of_query = [one.reward.reward for one in kept if one.candidate.query_id == query_id]
        assert of_query == sorted(of_query, reverse=True)
        assert len(of_query) <= per_query
        assert all(reward > floor for reward in of_query)


def test_a_candidate_that_changes_nothing_did_not_help() -> None:
    assert best([_scored(0.0, "a"), _scored(-0.1, "b")]) == ()
    assert [one.passage for one in best([_scored(0.1, "a"), _scored(0.4, "b"), _scored(0.2, "c")], per_query=2)] == [
        "b",
        "c",
    ]


def _wrote(text: str, model: str = "teacher") -> Candidate:
    return Candidate("q1", "words", "zero-shot", model, text)


def test_words_are_voted_for_once_a_candidate_and_ranked_by_count() -> None:
    found = voted(
        [_wrote("The axon, the Axon and the nerve.", "one"), _wrote("nerve axon"), _wrote("Nerve fibre")],
        words=2,
        min_count=2,
    )
    assert found == Candidate(
        "q1",
        "words",
        "voted",
        "one+teacher",
        "nerve axon",
        {"voters": 3, "words": 2, "min_count": 2, "idf": False},
    )


def test_with_idf_rare_words_come_first_and_words_of_no_document_go() -> None:
    candidates = [_wrote("the axon ghost"), _wrote("the axon ghost"), _wrote("the")]
    found = voted(candidates, words=5, idf={"the": 0.1, "axon": 3.0})
    assert found is not None
    assert found.text == "axon the"


def test_where_nothing_is_agreed_on_there_is_no_vote() -> None:
    assert voted([_wrote("axon"), _wrote("nerve")], words=5) is None
    with pytest.raises(ValueError, match="of one query"):
        voted([], words=5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"strategy": "worst"}, "'worst'; use 'best-worst' or 'all'"),
        ({"order": "size"}, "'size'; use 'margin' or 'random'"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"cap": 0}, "cap 0"),
        (
            {"floor": False, "min_gain": 0.1},
            "min_gain is 0.1 without a floor to raise; leave it out, or ask for the floor",
        ),
        ({"max_length_ratio": 0.5}, "max_length_ratio is 0.5"),
    ],
)
def test_options_that_cannot_be_used_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        PairOptions(**given)


def test_the_command_writes_pairs_and_says_why_queries_give_none(tmp_path: Path) -> None:
    write_scored(tmp_path / "a.jsonl", [_scored(0.4, "good"), _scored(0.1, "bad"), _scored(0.1, "x", query_id="q2")])
    write_scored(tmp_path / "b.jsonl", [_scored(0.9, "z", query_id="q3"), _scored(0.9, "y", query_id="q3")])
    out = tmp_path / "pairs.jsonl"
    arguments = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--out", str(out)]
    text = CliRunner().invoke(pairs_command, arguments, catch_exceptions=False).output
    told = json.loads(CliRunner().invoke(pairs_command, [*arguments, "--json"], catch_exceptions=False).output)
    assert text.splitlines()[0].split() == ["queries", "with", "a", "pair", "1", "33%"]
    assert (told["queries"], told["queries_with_a_pair"], told["pairs"]) == (3, 1, 1)
    assert told["without_a_pair"]["one candidate only"] == 1
    assert told["without_a_pair"]["all candidates score alike"] == 1
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
def test_rewards_that_were_made_differently_are_not_compared(changes: dict[str, Any], sentence: str) -> None:
    candidates = [
        _scored(0.4, "good", basis=BASIS),
        _scored(0.1, "bad", query_id="q2", basis=replace(BASIS, **changes)),
    ]
    with pytest.raises(SettingsError, match=sentence):
        pairs(candidates, PairOptions())


def test_two_indices_give_pairs_together_but_never_for_one_query() -> None:
    theirs = replace(BASIS, index="theirs", index_state="00", labels_digest="00", rules="00")
    of_ours = [_scored(0.4, "good", basis=BASIS), _scored(0.1, "bad", basis=BASIS)]
    of_theirs = [_scored(0.6, text, query_id="q2", basis=theirs) for text in ("good", "better")]
    assert pairs([*of_ours, *of_theirs], PairOptions()).queries == 2
    with pytest.raises(SettingsError, match="of query 'q1' come from different indices, 'ours' and 'theirs'"):
        pairs([*of_ours, _scored(0.2, "fair", basis=theirs)], PairOptions())
    with pytest.raises(SettingsError, match="different weights"):
        pairs([*of_ours, _scored(0.2, "x", query_id="q3", basis=replace(theirs, weights=(0.4,)))], PairOptions())


def test_lines_that_do_not_say_what_made_their_reward_are_read_and_paired(tmp_path: Path) -> None:
    scored = [_scored(0.4, "good"), _scored(0.1, "bad", basis=BASIS)]
    write_scored(tmp_path / "scored.jsonl", scored)
    old, new = (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()
    assert ("basis" in json.loads(old), "basis" in json.loads(new)) == (False, True)
    assert list(read_scored(tmp_path / "scored.jsonl")) == scored
    assert len(pairs(scored, PairOptions()).pairs) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pool", "zero-shot", "--pool", "nope"], r"is of --pool 'nope'; take any of few-shot, zero-shot"),
        (["--no-floor", "--min-gain", "0.1"], "min_gain is 0.1 without a floor"),
        (["--out", "."], "a folder; name a file"),
        (["--out", "scored.jsonl"], "which is also read"),
    ],
)
def test_a_command_that_would_pair_nothing_or_not_what_it_says_is_refused(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    scored, out = tmp_path / "scored.jsonl", tmp_path / "pairs.jsonl"
    write_scored(scored, [_scored(0.4, "good"), _scored(0.1, "bad", method="few-shot")])
    changes = [str(tmp_path / each) if each in (".", "scored.jsonl") else each for each in arguments]
    with pytest.raises(SettingsError, match=sentence):
        CliRunner().invoke(pairs_command, [str(scored), "--out", str(out), *changes], catch_exceptions=False)
    assert [file.name for file in tmp_path.iterdir()] == ["scored.jsonl"]


def test_an_empty_file_of_scored_candidates_is_refused(tmp_path: Path) -> None:
    write_scored(tmp_path / "scored.jsonl", [])
    arguments = [str(tmp_path / "scored.jsonl"), "--out", str(tmp_path / "pairs.jsonl")]
    with pytest.raises(SettingsError, match=r"no candidate in .*scored\.jsonl; write candidates there with"):
        CliRunner().invoke(pairs_command, arguments, catch_exceptions=False)
