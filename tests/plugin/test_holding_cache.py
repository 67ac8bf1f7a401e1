"""Cache entries are written once the engine has accepted a search that they belong to."""

import asyncio
from collections.abc import Awaitable, Callable

from querylift.plugin.broker import ExpansionBroker, Question
from querylift.plugin.cache import MemoryCache
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.holding_cache import ACCEPTANCE_S, MAX_HELD_ENTRIES, HoldingCache
from querylift.plugin.outcome import Outcome
from querylift.plugin.testing import ManualClock, ScriptedGenerator

PAGE = Expansion(text="urlopen fetches")
REQUEST = ExpansionRequest("download a page", "docs")
Check = Callable[[ExpansionBroker, MemoryCache, ManualClock], Awaitable[None]]


def _run_with_broker(check: Check, *, delay_s: float = 0) -> None:
    async def main() -> None:
        clock = ManualClock()
        shared_cache = MemoryCache(100_000, clock)
        generator = ScriptedGenerator({"download a page": PAGE}, delay_s=delay_s)
        broker = ExpansionBroker(generator, HoldingCache(shared_cache, clock), clock=clock)
        await check(broker, shared_cache, clock)
        await broker.close()

    asyncio.run(main())


async def _finish_background_work() -> None:
    await asyncio.sleep(0.01)


def test_an_expansion_is_written_after_the_engine_accepted_its_search() -> None:
    async def check(broker: ExpansionBroker, shared_cache: MemoryCache, clock: ManualClock) -> None:
        answer = await broker.answer(Question(REQUEST, 1005))
        await _finish_background_work()
        assert await shared_cache.get(answer.cache_keys[0]) is None
        broker.accept(answer.cache_keys)
        await _finish_background_work()
        assert await shared_cache.get(answer.cache_keys[0]) == '{"text":"urlopen fetches"}'

    _run_with_broker(check)


def test_an_expansion_that_comes_after_the_answer_is_written_at_once() -> None:
    async def check(broker: ExpansionBroker, shared_cache: MemoryCache, clock: ManualClock) -> None:
        answer = await broker.answer(Question(REQUEST, 1000.01))
        assert answer.outcome == Outcome("late", "budget")
        broker.accept(answer.cache_keys)
        await asyncio.sleep(0.1)
        assert await shared_cache.get(answer.cache_keys[0]) == '{"text":"urlopen fetches"}'
        assert await shared_cache.get("pin:" + answer.cache_keys[0]) == "late"

    _run_with_broker(check, delay_s=0.05)


def test_an_acceptance_is_forgotten_after_a_minute() -> None:
    async def main() -> None:
        clock = ManualClock()
        shared_cache = MemoryCache(10, clock)
        cache = HoldingCache(shared_cache, clock)
        await cache.accept("key")
        clock.advance(ACCEPTANCE_S)
        await cache.set("key", "1", ttl_s=600)
        assert await shared_cache.get("key") is None

    asyncio.run(main())


def test_an_entry_that_waits_is_found_in_this_process() -> None:
    async def check(broker: ExpansionBroker, shared_cache: MemoryCache, clock: ManualClock) -> None:
        assert (await broker.answer(Question(REQUEST, 1005))).outcome == Outcome("expanded")
        await _finish_background_work()
        assert (await broker.answer(Question(REQUEST, 1005))).outcome == Outcome("cached")

    _run_with_broker(check)


def test_searches_that_were_never_accepted_push_nothing_out_of_the_cache() -> None:
    async def main() -> None:
        clock = ManualClock()
        cache = HoldingCache(MemoryCache(10, clock), clock)
        await cache.accept("useful")
        await cache.set("useful", "1", ttl_s=600)
        for i in range(2 * MAX_HELD_ENTRIES):
            await cache.set(f"flood {i}", "1", ttl_s=600)
        assert await cache.get("useful") == "1"
        assert await cache.get("flood 0") is None
        assert await cache.get_two("useful", f"flood {2 * MAX_HELD_ENTRIES - 1}") == ("1", "1")
        await cache.close()

    asyncio.run(main())
