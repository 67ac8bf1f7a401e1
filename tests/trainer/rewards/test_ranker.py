"""Rankings come from a real engine, survive its absences, and are cached under the state of the index."""

from pathlib import Path

import pytest

from querylift.index_tools.engine import Engine, SearchRefusal, make_index_action
from querylift.index_tools.searching import format_search_body
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock
from querylift.trainer.rewards.engine_retry import EngineRetry, EngineUnavailable
from querylift.trainer.rewards.ranker import Ranker
from querylift.trainer.rewards.ranking_cache import RankingCache, take_snapshot
from tests.helpers.rewards import DOCUMENTS, INDEX, QUERIES, open_relay

BODIES = [format_search_body(query, 100) for query in QUERIES.values()]


@pytest.mark.engine
@pytest.mark.parametrize("doc_id", ["d7", "new"], ids=["written again", "added"])
def test_writing_a_document_changes_the_fingerprint_of_the_index(engine: Engine, doc_id: str) -> None:
    before = take_snapshot(engine, INDEX)
    assert take_snapshot(engine, INDEX) == before
    action = make_index_action(INDEX, doc_id, {"text": "axon axon axon"})
    assert all(ok for ok, _ in engine.send_bulk_actions([action]))
    engine.call("POST", f"/{INDEX}/_refresh")
    assert take_snapshot(engine, INDEX).fingerprint != before.fingerprint


@pytest.mark.engine
@pytest.mark.parametrize("shards", [1, 3])
def test_rankings_equal_those_of_a_plain_search_on_one_shard_and_on_several(engine: Engine, shards: int) -> None:
    name = f"{INDEX}-{shards}"
    mappings = engine.call("GET", f"/{INDEX}/_mapping")[INDEX]["mappings"]
    engine.call("PUT", f"/{name}", {"settings": {"number_of_shards": shards}, "mappings": mappings})
    try:
        actions = [
            make_index_action(name, document.doc_id, {"title": document.title, "text": document.text})
            for document in DOCUMENTS
        ]
        list(engine.send_bulk_actions(actions))
        list(engine.send_bulk_actions([make_index_action(name, "d3", {"text": "axon"})]))
        engine.call("POST", f"/{name}/_refresh")
        with RankingCache() as cache:
            rankings = Ranker(engine, name, cache=cache, retry=EngineRetry(), batch_size=2).find_rankings(BODIES)
        expected = [
            [hit["_id"] for hit in answer["hits"]["hits"]]
            for answer in engine.search_many(name, BODIES)
            if not isinstance(answer, SearchRefusal)
        ]
    finally:
        engine.call("DELETE", f"/{name}")
    assert [rankings[body] for body in BODIES] == expected
    assert len(expected[0]) > 20


@pytest.mark.engine
def test_an_index_that_reads_a_file_of_words_is_searched_again_in_every_run(engine: Engine, tmp_path: Path) -> None:
    name = f"{INDEX}-words"
    # Every node has this file. Its lines are words like any others here.
    analysis = {
        "filter": {"ours": {"type": "stop", "stopwords_path": "opensearch.yml"}},
        "analyzer": {"default": {"tokenizer": "standard", "filter": ["lowercase", "ours"]}},
    }
    engine.call("PUT", f"/{name}", {"settings": {"number_of_shards": 1, "analysis": analysis}})
    try:
        counts = []
        for _ in range(2):
            with RankingCache(tmp_path / "cache.sqlite") as cache:
                ranker = Ranker(engine, name, cache=cache, retry=EngineRetry())
                ranker.find_rankings(BODIES)
                ranker.find_rankings(BODIES)
                counts.append((ranker.search_count, ranker.cache_hits))
    finally:
        engine.call("DELETE", f"/{name}")
    assert counts == [(len(BODIES), len(BODIES))] * 2


@pytest.mark.engine
def test_the_ranker_waits_for_an_engine_that_goes_away_and_then_continues(engine: Engine) -> None:
    delays_s: list[float] = []
    lines: list[str] = []
    with (
        open_relay(engine.url) as relay,
        Engine(parse_settings({"engine": relay.url})) as relayed_engine,
        RankingCache() as cache,
    ):

        def sleep(seconds: float) -> None:
            delays_s.append(seconds)
            if len(delays_s) == 3:
                relay.cut_after_bytes = None

        retry = EngineRetry(60, sleep=sleep, clock=ManualClock(), say=lines.append)
        ranker = Ranker(relayed_engine, INDEX, cache=cache, retry=retry)
        relay.cut_after_bytes = 0
        rankings = ranker.find_rankings(BODIES)
    assert delays_s == [0.5, 1.0, 2.0]
    assert [line.split("; ")[-1] for line in lines] == [
        "next try in 0.5 s",
        "next try in 1 s",
        "next try in 2 s",
        "the engine is back",
    ]
    assert rankings.keys() == set(BODIES)
    assert ranker.search_count == len(BODIES)


@pytest.mark.engine
def test_the_ranker_gives_up_after_the_patience_and_finished_searches_stay_cached(engine: Engine) -> None:
    clock = ManualClock()
    with (
        open_relay(engine.url) as relay,
        Engine(parse_settings({"engine": relay.url})) as relayed_engine,
        RankingCache() as cache,
    ):
        retry = EngineRetry(10, sleep=clock.advance, clock=clock)
        ranker = Ranker(relayed_engine, INDEX, cache=cache, retry=retry)
        ranker.find_rankings(BODIES[:2])
        relay.cut_after_bytes = 0
        sentence = "gave up after 10 s; run the same command again, finished searches are kept"
        with pytest.raises(EngineError, match=sentence):
            ranker.find_rankings(BODIES)
        assert clock() == 1000 + 0.5 + 1 + 2 + 4
        second_ranker = Ranker(engine, INDEX, cache=cache, retry=EngineRetry(0))
        second_ranker.find_rankings(BODIES)
    assert (second_ranker.cache_hits, second_ranker.search_count) == (2, 3)


@pytest.mark.engine
def test_the_ranker_waits_for_an_index_whose_shards_are_not_ready_yet(engine: Engine) -> None:
    name = f"{INDEX}-starting"
    allocation = "index.routing.allocation.require._name"
    settings = {"settings": {"number_of_shards": 2, allocation: "no such node"}}
    engine.call("PUT", f"/{name}", settings, params={"wait_for_active_shards": 0})

    def start_shards(seconds: float) -> None:
        engine.call("PUT", f"/{name}/_settings", {allocation: None})
        engine.call("GET", f"/_cluster/health/{name}", params={"wait_for_status": "yellow"})

    try:
        with pytest.raises(EngineUnavailable):
            take_snapshot(engine, name)
        with RankingCache() as cache:
            retry = EngineRetry(60, sleep=start_shards, clock=ManualClock())
            ranker = Ranker(engine, name, cache=cache, retry=retry)
            body = format_search_body("axon", 10)
            assert ranker.find_rankings([body]) == {body: []}
    finally:
        engine.call("DELETE", f"/{name}")


@pytest.mark.engine
def test_a_body_that_spoils_its_whole_batch_is_found_and_the_others_are_ranked(engine: Engine) -> None:
    with RankingCache() as cache:
        ranker = Ranker(engine, INDEX, cache=cache, retry=EngineRetry(0))
        rankings = ranker.find_rankings([*BODIES[:2], b'["no search"]', *BODIES[2:]])
    assert list(rankings) == BODIES
    assert list(ranker.rejections) == [b'["no search"]']


def test_a_file_that_is_no_cache_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and long enough to be read as one\n" * 9, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"notes\.txt is not a cache of rankings"):
        RankingCache(path)
    assert path.read_text(encoding="utf-8").startswith("not a database")
