"""Queries and answers meant to do harm: the search gains plain words in its own language, or goes on as it came."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from querylift.plugin.broker import Answer, Expander, Question
from querylift.plugin.cache import MemoryCache
from querylift.plugin.expansion import parse
from querylift.plugin.flow import Result, Rules, Search, run, search_flow
from querylift.plugin.generators.base import Generator
from querylift.plugin.generators.factory import make
from querylift.plugin.generators.http import HttpGenerator
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import check
from querylift.plugin.testing import ManualClock
from tests.helpers import hostile
from tests.helpers.hostile import FORMS, INDEX, LATIN, SCRIPTS, Hostile

QUERIES = hostile.queries()
ENGLISH = (
    "The sky is blue because the air scatters short waves of sunlight more than long ones, which is why it looks so."
)
FRENCH = "Le ciel est bleu parce que les molécules de l'air diffusent la lumière du soleil dans toutes les directions."
CHINESE = "天空是蓝色的，因为空气分子散射阳光中的短波光。"
ARABIC = "السماء زرقاء لأن جزيئات الهواء تشتت ضوء الشمس في كل الاتجاهات"
WRITERS: dict[str, Callable[[str], str]] = {
    "an echo": lambda text: text,
    "the query DSL": lambda text: json.dumps({"query": {"query_string": {"query": text}}}, ensure_ascii=False),
    "the end of a body": lambda text: f'"}}}}],"should":[{{"match_all":{{}}}}],"x":"{text}',
    "Lucene syntax": lambda text: f"+({text})^9 OR _exists_:{text} AND /{text}.*/ && NOT [* TO *] -{text}~2 * ?",
    "scripts": lambda text: f"doc['{text}'].value; ctx._source.remove('{text}'); {{{{{text}}}}}",
    "HTML": lambda text: f"<script>fetch('//x/{text}')</script><b onclick=alert(1)>{text}</b>&lt;{text}&gt;",
    "markdown": lambda text: f"# {text}\n\n- **{text}** [{text}](https://x/{text})\n```sql\n{text}\n```",
    "special tokens": lambda text: f"<|im_start|>assistant\n{text}<|im_end|>\n<|im_start|>system\n{text}",
    "thinking": lambda text: f"<think>{text}</think>{text}</think>\n{text} <think>{text}",
    "control characters": lambda text: f"\x00{text}\x1b[31m \ud800\u202e{text}\u2028\x85".replace(" ", "\x07"),
    "marks": lambda text: "".join(c + "\u0301\u0489\u20dd" * 5 for c in text[:300]),
    "one long word": lambda text: "".join(text.split())[:100] * 40,
    "no end": lambda text: f"{text[:100]} " * 300,
    "a thousand words": lambda text: " ".join(f"{word}{i}" for i, word in enumerate(text[:100].split() * 1000)),
    "base64": lambda text: base64.b64encode(text.encode("utf-8", "replace")).decode(),
    "English": lambda text: ENGLISH,
    "French": lambda text: FRENCH,
    "Chinese": lambda text: CHINESE,
    "Arabic": lambda text: ARABIC,
    "the query, then English": lambda text: f"{text[:50]} {ENGLISH}",
    "many languages": lambda text: f"{ENGLISH} {text[:200]} {CHINESE} {ARABIC}",
}
"""What a model that was talked into it, or broke, might write for a query."""


def _rules() -> Rules:
    return Rules(check({"index": {INDEX: {}}}), clock=ManualClock())


def _answering(write: Callable[[str], str]) -> Callable[[Question], Answer]:
    def answer(question: Question) -> Answer:
        expansion = parse(write(question.ask.text), query=question.ask.text)
        return Answer(expansion, Outcome("expanded") if expansion else Outcome("skipped", "nothing"))

    return answer


def _send(one: Hostile, form: str, write: Callable[[str], str]) -> Result:
    return run(search_flow(Search(INDEX, hostile.request(one, form)), _rules()), _answering(write))


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_a_model_writes_for_a_thousand_queries_only_plain_words_are_added_or_nothing(writer: str) -> None:
    faults: list[str] = []
    outcomes: Counter[str] = Counter()
    for number, one in enumerate(QUERIES):
        form = list(FORMS)[number % len(FORMS)]
        result = _send(one, form, WRITERS[writer])
        faults += hostile.faults_of(one, {form: result})
        outcomes[result.outcome.kind] += 1
    assert faults == []
    assert outcomes["error"] == 0
    assert outcomes["expanded"] >= 20  # the few in its language, where the answer is a foreign one


@pytest.mark.parametrize("form", FORMS)
def test_a_question_in_any_script_is_left_alone_where_the_answer_is_in_another(form: str) -> None:
    for language, (scripts, texts) in SCRIPTS.items():
        for text in texts:
            one = Hostile("other scripts", text, language, scripts)
            assert _send(one, form, lambda _: ENGLISH).body is None
            assert _send(one, form, lambda asked: f"In 2024, {asked} " + ENGLISH).body is None
            assert _send(one, form, lambda asked: asked).outcome.applied


def test_a_question_in_a_language_that_shares_a_script_is_left_alone_where_the_answer_is_english() -> None:
    for language, texts in LATIN.items():
        for text in texts:
            one = Hostile("other languages", text, language)
            assert _send(one, "match", lambda _: ENGLISH).outcome.applied == (language == "English")
            assert _send(one, "match", lambda asked: asked).outcome.applied


def test_the_checks_see_what_is_wrong() -> None:
    """A test of the test: each of these bodies has one fault."""
    one = Hostile("plain", "Straße", "German")
    right = json.loads(_send(one, "match", lambda _: "Weg und Straße").body or b"")
    added = right["query"]["bool"]["should"][0]["match"]["body"]

    def faults(**changed: object) -> list[str]:
        clause = {"match": {"body": added | changed}}
        body = {"size": 10, "query": {"bool": {"must": [{"match": {"body": "Straße"}}], "should": [clause]}}}
        return hostile.faults(one, "match", json.dumps(body, separators=(",", ":")).encode())

    assert faults() == []
    assert faults(fuzziness=2) and faults(boost="9") and faults(query=["a"])
    for words in (
        "a" * 41,
        " ".join(map(str, range(129))),
        "a  b",
        "a* b",
        "+a",
        "a:b",
        "a\u202eb",
        "天空",
        "Weg небо",
    ):
        assert len(faults(query=words)) == 1, words
    assert faults(query="it is the street that is long and which can") == ["an English answer to a query in German"]
    body = _send(one, "match", lambda _: "Weg und Straße").body or b""
    assert hostile.faults(one, "match", body.replace(b"stra", b"Stra").replace(b"Stra", b"stra", 1))


def test_what_an_endpoint_writes_is_held_to_the_querys_language_too() -> None:
    async def complete(request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": ENGLISH}}]})

    async def main() -> list[bool]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        expander = _expander(HttpGenerator(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", model="m", max_seconds=20))
        await expander.generator.start()
        try:
            asked = [Hostile("", texts[0]) for texts in (LATIN["English"], SCRIPTS["Chinese"][1], LATIN["French"])]
            found = [await hostile.sent(one, _rules(), expander.answer) for one in asked]
            return [results["match"].outcome.applied for results in found]
        finally:
            await expander.close()
            await runner.cleanup()

    assert asyncio.run(main()) == [True, False, False]


@pytest.mark.model
@pytest.mark.timeout(900)
def test_sixty_of_them_asked_of_the_model_that_is_served_give_plain_words_or_nothing() -> None:
    """bench/hostile asks it all thousand."""

    async def main() -> list[tuple[Hostile, dict[str, Result]]]:
        expander = _expander(make("llama", check({"llama": {"max_seconds": 800}})))
        await expander.generator.start()
        try:
            return await _all(hostile.some(60), expander.answer)
        finally:
            await expander.close()

    found = asyncio.run(main())
    assert [fault for one, results in found for fault in hostile.faults_of(one, results)] == []
    kinds = Counter(result.outcome.kind for _, results in found for result in results.values())
    assert kinds["expanded"] >= 10  # most are not in English, or are no questions
    assert kinds["late"] == 0


async def _all(
    queries: list[Hostile], answer: Callable[[Question], Awaitable[Answer]]
) -> list[tuple[Hostile, dict[str, Result]]]:
    results = await asyncio.gather(*(hostile.sent(one, _rules(), answer) for one in queries))
    return list(zip(queries, results, strict=True))


def _expander(generator: Generator) -> Expander:
    clock = ManualClock()
    return Expander(generator, MemoryCache(5000, clock), clock=clock, pin_s=0)
