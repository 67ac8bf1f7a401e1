"""Runs: every query of a split against an index, offline by `_msearch` or over HTTP through a proxy.

Both ways send the same body and expand it by the same flow, so both give the same run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import aiohttp

from querylift.index_tools.corpora.trec_files import Run
from querylift.index_tools.engine import Engine, compact
from querylift.index_tools.indexing import FIELD
from querylift.plugin.broker import Expander
from querylift.plugin.errors import EngineError
from querylift.plugin.flow import Result, Rules, Search, run_async, search_flow
from querylift.plugin.outcome import HEADER

DEPTH = 1000
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Searched:
    """A run, and per query what became of it: the outcome, the expansion's words, the time in ms where it was taken."""

    run: Run
    outcomes: Mapping[str, str]
    expansions: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[str, bytes] = field(default_factory=dict)
    took_ms: Mapping[str, float] = field(default_factory=dict)


Form = Callable[[str, int], bytes]
"""Makes the body of a search from a query's text and the number of hits wanted."""
PLACEHOLDER = "{{query}}"


def match_form(fields: Sequence[str] = (FIELD,)) -> Form:
    """A plain match of one field, a multi_match of several; ids only."""

    def body(text: str, depth: int) -> bytes:
        several: dict[str, Any] = {"multi_match": {"query": text, "fields": list(fields)}}
        query = {"match": {fields[0]: text}} if len(fields) == 1 else several
        return compact({"query": query, "size": depth, "_source": False})

    return body


def template_form(template: Mapping[str, Any]) -> Form:
    """A search of the user's own: `PLACEHOLDER` in its strings becomes the query; `size` and `_source` are set."""

    def body(text: str, depth: int) -> bytes:
        return compact({**_filled(template, text), "from": 0, "size": depth, "_source": False})

    return body


def _filled(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return value.replace(PLACEHOLDER, text)
    if isinstance(value, Mapping):
        return {key: _filled(item, text) for key, item in value.items()}
    return [_filled(item, text) for item in value] if isinstance(value, list) else value


def search_body(text: str, depth: int = DEPTH) -> bytes:
    """The search that evaluation sends where nothing else is asked for."""
    return match_form()(text, depth)


async def expand_all(
    queries: Mapping[str, str],
    *,
    index: str,
    rules: Rules,
    expander: Expander,
    depth: int = DEPTH,
    form: Form = search_body,
    concurrency: int = 8,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Result]:
    """The rewrite of every query, `concurrency` at a time and with all the time they need."""
    gate = asyncio.Semaphore(concurrency)
    done = 0

    async def one(text: str) -> Result:
        nonlocal done
        async with gate:
            search = Search(index, form(text, depth))
            result = await run_async(search_flow(search, rules), expander.answer)
        done += 1
        progress(done)
        return result

    results = await asyncio.gather(*(one(text) for text in queries.values()))
    return dict(zip(queries, results, strict=True))


def search_offline(
    engine: Engine,
    queries: Mapping[str, str],
    *,
    index: str,
    results: Mapping[str, Result] | None = None,
    depth: int = DEPTH,
    form: Form = search_body,
) -> Searched:
    """The run of `queries` by `_msearch`: each as its result says, or as it is where there is no result for it."""
    bodies = {q: _rewritten((results or {}).get(q)) or form(text, depth) for q, text in queries.items()}
    run: Run = {}
    for batch in _batches(bodies):
        answers = engine.msearch(index, [bodies[q] for q in batch])
        run |= {q: _doc_ids(answer) for q, answer in zip(batch, answers, strict=True)}
    outcomes = {q: r.outcome.header() for q, r in (results or {}).items()}
    words = {q: r.expansion.words() for q, r in (results or {}).items() if r.expansion is not None}
    return Searched(run, outcomes, words, bodies)


async def search_over_http(
    url: str,
    queries: Mapping[str, str],
    *,
    index: str,
    depth: int = DEPTH,
    form: Form = search_body,
    headers: Mapping[str, str] | None = None,
    auth: aiohttp.BasicAuth | None = None,
    ssl: Any = True,
    progress: Callable[[int], None] = lambda count: None,
) -> Searched:
    """The run of `queries` by one `_search` after the other on `url`, a proxy or an engine, timed at the client."""
    run: Run = {}
    outcomes: dict[str, str] = {}
    took_ms: dict[str, float] = {}
    sent = {"Content-Type": "application/json", **(headers or {})}
    connector = aiohttp.TCPConnector(ssl=ssl)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(headers=sent, timeout=timeout, auth=auth, connector=connector) as session:
        for done, (query_id, text) in enumerate(queries.items(), 1):
            started_s = time.perf_counter()
            outcomes[query_id], run[query_id] = await _search(session, url, index, form(text, depth))
            took_ms[query_id] = (time.perf_counter() - started_s) * 1000
            progress(done)
    return Searched(run, outcomes, took_ms=took_ms)


async def _search(session: aiohttp.ClientSession, url: str, index: str, body: bytes) -> tuple[str, list[str]]:
    try:
        async with session.post(f"{url.rstrip('/')}/{index}/_search", data=body) as response:
            answer = await response.json(content_type=None)
            outcome = response.headers.get(HEADER, "")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise EngineError(f"{url} did not answer a search on {index}: {type(error).__name__}: {error}") from error
    if response.status != 200:
        raise EngineError(f"{url} answered a search on {index} with status {response.status}: {str(answer)[:300]}")
    return outcome, _doc_ids(answer)


def _rewritten(result: Result | None) -> bytes | None:
    return result.body if result is not None else None


def _doc_ids(answer: Mapping[str, object]) -> list[str]:
    hits = answer["hits"]
    assert isinstance(hits, dict)
    return [hit["_id"] for hit in hits["hits"]]


def _batches(bodies: Mapping[str, bytes]) -> Iterator[list[str]]:
    ids = iter(bodies)
    while batch := list(islice(ids, _BATCH)):
        yield batch
