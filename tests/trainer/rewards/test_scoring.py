"""A reward is what a query gains on a real engine, through the rewrite that is served."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.engine import Engine, encode_json
from querylift.index_tools.evaluation.measures import Evaluation, evaluate_run
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.index_tools.searching import expand_all, search_offline
from querylift.plugin.broker import open_broker
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.flow import ExpansionRules
from querylift.plugin.generators import factory
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock
from querylift.trainer.rewards.engine_retry import EngineRetry
from querylift.trainer.rewards.labels import Labels
from querylift.trainer.rewards.ranking_cache import RankingCache
from querylift.trainer.rewards.scored_candidates import RewardBasis
from querylift.trainer.rewards.scoring import RewardOptions
from tests.helpers.rewards import (
    CANDIDATES,
    DOCUMENTS,
    INDEX,
    NO_ENGINE_URL,
    OPTIONS,
    QRELS,
    QUERIES,
    TEXTS,
    make_candidate,
    open_relay,
    score_on_engine,
)
from tests.index_tools.test_indexing import SmallCorpus


def _evaluate_table(engine: Engine, path: Path, *, weight: float) -> Evaluation:
    """Return the measures of `querylift evaluate --generator table:FILE`."""
    path.write_text("".join(json.dumps(candidate.to_json()) + "\n" for candidate in CANDIDATES), encoding="utf-8")
    settings = parse_settings(
        {"engine": engine.url, "generator": f"table:{path}", "index": {INDEX: {"weight": weight}}}
    )

    async def expand_queries() -> Any:
        async with open_broker(settings, factory.make_generator(settings.generator[0], settings)) as broker:
            rules = ExpansionRules(settings, clock=ManualClock())
            return await expand_all(QUERIES, index=INDEX, rules=rules, broker=broker)

    return evaluate_run(search_offline(engine, QUERIES, index=INDEX, results=asyncio.run(expand_queries())).run, QRELS)


@pytest.mark.engine
def test_a_reward_equals_the_gain_that_evaluate_measures_for_the_same_expansion(engine: Engine, tmp_path: Path) -> None:
    original = evaluate_run(search_offline(engine, QUERIES, index=INDEX).run, QRELS).per_query
    expanded = _evaluate_table(engine, tmp_path / "table.jsonl", weight=0.4).per_query
    rewards = [scored.reward for scored in score_on_engine(engine).scored]
    assert [reward.query_id for reward in rewards] == list(QUERIES)
    for reward in rewards:
        for measure in ("ndcg_at_10", "recall_at_100"):
            assert reward.base[measure] == original[measure][reward.query_id]
            assert reward.by_weight[0.4][measure] == expanded[measure][reward.query_id]
        assert reward.value == reward.by_weight[0.4]["ndcg_at_10"] - reward.base["ndcg_at_10"]
    assert len({reward.value for reward in rewards}) > 2


@pytest.mark.engine
def test_a_reward_is_the_mean_over_weights_of_the_mix_of_differences(engine: Engine) -> None:
    mix = {"ndcg_at_10": 0.7, "recall_at_100": 0.2, "ndcg_at_100": 0.1}
    options = RewardOptions(index=INDEX, weights=(0.1, 0.5), mix=mix)
    for scored in score_on_engine(engine, options=options).scored:
        base, values = scored.reward.base, scored.reward.by_weight
        by_hand = sum(mix[m] * (values[w][m] - base[m]) for w in (0.1, 0.5) for m in mix) / 2
        assert scored.reward.value == pytest.approx(by_hand, abs=1e-12)
        assert values.keys() == {0.1, 0.5}


@pytest.mark.engine
def test_equal_searches_are_made_once_and_are_cached_whatever_the_labels(engine: Engine, tmp_path: Path) -> None:
    candidates = [*CANDIDATES, make_candidate("q1", TEXTS["q1"], sample=1)]
    with RankingCache(tmp_path / "new" / "cache.sqlite") as cache:
        first_result = score_on_engine(engine, candidates, cache=cache)
    with RankingCache(tmp_path / "new" / "cache.sqlite") as cache:
        second_result = score_on_engine(engine, candidates, cache=cache)
        judge = Labels({"q1": {"d100": 1}}, "judge")
        options = replace(OPTIONS, mix={"ndcg_at_100": 1})
        judged = score_on_engine(engine, candidates, cache=cache, labels=judge, options=options)
    # There are five queries, and four of them are rewritten.
    assert (first_result.search_count, first_result.cache_hits) == (9, 0)
    assert (second_result.search_count, second_result.cache_hits) == (0, 9)
    assert second_result.scored == first_result.scored
    assert (judged.search_count, judged.unlabelled, len(judged.scored)) == (0, 4, 2)
    assert {scored.labels for scored in judged.scored} == {"judge"}


@pytest.mark.engine
def test_an_index_that_was_rebuilt_with_other_settings_is_searched_again(engine: Engine) -> None:
    with RankingCache() as cache:
        before = score_on_engine(engine, cache=cache)
        build_index(engine, SmallCorpus(DOCUMENTS), IndexPlan(INDEX, k1=0.1, b=0.0))
        after = score_on_engine(engine, cache=cache)
    assert (after.search_count, after.cache_hits) == (9, 0)
    assert after.fingerprint != before.fingerprint
    assert [scored.reward for scored in after.scored] != [scored.reward for scored in before.scored]


@pytest.mark.engine
def test_scoring_waits_for_an_engine_that_is_away_at_the_last_check_of_the_index(engine: Engine) -> None:
    lines: list[str] = []
    with open_relay(engine.url) as relay, Engine(parse_settings({"engine": relay.url})) as relayed_engine:

        def reconnect(seconds: float) -> None:
            relay.cut_after_bytes = None

        def disconnect(count: int) -> None:
            relay.cut_after_bytes = 0

        retry = EngineRetry(60, sleep=reconnect, clock=ManualClock(), say=lines.append)
        result = score_on_engine(engine=relayed_engine, retry=retry, progress=disconnect)
    assert len(result.scored) == len(CANDIDATES)
    assert not result.index_changed
    assert [line.split("; ")[-1] for line in lines] == ["next try in 0.5 s", "the engine is back"]


def _make_invalid_body_for_organ(text: str, depth: int) -> bytes:
    fuzziness = "nonsense" if "organ" in text else "0"
    match = {"contents": {"query": text, "fuzziness": fuzziness}}
    return encode_json({"query": {"match": match}, "size": depth, "_source": False})


@pytest.mark.engine
def test_a_rejected_search_is_reported_and_the_other_candidates_are_scored(engine: Engine) -> None:
    result = score_on_engine(engine, options=replace(OPTIONS, format_body=_make_invalid_body_for_organ))
    assert [scored.candidate.query_id for scored in result.scored] == ["q1", "q2", "q3", "q4"]
    assert list(result.rejections) == [CANDIDATES[-1].request_key]
    assert "status 400" in result.rejections[CANDIDATES[-1].request_key]


@pytest.mark.engine
def test_a_missing_index_and_a_missing_engine_are_errors_at_once(engine: Engine) -> None:
    with pytest.raises(EngineError, match="status 404: no such index"):
        score_on_engine(engine, options=RewardOptions(index="rewards-absent"))
    with (
        Engine(parse_settings({"engine": NO_ENGINE_URL})) as missing_engine,
        pytest.raises(SettingsError, match="no search engine answers"),
    ):
        score_on_engine(missing_engine)


@pytest.mark.engine
def test_a_candidate_that_adds_nothing_to_its_query_scores_0_and_is_counted(engine: Engine) -> None:
    candidates = [CANDIDATES[3], make_candidate("q1", "... !"), replace(CANDIDATES[0], query_id="q9")]
    result = score_on_engine(engine, candidates)
    assert [(scored.reward.value, scored.words) for scored in result.scored] == [
        (0.0, "words that were quoted"),
        (0.0, ""),
    ]
    assert result.not_expanded == {"skipped;quoted": 1, "skipped;nothing": 1}
    assert result.unlabelled == 1


@pytest.mark.engine
def test_everything_that_decides_a_reward_changes_its_basis(engine: Engine) -> None:
    def score_one(**changes: Any) -> RewardBasis:
        (basis,) = [scored.basis for scored in score_on_engine(engine, CANDIDATES[:1], **changes).scored]
        assert basis is not None
        return basis

    basis = score_one()
    widened = parse_settings({"engine": engine.url, "index": {INDEX: {"mode": "widen"}}})
    assert score_one(settings=widened) == replace(basis, rules=score_one(settings=widened).rules)
    assert score_one(settings=widened).rules != basis.rules
    judge = Labels({"q1": {"d3": 1}}, "made/all")
    assert score_one(labels=judge).labels_digest != basis.labels_digest
    reweighted = parse_settings({"engine": engine.url, "index": {INDEX: {"weight": 0.9}}})
    assert score_one(settings=reweighted) == basis
    engine.call("POST", f"/{INDEX}/_doc", {"text": "axon"}, params={"refresh": "true"})
    assert score_one().index_state != basis.index_state


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mix": {"bleu": 1.0}}, "'bleu' is not a measure; mix any of ndcg_at_5"),
        ({"mix": {}}, "the mix is {}"),
        ({"weights": ()}, "weights are"),
        ({"weights": (0.0,)}, "above 0"),
    ],
)
def test_invalid_reward_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        RewardOptions(index=INDEX, **options)
