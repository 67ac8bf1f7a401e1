"""A question is answered within its budget, a late expansion is cached, and the pages of a query agree."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from querylift.plugin.broker import Answer, ExpansionBroker, Question
from querylift.plugin.cache import FileCache, MemoryCache, cache_key, decode_expansion, encode_expansion
from querylift.plugin.errors import GeneratorBusy, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generation_times import GenerationTimes
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.outcome import Outcome
from querylift.plugin.testing import ManualClock, ScriptedGenerator

PAGE = Expansion(text="urlopen fetches")


def _run_with_broker(
    generator: ScriptedGenerator, check: Callable[[ExpansionBroker, ManualClock], Awaitable[None]], **options: float
) -> None:
    async def main() -> None:
        clock = ManualClock()
        broker = ExpansionBroker(generator, MemoryCache(100, clock), clock=clock, **options)  # type: ignore[arg-type]
        try:
            await check(broker, clock)
        finally:
            await broker.close()
        assert generator.closed

    asyncio.run(main())


def _make_question(
    query: str = "download a page", *, budget_s: float = 5, now_s: float = 1000, page: int = 1
) -> Question:
    return Question(ExpansionRequest(query, "docs", ("text",)), now_s + budget_s, continues_hits=page > 1)


def test_the_first_question_is_expanded_and_the_second_is_cached() -> None:
    generator = ScriptedGenerator({"download a page": PAGE})

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert await broker.answer(_make_question()) == Answer(PAGE, Outcome("expanded"))
        assert await broker.answer(_make_question()) == Answer(PAGE, Outcome("cached"))
        assert generator.queries == ["download a page"]

    _run_with_broker(generator, check)


def test_words_of_the_index_are_not_added_where_the_answer_would_show_them() -> None:
    generator = ScriptedGenerator({"download a page": PAGE})
    generator.reads_index = True
    question = Question(ExpansionRequest("download a page", "docs"), 1005, shows_words=True)

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert await broker.answer(_make_question()) == Answer(PAGE, Outcome("expanded"))
        assert await broker.answer(question) == Answer(None, Outcome("skipped", "explain"))

    _run_with_broker(generator, check)


def test_words_of_a_model_may_be_shown() -> None:
    question = Question(ExpansionRequest("download a page", "docs"), 1005, shows_words=True)

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert await broker.answer(question) == Answer(PAGE, Outcome("expanded"))

    _run_with_broker(ScriptedGenerator({"download a page": PAGE}), check)


@pytest.mark.parametrize(
    ("index", "outcome"),
    [
        ("docs", Outcome("expanded")),
        ("docs-2026", Outcome("expanded")),
        ("docs*", Outcome("skipped", "pattern")),
        ("docs,logs", Outcome("skipped", "pattern")),
        ("_all", Outcome("skipped", "pattern")),
    ],
)
def test_a_generator_with_an_account_reads_only_an_index_that_the_client_names(index: str, outcome: Outcome) -> None:
    generator = ScriptedGenerator({"download a page": PAGE})
    generator.uses_account = True

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        answer = await broker.answer(Question(ExpansionRequest("download a page", index), 1005))
        assert answer.outcome == outcome

    _run_with_broker(generator, check)


def test_a_query_with_nothing_to_add_is_not_asked_again() -> None:
    generator = ScriptedGenerator({})

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        for _ in range(2):
            assert (await broker.answer(_make_question())).outcome == Outcome("skipped", "nothing")
        assert len(generator.queries) == 1

    _run_with_broker(generator, check)


def test_ten_concurrent_questions_for_one_query_start_one_generation() -> None:
    generator = ScriptedGenerator({"download a page": PAGE}, delay_s=0.05)

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        answers = await asyncio.gather(*(broker.answer(_make_question()) for _ in range(10)))
        assert [answer.expansion for answer in answers] == [PAGE] * 10
        assert len(generator.queries) == 1
        assert broker.pending_count == 0

    _run_with_broker(generator, check)


def test_a_late_expansion_serves_the_next_first_page_and_no_later_page_until_the_pin_expires() -> None:
    generator = ScriptedGenerator({"download a page": PAGE}, delay_s=0.05)

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert (await broker.answer(_make_question(budget_s=0.01))).outcome == Outcome("late", "budget")
        await asyncio.sleep(0.1)
        assert (await broker.answer(_make_question(page=2))).outcome == Outcome("late", "pinned")
        clock.advance(121)
        assert (await broker.answer(_make_question(page=2, now_s=1121))).outcome == Outcome("cached")
        assert len(generator.queries) == 1

    _run_with_broker(generator, check, pin_s=120)


def test_later_pages_agree_with_the_latest_first_page() -> None:
    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert (await broker.answer(_make_question(budget_s=0.01))).outcome == Outcome("late", "budget")
        await asyncio.sleep(0.1)
        assert (await broker.answer(_make_question(page=2))).outcome == Outcome("late", "pinned")
        assert (await broker.answer(_make_question())).outcome == Outcome("cached")
        await asyncio.sleep(0.01)
        assert (await broker.answer(_make_question(page=2))).outcome == Outcome("cached")

    _run_with_broker(ScriptedGenerator({"download a page": PAGE}, delay_s=0.05), check)


def test_a_later_page_agrees_with_a_first_page_that_gave_up_while_the_expansion_is_made() -> None:
    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert (await broker.answer(_make_question(budget_s=0.01))).outcome == Outcome("late", "budget")
        assert (await broker.answer(_make_question(page=2))).outcome == Outcome("late", "pinned")
        assert (await broker.answer(_make_question())).outcome == Outcome("expanded")

    _run_with_broker(ScriptedGenerator({"download a page": PAGE}, delay_s=0.1), check)


def test_no_search_waits_for_a_generator_that_takes_longer_than_the_budget() -> None:
    """A model takes a second, the budget is 0.3 s. The first search goes on at once, and later ones get the words."""

    class SlowGenerator(ScriptedGenerator):
        expected_s = 1.0

        async def expand(self, request: ExpansionRequest) -> Expansion | None:
            clock.advance(1.2)
            return await super().expand(request)

    clock = ManualClock()
    generator = SlowGenerator({"download a page": PAGE, "another": PAGE})

    async def main() -> None:
        broker = ExpansionBroker(generator, MemoryCache(100, clock), clock=clock)
        for query in ("download a page", "another"):
            question = _make_question(query, budget_s=0.3, now_s=clock())
            assert (await broker.answer(question)).outcome == Outcome("late", "warming")
            await asyncio.sleep(0.01)
            question = _make_question(query, budget_s=0.3, now_s=clock())
            assert (await broker.answer(question)).outcome == Outcome("cached")
        with_more_time = _make_question("a third", budget_s=3, now_s=clock())
        assert (await broker.answer(with_more_time)).outcome == Outcome("skipped", "nothing")
        await broker.close()

    asyncio.run(main())
    assert generator.queries == ["download a page", "another", "a third"]


def test_searches_wait_again_for_a_generator_that_has_become_fast() -> None:
    class ExpectedSlowGenerator(ScriptedGenerator):
        expected_s = 1.0

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert (await broker.answer(_make_question("one", budget_s=0.3))).outcome == Outcome("late", "warming")
        await asyncio.sleep(0.01)
        assert (await broker.answer(_make_question(budget_s=0.3))).outcome == Outcome("expanded")

    _run_with_broker(ExpectedSlowGenerator({"download a page": PAGE, "one": PAGE}), check)


def test_one_slow_expansion_does_not_stop_searches_from_waiting() -> None:
    times = GenerationTimes(0.0)
    for duration_s in (2.0, 0.003, 0.003, 2.0, 0.004):
        times.add_duration(duration_s)
        assert times.typical_s <= 0.003
    for _ in range(5):
        times.add_duration(2.0)
    assert times.typical_s == 2.0


def test_a_slow_generator_that_fails_is_logged_and_not_asked_again_at_once(caplog: pytest.LogCaptureFixture) -> None:
    class HangingGenerator(ScriptedGenerator):
        expected_s = 10.0

    generator = HangingGenerator({"download a page": GeneratorError("the endpoint did not answer")})

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert (await broker.answer(_make_question())).outcome == Outcome("late", "warming")
        await asyncio.sleep(0.01)
        assert (await broker.answer(_make_question())).outcome == Outcome("late", "pinned")
        assert len(generator.queries) == 1

    _run_with_broker(generator, check)
    assert caplog.messages == ["no expansion: the endpoint did not answer"]


def test_a_busy_generator_is_an_outcome_and_pins_nothing() -> None:
    answers: dict[str, Expansion | Exception] = {"download a page": GeneratorBusy("full")}
    generator = ScriptedGenerator(answers)

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert (await broker.answer(_make_question())).outcome == Outcome("skipped", "busy")
        await asyncio.sleep(0.01)
        generator.answers["download a page"] = PAGE
        assert (await broker.answer(_make_question(page=2))).outcome == Outcome("expanded")

    _run_with_broker(generator, check)


def test_one_client_cannot_take_all_generations() -> None:
    def ask(query: str, client: str) -> Question:
        return Question(ExpansionRequest(query, "docs"), 1005, client=client)

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        flood = [broker.answer(ask(f"query {i}", "attacker")) for i in range(6)]
        flood_answers = asyncio.gather(*flood)
        await asyncio.sleep(0.01)
        assert (await broker.answer(ask("download a page", "bystander"))).outcome == Outcome("expanded")
        outcomes = [answer.outcome for answer in await flood_answers]
        assert outcomes == [Outcome("skipped", "nothing")] * 4 + [Outcome("skipped", "busy")] * 2
        assert (await broker.answer(ask("query 9", "attacker"))).outcome == Outcome("skipped", "nothing")

    generator = ScriptedGenerator({"download a page": PAGE}, delay_s=0.05)
    _run_with_broker(generator, check, max_pending=8, max_pending_per_client=4)


def test_texts_that_a_client_chooses_cannot_share_the_cache_key_of_others() -> None:
    generator = ScriptedGenerator({})
    generator.reads_index = True
    fields = [("title", "body"), ("title\x00body",), ("title", "", "body")]
    requests = [ExpansionRequest("words", index, names) for names in fields for index in ("docs", "docs\x00title")]
    assert len({cache_key(generator, request) for request in requests}) == len(requests)


def test_a_cache_that_fails_never_fails_a_search() -> None:
    class BrokenCache(MemoryCache):
        """Raises an error that no cache should raise."""

        async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
            raise RuntimeError("broken")

    async def main() -> None:
        clock = ManualClock()
        broker = ExpansionBroker(ScriptedGenerator({}), BrokenCache(9, clock), clock=clock)
        assert (await broker.answer(_make_question())).outcome == Outcome("error", "internal")
        await broker.close()

    asyncio.run(main())


def test_without_pins_a_late_expansion_serves_the_next_search() -> None:
    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        await broker.answer(_make_question(budget_s=0.01))
        await asyncio.sleep(0.1)
        assert (await broker.answer(_make_question())).outcome == Outcome("cached")

    _run_with_broker(ScriptedGenerator({"download a page": PAGE}, delay_s=0.05), check, pin_s=0)


@pytest.mark.parametrize("error", [GeneratorError("worker died"), RuntimeError("a bug"), KeyError("x")])
def test_a_generator_that_fails_is_an_outcome_and_never_an_exception(error: Exception) -> None:
    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert (await broker.answer(_make_question())).outcome == Outcome("error", "generator")
        assert broker.pending_count == 0

    _run_with_broker(ScriptedGenerator({"download a page": error}), check)


def test_without_a_budget_the_generator_is_not_asked() -> None:
    generator = ScriptedGenerator({"download a page": PAGE})

    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        assert (await broker.answer(_make_question(budget_s=0))).outcome == Outcome("late", "budget")
        assert generator.queries == []

    _run_with_broker(generator, check)


def test_past_max_pending_a_search_does_not_wait() -> None:
    async def check(broker: ExpansionBroker, clock: ManualClock) -> None:
        first_answer = asyncio.ensure_future(broker.answer(_make_question("one")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (await broker.answer(_make_question("two"))).outcome == Outcome("skipped", "busy")
        await first_answer

    _run_with_broker(ScriptedGenerator({}, delay_s=0.05), check, max_pending=1)


def test_a_damaged_cache_entry_is_made_again() -> None:
    generator = ScriptedGenerator({"download a page": PAGE})

    async def main() -> None:
        clock = ManualClock()
        cache = MemoryCache(10, clock)
        for damaged_value in ("[]", "null", "{", "[" * 100_000, '{"text": 5}', '{"terms": {}, "field": "f"}'):
            await cache.set(cache_key(generator, _make_question().request), damaged_value, ttl_s=60)
            broker = ExpansionBroker(generator, cache, clock=clock)
            assert (await broker.answer(_make_question())).outcome == Outcome("expanded")

    asyncio.run(main())


def test_a_cached_expansion_is_read_back_unchanged() -> None:
    terms = Expansion.from_json({"field": "body", "terms": {"neuron": 2.0, "axon": 1.0}})
    for expansion in (PAGE, terms, None):
        assert decode_expansion(encode_expansion(expansion)) == expansion


def test_the_memory_cache_drops_old_entries_and_surplus_ones() -> None:
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


def test_a_file_cache_outlives_its_process_and_entries_still_expire(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        cache = FileCache(tmp_path / "kept.db", 10, clock, wall_clock=clock)
        await cache.set("short", "1", ttl_s=10)
        await cache.set("long", "2", ttl_s=100)
        await cache.close()
        clock.advance(50)
        reopened_cache = FileCache(tmp_path / "kept.db", 10, clock, wall_clock=clock)
        assert [await reopened_cache.get(key) for key in ("short", "long", "never")] == [None, "2", None]
        clock.advance(51)
        assert await reopened_cache.get("long") is None
        await reopened_cache.close()

    asyncio.run(main())


def test_a_cache_file_is_for_its_owner_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Expansions tell what was searched."""

    async def write_entry() -> None:
        cache = FileCache(tmp_path / "kept.db", 10, ManualClock())
        await cache.set("a", "1", ttl_s=10)
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
            ("kept.db", "kept.db-pins", "kept.db-shm", "kept.db-wal"), 0o600
        )
        await cache.close()

    asyncio.run(write_entry())
    assert caplog.messages == []
    (tmp_path / "kept.db").chmod(0o644)
    asyncio.run(FileCache(tmp_path / "kept.db", 10, ManualClock()).close())
    assert caplog.messages == [
        f"the cache file {tmp_path / 'kept.db'} can be opened by other users; run chmod 600 on it"
    ]


def test_a_file_that_is_not_a_cache_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look into " * 50)
    with pytest.raises(SettingsError, match=r"cache\.file is .*notes\.txt: it cannot be used"):
        FileCache(tmp_path / "notes.txt", 10, ManualClock())


def test_a_cache_key_depends_on_the_index_only_when_the_generator_reads_it() -> None:
    model, feedback = ScriptedGenerator({}), ScriptedGenerator({})
    feedback.reads_index = True
    a, b = ExpansionRequest("words", "docs", ("text",)), ExpansionRequest(" words\t", "logs", ("text",))
    assert cache_key(model, a) == cache_key(model, b)
    assert cache_key(feedback, a) != cache_key(feedback, b)
