"""While a student trains, each of its texts gets a reward from a real engine, and what that took is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.settings import parse_settings
from querylift.trainer.rewards.engine_retry import EngineRetry
from querylift.trainer.rewards.engine_reward import EngineReward
from querylift.trainer.rewards.ranking_cache import RankingCache
from tests.helpers.rewards import CANDIDATES, INDEX, LABELS, OPTIONS, make_candidate, score_on_engine

pytestmark = pytest.mark.engine


@pytest.fixture
def reward(engine: Engine) -> Iterator[EngineReward]:
    settings = parse_settings({"engine": engine.url})
    with RankingCache() as cache:
        yield EngineReward(
            engine=engine, settings=settings, labels=LABELS, options=OPTIONS, cache=cache, retry=EngineRetry()
        )


def test_rewards_come_in_the_order_of_the_texts_and_are_those_of_a_scored_file(
    engine: Engine, reward: EngineReward
) -> None:
    texts = [*reversed(CANDIDATES), make_candidate("q1", "axon nerve fibre", sample=7)]
    expected = {scored.candidate.request_key: scored.reward.value for scored in score_on_engine(engine, texts).scored}
    rewards = reward.compute_rewards(texts)
    assert rewards == [expected[candidate.request_key] for candidate in texts]
    assert len(set(rewards)) > 2
    assert reward.counts["samples"] == 6 and reward.counts["searches"] == 5 + 5
    reward.compute_rewards(texts)
    assert (reward.counts["samples"], reward.counts["searches"], reward.counts["cached_searches"]) == (12, 10, 10)


def test_a_text_without_words_and_a_query_without_labels_are_worth_nothing(reward: EngineReward) -> None:
    texts = [make_candidate("q1", "... !"), replace(CANDIDATES[0], query_id="q9"), replace(CANDIDATES[1], ended=False)]
    assert reward.compute_rewards(texts)[:2] == [0.0, 0.0]
    assert (reward.counts["without_words"], reward.counts["without_end"], reward.counts["rejected"]) == (1, 1, 0)


def test_a_text_whose_search_is_rejected_is_worth_nothing_and_is_counted(reward: EngineReward) -> None:
    def format_invalid_body(query: str, size: int) -> bytes:
        return b'{"query":{"match":{"text":{"query":"x","operator":"neither"}}}}'

    reward.options = replace(OPTIONS, format_body=format_invalid_body)
    assert reward.compute_rewards(CANDIDATES) == [0.0] * 5
    assert reward.counts["rejected"] == 5 and reward.counts["samples"] == 5


def test_an_index_that_changes_between_two_batches_ends_the_training(engine: Engine, reward: EngineReward) -> None:
    reward.compute_rewards(CANDIDATES)
    engine.call("POST", f"/{INDEX}/_doc", {"text": "axon"}, params={"refresh": "true"})
    with pytest.raises(EngineError, match="'rewards-test' changed while it was searched for rewards; run the same"):
        reward.compute_rewards(CANDIDATES)


def test_an_index_that_is_not_there_is_named(reward: EngineReward) -> None:
    reward.check_index()
    reward.options = replace(OPTIONS, index="absent")
    with pytest.raises(SettingsError, match="has no index 'absent'; build it with `querylift index`, or name another"):
        reward.check_index()
