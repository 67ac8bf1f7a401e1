"""Odd requests to a real engine: through the proxy they are answered as they are answered directly."""

import asyncio
import json
import string
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import aiohttp
import pytest
import uvloop

from querylift.index_tools.engine import Engine
from querylift.plugin.expansion import Expansion
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.raw_client import RawAnswer, connect_raw, exchange_raw
from tests.helpers.upstream_stub import RunningProxy, run_proxy

pytestmark = pytest.mark.engine
QUERY = "zebra"
LONG_EXPANSION = Expansion(text=" ".join(letter * 2 + "otherword" + letter for letter in string.ascii_lowercase * 3))
"""So many words that the index of n-grams makes more clauses of them than the engine allows."""


@pytest.fixture(scope="module")
def engine_url(opensearch: str) -> Iterator[str]:
    ngrams = {
        "analyzer": {"grams": {"tokenizer": "grams"}},
        "tokenizer": {"grams": {"type": "ngram", "min_gram": 2, "max_gram": 4, "token_chars": ["letter"]}},
    }
    settings = {"number_of_replicas": 0, "index.max_ngram_diff": 2, "analysis": ngrams}
    with Engine(parse_settings({"engine": opensearch})) as engine:
        for name, analyzer in (("wire-words", "standard"), ("wire-grams", "grams")):
            if engine.has_index(name):
                engine.call("DELETE", f"/{name}")
            mappings = {"properties": {"text": {"type": "text", "analyzer": analyzer}}}
            engine.call("PUT", f"/{name}", {"settings": settings, "mappings": mappings})
            engine.call("PUT", f"/{name}/_doc/1?refresh=true", {"text": QUERY})
        yield opensearch
        for name in ("wire-words", "wire-grams"):
            engine.call("DELETE", f"/{name}")


def _run(engine_url: str, check: Callable[[RunningProxy, int], Awaitable[None]]) -> None:
    """Run `check` with a proxy and the port of the engine."""

    async def main() -> None:
        generator = ScriptedGenerator({QUERY: LONG_EXPANSION})
        index_settings: dict[str, object] = {"wire-words": {}, "wire-grams": {}}
        async with run_proxy(engine_url, generator, index=index_settings) as proxy, asyncio.timeout(60):
            await check(proxy, urlsplit(engine_url).port or 0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _describe_answer(answer: RawAnswer) -> tuple[int, bytes]:
    return answer.status, answer.body


ODD_REQUESTS = {
    "UTF-8 in the path": "GET /caf\u00e9 HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
    "Latin-1 in the path": "GET /caf\u00e9 HTTP/1.1\r\nHost: h\r\n\r\n".encode("latin-1"),
    "UTF-8 in a query": "GET /wire-words/_search?filter_path=hits&q=text:\u00e9 HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
    "UTF-8 in a name": "GET /_cluster/health/\u4e2d?local&timeout=1ms HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
    "headers over the engine's limit": b"GET / HTTP/1.1\r\nHost: h\r\nX-A: " + b"a" * 17_000 + b"\r\n\r\n",
    "a line over the engine's limit": b"GET /?q=" + b"a" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    "more announced than the engine takes": b"POST /_bulk HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    b"Expect: 100-continue\r\nContent-Length: 200000000\r\n\r\n",
    "an expectation that nobody meets": b"POST /x/_count HTTP/1.1\r\nHost: h\r\nExpect: x\r\nContent-Length: 2\r\n\r\n{}",
    "spaces after a length": b"POST /wire-words/_count HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    b"Content-Length: 2 \r\n\r\n{}",
}


@pytest.mark.parametrize("request_bytes", ODD_REQUESTS.values(), ids=ODD_REQUESTS.keys())
def test_an_odd_request_is_answered_as_the_engine_answers_it(engine_url: str, request_bytes: bytes) -> None:
    async def check(proxy: RunningProxy, engine_port: int) -> None:
        engine_answer = await exchange_raw(engine_port, request_bytes)
        for _ in range(2):  # the second one finds the connections that the first one left
            answer = await exchange_raw(proxy.port, request_bytes)
            assert _describe_answer(answer) == _describe_answer(engine_answer)
            async with asyncio.timeout(5):
                health = await exchange_raw(proxy.port, b"GET /_cat/health HTTP/1.1\r\nHost: h\r\n\r\n")
            assert health.status == 200

    _run(engine_url, check)


def test_a_client_that_closes_its_sending_half_gets_its_answer_as_from_the_engine(engine_url: str) -> None:
    async def check(proxy: RunningProxy, engine_port: int) -> None:
        for port in (engine_port, proxy.port):
            async with connect_raw(port) as client:
                await client.send_segments([b"GET /?filter_path=tagline HTTP/1.1\r\nHost: h\r\n\r\n"])
                client.close_sending_half()
                answer = await client.read_answer()
                assert answer is not None and b"tagline" in answer.body

    _run(engine_url, check)


FORMS_OF_ANSWERS = [
    ("filter_path=hits.total", {}, "skipped;unseen"),
    ("filter_path=hits.total,_shards", {}, "error;rejected"),
    ("filter_path=hits.total&format=yaml", {}, "skipped;unseen"),
    ("format=yaml", {}, "skipped;unseen"),
    ("", {"Accept": "application/yaml"}, "skipped;unseen"),
    ("", {"Accept": "application/cbor"}, "skipped;unseen"),
    ("", {"Accept-Encoding": "deflate"}, "error;rejected"),
    ("", {"Accept-Encoding": "gzip, deflate"}, "error;rejected"),
    ("scroll=1m", {}, "error;rejected"),
    ("", {}, "error;rejected"),
]


@pytest.mark.parametrize(("parameters", "headers", "outcome"), FORMS_OF_ANSWERS)
def test_no_hit_is_lost_where_the_engine_refuses_a_rewrite_on_one_of_two_indices(
    engine_url: str, parameters: str, headers: dict[str, str], outcome: str
) -> None:
    body = json.dumps({"query": {"match": {"text": QUERY}}}).encode()
    path = f"/wire-words,wire-grams/_search?{parameters}"

    async def check(proxy: RunningProxy, engine_port: int) -> None:
        async with aiohttp.ClientSession() as client:
            request_headers = {"Content-Type": "application/json"} | headers
            texts = []
            for url in (f"http://127.0.0.1:{engine_port}", proxy.url):
                async with client.post(url + path, data=body, headers=request_headers) as answer:
                    texts.append(await answer.read())
                    last_outcome = answer.headers.get("X-Querylift")
            assert last_outcome == outcome
            assert [text.count(b"wire-grams") for text in texts] in ([0, 0], [1, 1])
            assert _find_total(texts[0]) == _find_total(texts[1])

    _run(engine_url, check)


def _find_total(text: bytes) -> bytes:
    """Return the bytes after the word `value`, which hold the number of hits in every format."""
    return text.partition(b"value")[2][:5]
