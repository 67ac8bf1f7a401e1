"""Every planned expansion is made once, whatever fails on the way."""

import asyncio
import logging
import re
from collections import Counter

import pytest

from querylift.plugin.errors import GeneratorBusy, GeneratorError, QueryliftError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.settings import parse_settings
from querylift.plugin.warming.planning import WarmingPlan
from querylift.plugin.warming.runner import WarmingCounts, WarmingRunner, choose_concurrency
from tests.helpers.warming import FailingGenerator, MemoryStore, make_requests, run_warming


def test_as_many_requests_are_under_way_as_the_model_has_slots_and_queue_places() -> None:
    llama = {"slots": 3, "queue_size": 5}
    assert choose_concurrency(parse_settings({"llama": llama}), "llama:m.gguf") == 8
    assert choose_concurrency(parse_settings({"llama": llama}), "http://host/v1") == 16


def test_a_stored_expansion_is_not_made_again_and_every_other_one_is_made_once() -> None:
    generator, store = FailingGenerator({}), MemoryStore("b")
    counts = run_warming(generator, store, "a", "b", "c")
    assert (counts.made_count, counts.stored_count, counts.failed_count) == (2, 1, 0)
    assert sorted(generator.queries) == sorted(store.saved_queries) == ["a", "c"]


def test_a_busy_generator_loses_no_query() -> None:
    generator, store = (
        FailingGenerator({"a": [GeneratorBusy("full")] * 50, "b": [GeneratorBusy("full")]}),
        MemoryStore(),
    )
    counts = run_warming(generator, store, "a", "b", "c")
    assert (counts.made_count, counts.failed_count, sorted(store.saved_queries)) == (3, 0, ["a", "b", "c"])


def test_a_query_is_tried_again_when_its_worker_process_ended() -> None:
    worker_ended = GeneratorError("the model's worker ended before it answered")
    generator, store = FailingGenerator({"a": [worker_ended], "b": [worker_ended, worker_ended]}), MemoryStore()
    assert run_warming(generator, store, "a", "b", "c").failed_count == 0
    assert sorted(store.saved_queries) == ["a", "b", "c"]


def test_a_generator_is_not_asked_while_it_has_no_worker_process() -> None:
    class RestartingGenerator(FailingGenerator):
        """Has no worker process for the first 500 looks at its pid."""

        look_count = 0

        @property
        def pid(self) -> int | None:
            """Like LlamaGenerator.pid."""
            self.look_count += 1
            return 7 if self.look_count > 500 else None

        async def expand(self, request: ExpansionRequest) -> Expansion | None:
            assert self.look_count > 500
            return await super().expand(request)

    counts = run_warming(RestartingGenerator({}), MemoryStore(), *"abcdefgh")
    assert (counts.made_count, counts.failed_count) == (8, 0)


def test_a_query_that_fails_is_counted_with_its_reason_and_every_other_one_is_made() -> None:
    generator = FailingGenerator(
        {"b": [GeneratorError("the query is longer than 190 tokens of the model")] * 9, "d": [KeyError()] * 9}
    )
    store = MemoryStore()
    counts = run_warming(generator, store, "a", "b", "c", "d", "e", concurrency=1)
    assert (counts.made_count, counts.failed_count, sorted(store.saved_queries)) == (3, 2, ["a", "c", "e"])
    assert counts.first_failure == "the query is longer than 190 tokens of the model"
    assert Counter(generator.queries)["b"] == 3


def test_when_every_query_fails_there_are_no_retries_until_one_succeeds() -> None:
    no_answer = GeneratorError("the endpoint did not answer")
    queries = [f"q{i}" for i in range(100)]
    generator = FailingGenerator({query: [no_answer] * 3 for query in queries})
    counts = run_warming(generator, MemoryStore(), *queries, "good", concurrency=4)
    assert (counts.failed_count, counts.made_count) == (100, 1)
    assert len(generator.queries) < 130


def test_no_more_requests_are_under_way_than_the_concurrency_allows() -> None:
    generator = FailingGenerator({}, delay_s=0.01)
    run_warming(generator, MemoryStore(), *"abcdefgh", concurrency=3)
    assert generator.highest_running_count == 3


def test_a_cancelled_run_saves_the_expansion_that_was_made_and_makes_no_other() -> None:
    async def main() -> None:
        generator, store, counts = FailingGenerator({}), MemoryStore(), WarmingCounts(distinct_count=3)
        runner = WarmingRunner(generator, store, counts, concurrency=1)
        run = asyncio.ensure_future(runner.run(make_requests("a", "b", "c"), lambda: None))
        while not generator.queries:
            await asyncio.sleep(0)
        await asyncio.sleep(0.002)  # now the first expansion is being saved
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (store.saved_queries, counts.made_count, counts.remaining_count) == (["a"], 1, 2)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_store_that_is_full_ends_the_run() -> None:
    class FullStore(MemoryStore):
        """Has room for one expansion."""

        async def save(self, request: ExpansionRequest, expansion: Expansion | None) -> None:
            if self.saved_queries:
                raise QueryliftError("the store is full")
            self.saved_queries.append(request.text)

    generator, counts = FailingGenerator({}), WarmingCounts(distinct_count=9)
    runner = WarmingRunner(generator, FullStore(), counts, concurrency=2)
    with pytest.raises(QueryliftError, match="is full"):
        asyncio.run(runner.run(make_requests(*"abcdefghi"), lambda: None))
    assert (counts.made_count, len(generator.queries) < 5) == (1, True)


def test_the_summary_is_one_line() -> None:
    counts = WarmingCounts(
        query_count=9, distinct_count=8, made_count=3, stored_count=1, failed_count=1, duration_s=1.5
    )
    counts.skip_counts.update({"quoted": 1, "code": 1})
    assert counts.format_summary() == (
        "9 queries, 8 distinct: 3 made, 1 already there, 2 skipped (code 1, quoted 1), 1 failed, 1 left; 2.0 made a second"
    )


def test_no_query_is_in_a_log_line_a_summary_or_a_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    generator = FailingGenerator({"poison ivy": [GeneratorError("no")] * 9, "axon": [ValueError("axon")] * 9})
    counts = run_warming(generator, MemoryStore(), "poison ivy", "axon", "terminal")
    assert counts.failed_count == 2
    reprs = repr(make_requests("poison ivy")) + repr(WarmingPlan(make_requests("axon"), {}))
    output = caplog.text + counts.format_summary() + counts.first_failure + reprs
    assert not re.search("poison|ivy|axon|terminal", output)
