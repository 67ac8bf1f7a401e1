"""One budget per question; a late answer is kept for the next; a query's pages agree."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from querylift.plugin.broker import Answer, Expander, Question
from querylift.plugin.cache import FileCache, MemoryCache, decode, encode, key_of
from querylift.plugin.errors import Busy, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import Ask
from querylift.plugin.outcome import Outcome
from querylift.plugin.testing import ManualClock, ScriptedGenerator

PAGE = Expansion(text="urlopen fetches")


def _with(
    generator: ScriptedGenerator, body: Callable[[Expander, ManualClock], Awaitable[None]], **options: float
) -> None:
    async def main() -> None:
        clock = ManualClock()
        expander = Expander(generator, MemoryCache(100, clock), clock=clock, **options)  # type: ignore[arg-type]
        try:
            await body(expander, clock)
        finally:
            await expander.close()
        assert generator.closed

    asyncio.run(main())


def _ask(text: str = "download a page", *, budget_s: float = 5, now_s: float = 1000) -> Question:
    return Question(Ask(text, "docs", ("text",)), now_s + budget_s)


def test_the_first_ask_is_expanded_and_the_second_is_cached() -> None:
    generator = ScriptedGenerator({"download a page": PAGE})

    async def body(expander: Expander, clock: ManualClock) -> None:
        assert await expander.answer(_ask()) == Answer(PAGE, Outcome("expanded"))
        assert await expander.answer(_ask()) == Answer(PAGE, Outcome("cached"))
        assert generator.asked == ["download a page"]

    _with(generator, body)


def test_a_query_with_nothing_to_add_is_not_asked_again() -> None:
    generator = ScriptedGenerator({})

    async def body(expander: Expander, clock: ManualClock) -> None:
        for _ in range(2):
            assert (await expander.answer(_ask())).outcome == Outcome("skipped", "nothing")
        assert len(generator.asked) == 1

    _with(generator, body)


def test_ten_concurrent_asks_for_one_query_make_one_generation() -> None:
    generator = ScriptedGenerator({"download a page": PAGE}, delay_s=0.05)

    async def body(expander: Expander, clock: ManualClock) -> None:
        answers = await asyncio.gather(*(expander.answer(_ask()) for _ in range(10)))
        assert [a.expansion for a in answers] == [PAGE] * 10
        assert len(generator.asked) == 1
        assert expander.pending == 0

    _with(generator, body)


def test_a_late_answer_fills_the_cache_but_pages_agree_until_the_pin_is_over() -> None:
    generator = ScriptedGenerator({"download a page": PAGE}, delay_s=0.05)

    async def body(expander: Expander, clock: ManualClock) -> None:
        assert (await expander.answer(_ask(budget_s=0.01))).outcome == Outcome("late", "budget")
        await asyncio.sleep(0.1)
        assert (await expander.answer(_ask())).outcome == Outcome("late", "pinned")
        clock.advance(121)
        assert (await expander.answer(_ask(now_s=1121))).outcome == Outcome("cached")
        assert len(generator.asked) == 1

    _with(generator, body, pin_s=120)


def test_who_asks_a_moment_later_is_held_to_the_order_of_who_was_too_early() -> None:
    async def body(expander: Expander, clock: ManualClock) -> None:
        early = asyncio.ensure_future(expander.answer(_ask(budget_s=0.03)))
        await asyncio.sleep(0.01)
        assert (await expander.answer(_ask(budget_s=5))).outcome == Outcome("late", "pinned")
        assert (await early).outcome == Outcome("late", "budget")

    _with(ScriptedGenerator({"download a page": PAGE}, delay_s=0.1), body)


def test_a_generator_that_is_full_is_busy_and_no_fault() -> None:
    async def body(expander: Expander, clock: ManualClock) -> None:
        assert (await expander.answer(_ask())).outcome == Outcome("skipped", "busy")
        await asyncio.sleep(0.01)
        assert (await expander.answer(_ask())).outcome == Outcome("late", "pinned")

    _with(ScriptedGenerator({"download a page": Busy("full")}), body)


def test_a_cache_that_fails_in_any_way_costs_no_search() -> None:
    class Broken(MemoryCache):
        """Fails as no cache should."""

        async def get_two(self, first: str, second: str) -> tuple[str | None, str | None]:
            raise RuntimeError("broken")

    async def main() -> None:
        clock = ManualClock()
        expander = Expander(ScriptedGenerator({}), Broken(9, clock), clock=clock)
        assert (await expander.answer(_ask())).outcome == Outcome("error", "internal")
        await expander.close()

    asyncio.run(main())


def test_without_a_pin_a_late_answer_serves_the_next_search() -> None:
    async def body(expander: Expander, clock: ManualClock) -> None:
        await expander.answer(_ask(budget_s=0.01))
        await asyncio.sleep(0.1)
        assert (await expander.answer(_ask())).outcome == Outcome("cached")

    _with(ScriptedGenerator({"download a page": PAGE}, delay_s=0.05), body, pin_s=0)


@pytest.mark.parametrize("error", [GeneratorError("worker died"), RuntimeError("a bug"), KeyError("x")])
def test_a_generator_that_fails_is_an_outcome_and_never_an_exception(error: Exception) -> None:
    async def body(expander: Expander, clock: ManualClock) -> None:
        assert (await expander.answer(_ask())).outcome == Outcome("error", "generator")
        assert expander.pending == 0

    _with(ScriptedGenerator({"download a page": error}), body)


def test_no_budget_left_asks_nobody() -> None:
    generator = ScriptedGenerator({"download a page": PAGE})

    async def body(expander: Expander, clock: ManualClock) -> None:
        assert (await expander.answer(_ask(budget_s=0))).outcome == Outcome("late", "budget")
        assert generator.asked == []

    _with(generator, body)


def test_past_max_pending_a_search_is_not_kept_waiting() -> None:
    async def body(expander: Expander, clock: ManualClock) -> None:
        first = asyncio.ensure_future(expander.answer(_ask("one")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (await expander.answer(_ask("two"))).outcome == Outcome("skipped", "busy")
        await first

    _with(ScriptedGenerator({}, delay_s=0.05), body, max_pending=1)


def test_a_damaged_cache_entry_is_made_again() -> None:
    generator = ScriptedGenerator({"download a page": PAGE})

    async def main() -> None:
        clock = ManualClock()
        cache = MemoryCache(10, clock)
        for damaged in ("[]", "null", "{", "[" * 100_000, '{"text": 5}', '{"terms": {}, "field": "f"}'):
            await cache.set(key_of(generator, _ask().ask), damaged, ttl_s=60)
            expander = Expander(generator, cache, clock=clock)
            assert (await expander.answer(_ask())).outcome == Outcome("expanded")

    asyncio.run(main())


def test_a_cached_expansion_comes_back_as_it_was() -> None:
    terms = Expansion.from_json({"field": "body", "terms": {"neuron": 2.0, "axon": 1.0}})
    for expansion in (PAGE, terms, None):
        assert decode(encode(expansion)) == expansion


def test_the_memory_cache_forgets_by_age_and_by_size() -> None:
    async def main() -> None:
        clock = ManualClock()
        cache = MemoryCache(2, clock)
        await cache.set("a", "1", ttl_s=10)
        clock.advance(11)
        assert await cache.get("a") is None
        for key in "bcd":
            await cache.set(key, key, ttl_s=10)
        assert [await cache.get(key) for key in "bcd"] == [None, "c", "d"]

    asyncio.run(main())


def test_a_file_cache_outlives_its_process_and_keeps_ages(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        first = FileCache(tmp_path / "kept.db", 10, clock, wall_clock=clock)
        await first.set("short", "1", ttl_s=10)
        await first.set("long", "2", ttl_s=100)
        await first.close()
        clock.advance(50)
        second = FileCache(tmp_path / "kept.db", 10, clock, wall_clock=clock)
        assert [await second.get(key) for key in ("short", "long", "never")] == [None, "2", None]
        clock.advance(51)
        assert await second.get("long") is None
        await second.close()

    asyncio.run(main())


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look into " * 50)
    with pytest.raises(SettingsError, match=r"cache\.file is .*notes\.txt: it cannot be used"):
        FileCache(tmp_path / "notes.txt", 10, ManualClock())


def test_a_key_depends_on_the_index_only_where_the_generator_reads_it() -> None:
    model, feedback = ScriptedGenerator({}), ScriptedGenerator({})
    feedback.reads_index = True
    a, b = Ask("words", "docs", ("text",)), Ask(" words\t", "logs", ("text",))
    assert key_of(model, a) == key_of(model, b)
    assert key_of(feedback, a) != key_of(feedback, b)
