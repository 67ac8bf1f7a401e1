"""Several generators: which one answers, and that a failure of one is not the others'."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace

from querylift.plugin.broker import Question
from querylift.plugin.brokers import ExpansionBrokers, open_brokers
from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.settings import Settings
from querylift.plugin.testing import ScriptedGenerator

HEAD, MODEL = Expansion(text="prepared by hand"), Expansion(text="written by a model")


def _ask(text: str, *generators: str, deadline_s: float = math.inf) -> Question:
    return Question(ExpansionRequest(text, "docs", ("text",)), deadline_s, generators=generators)


def _run(
    check: Callable[[ExpansionBrokers], Awaitable[None]], /, **made_generators: ScriptedGenerator
) -> dict[str, ScriptedGenerator]:
    """Run `check` with brokers over generators that are called like the keyword arguments."""

    async def main() -> None:
        for name, generator in made_generators.items():
            generator.identity = name
        async with open_brokers(Settings(), made_generators, made_generators=made_generators) as brokers:
            await check(brokers)

    asyncio.run(main())
    return made_generators


def test_the_first_generator_that_has_an_expansion_answers() -> None:
    async def check(brokers: ExpansionBrokers) -> None:
        assert (await brokers.answer(_ask("popular", "head", "model"))).expansion == HEAD
        assert (await brokers.answer(_ask("rare", "head", "model"))).expansion == MODEL
        answer = await brokers.answer(_ask("unknown", "head", "model"))
        assert answer.outcome.format_header() == "skipped;nothing"

    head = ScriptedGenerator({"popular": HEAD})
    generators = _run(check, head=head, model=ScriptedGenerator({"popular": MODEL, "rare": MODEL}))
    assert generators["model"].queries == ["rare", "unknown"]
    assert all(generator.closed for generator in generators.values())


def test_a_generator_that_fails_leaves_the_query_to_the_next_and_never_disturbs_another_index() -> None:
    async def check(brokers: ExpansionBrokers) -> None:
        assert (await brokers.answer(_ask("q", "broken"))).outcome.format_header() == "error;generator"
        assert (await brokers.answer(_ask("q", "sound"))).outcome.format_header() == "expanded"
        assert (await brokers.answer(_ask("q", "broken", "sound"))).expansion == MODEL
        assert (await brokers.answer(_ask("other", "broken", "sound"))).outcome.format_header() == "error;generator"

    broken = ScriptedGenerator({"q": GeneratorError("down"), "other": GeneratorError("down")})
    _run(check, broken=broken, sound=ScriptedGenerator({"q": MODEL}))


def test_a_full_queue_of_one_generator_leaves_room_in_the_others() -> None:
    async def check(brokers: ExpansionBrokers) -> None:
        waiting = [asyncio.ensure_future(brokers.answer(_ask(f"q{number}", "slow"))) for number in range(40)]
        await asyncio.sleep(0)
        assert (await brokers.answer(_ask("one more", "slow"))).outcome.format_header() == "skipped;busy"
        assert (await brokers.answer(_ask("q", "quick"))).outcome.format_header() == "expanded"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    _run(check, slow=ScriptedGenerator({}, delay_s=60), quick=ScriptedGenerator({"q": MODEL}))


def test_all_pages_have_the_expansion_of_the_second_generator_when_the_first_came_too_late() -> None:
    async def check(brokers: ExpansionBrokers) -> None:
        first_page = replace(_ask("q", "slow", "quick"))
        clock = asyncio.get_running_loop().time
        late = await brokers.answer(replace(first_page, deadline_s=clock() + 0.02))
        assert late.outcome.format_header() == "late;budget"  # the budget is over, for the second one too
        await asyncio.sleep(0.2)
        next_page = replace(first_page, continues_hits=True)
        assert (await brokers.answer(next_page)).expansion is None

    # The slow generator is known to be slow, so the search does not wait for it, and the second one answers in time.
    async def check_known_slow(brokers: ExpansionBrokers) -> None:
        clock = asyncio.get_running_loop().time
        first_page = _ask("q", "slow", "quick", deadline_s=clock() + 0.5)
        assert (await brokers.answer(first_page)).expansion == MODEL
        await asyncio.sleep(0.1)  # by now the slow one has its answer in the cache
        next_page = replace(first_page, continues_hits=True, deadline_s=math.inf)
        assert (await brokers.answer(next_page)).expansion == MODEL
        assert (await brokers.answer(replace(first_page, deadline_s=math.inf))).expansion == HEAD

    slow = ScriptedGenerator({"q": HEAD}, delay_s=0.1)
    _run(check, slow=slow, quick=ScriptedGenerator({}))
    known_slow = ScriptedGenerator({"q": HEAD}, delay_s=0.05)
    known_slow.expected_s = 30.0  # type: ignore[attr-defined]
    _run(check_known_slow, slow=known_slow, quick=ScriptedGenerator({"q": MODEL}))
