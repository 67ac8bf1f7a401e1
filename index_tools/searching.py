"""Search an index with every query of a split: offline by `_msearch`, or over HTTP through a proxy.

Both ways send the same search body and expand it by the same flow, so both give the same run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import aiohttp

from querylift.index_tools.corpora.records import Run
from querylift.index_tools.engine import Engine, encode_json
from querylift.index_tools.indexing import CONTENTS_FIELD
from querylift.plugin.broker import ExpansionBroker
from querylift.plugin.engine_session import make_engine_session
from querylift.plugin.errors import EngineError
from querylift.plugin.flow import ExpansionRules, FlowResult, Search, run_flow_async, search_flow
from querylift.plugin.outcome import OUTCOME_HEADER

DEFAULT_DEPTH = 1000
_SEARCHES_PER_REQUEST = 32


@dataclass(frozen=True, slots=True)
class SearchedRun:
    """A run, and facts about each query by its id.

    `outcomes` are the outcomes as header values, `expansions` the words that were added, `bodies` the search bodies
    that were sent, and `took_ms` the measured times.
    """

    run: Run
    outcomes: Mapping[str, str]
    expansions: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[str, bytes] = field(default_factory=dict)
    took_ms: Mapping[str, float] = field(default_factory=dict)


BodyFormatter = Callable[[str, int], bytes]
"""Turns the text of a query and the wanted number of hits into a search body."""
QUERY_PLACEHOLDER = "{{query}}"
"""The place of the query in a search body of the user's own."""


def make_match_formatter(fields: Sequence[str] = (CONTENTS_FIELD,)) -> BodyFormatter:
    """Return a formatter of a `match` clause on one field, or of a `multi_match` clause on several."""

    def format_body(text: str, depth: int) -> bytes:
        multi_match: dict[str, Any] = {"multi_match": {"query": text, "fields": list(fields)}}
        query = {"match": {fields[0]: text}} if len(fields) == 1 else multi_match
        return encode_json({"query": query, "size": depth, "_source": False})

    return format_body


def make_template_formatter(template: Mapping[str, Any]) -> BodyFormatter:
    """Return a formatter of the user's own search body. The query replaces `QUERY_PLACEHOLDER` in all its strings.

    The formatter sets `from`, `size` and `_source`.
    """

    def format_body(text: str, depth: int) -> bytes:
        return encode_json({**_fill_placeholder(template, text), "from": 0, "size": depth, "_source": False})

    return format_body


def _fill_placeholder(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return value.replace(QUERY_PLACEHOLDER, text)
    if isinstance(value, Mapping):
        return {key: _fill_placeholder(item, text) for key, item in value.items()}
    return [_fill_placeholder(item, text) for item in value] if isinstance(value, list) else value


def format_search_body(text: str, depth: int = DEFAULT_DEPTH) -> bytes:
    """Return the search body that evaluation sends by default: a match on `CONTENTS_FIELD`."""
    return make_match_formatter()(text, depth)


async def expand_all(
    queries: Mapping[str, str],
    *,
    index: str,
    rules: ExpansionRules,
    broker: ExpansionBroker,
    depth: int = DEFAULT_DEPTH,
    format_body: BodyFormatter = format_search_body,
    concurrency: int = 8,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, FlowResult]:
    """Return the result of expanding each query, by query id. `concurrency` queries run at a time, without a time limit.

    `progress` is called with the number of finished queries.
    """
    semaphore = asyncio.Semaphore(concurrency)
    done_count = 0

    async def expand_query(text: str) -> FlowResult:
        nonlocal done_count
        async with semaphore:
            search = Search(index, format_body(text, depth))
            result = await run_flow_async(search_flow(search, rules), broker.answer)
        done_count += 1
        progress(done_count)
        return result

    results = await asyncio.gather(*(expand_query(text) for text in queries.values()))
    return dict(zip(queries, results, strict=True))


def search_offline(
    engine: Engine,
    queries: Mapping[str, str],
    *,
    index: str,
    results: Mapping[str, FlowResult] | None = None,
    depth: int = DEFAULT_DEPTH,
    format_body: BodyFormatter = format_search_body,
) -> SearchedRun:
    """Return the run of `queries` by `_msearch`.

    A query whose result has a rewritten body is sent with it. Every other query is sent as the original search.
    """
    results = results or {}
    bodies = {query_id: format_body(text, depth) for query_id, text in queries.items()}
    for query_id in bodies.keys() & results.keys():
        bodies[query_id] = results[query_id].body or bodies[query_id]
    run: Run = {}
    for batch in _iter_batches(bodies):
        answers = engine.search_many(index, [bodies[query_id] for query_id in batch])
        run |= {query_id: _get_doc_ids(answer) for query_id, answer in zip(batch, answers, strict=True)}
    outcomes = {query_id: result.outcome.format_header() for query_id, result in results.items()}
    expansions = {
        query_id: result.expansion.to_text() for query_id, result in results.items() if result.expansion is not None
    }
    return SearchedRun(run, outcomes, expansions, bodies)


async def search_over_http(
    url: str,
    queries: Mapping[str, str],
    *,
    index: str,
    depth: int = DEFAULT_DEPTH,
    format_body: BodyFormatter = format_search_body,
    headers: Mapping[str, str] | None = None,
    auth: aiohttp.BasicAuth | None = None,
    ssl: Any = True,
    progress: Callable[[int], None] = lambda count: None,
) -> SearchedRun:
    """Return the run of `queries`, by one `_search` after the other on the proxy or engine at `url`.

    The client measures the time of each search. `progress` is called with the number of finished queries.
    """
    run: Run = {}
    outcomes: dict[str, str] = {}
    took_ms: dict[str, float] = {}
    headers = {"Content-Type": "application/json", **(headers or {})}
    connector = aiohttp.TCPConnector(ssl=ssl)
    timeout = aiohttp.ClientTimeout(total=120)
    async with make_engine_session(headers=headers, timeout=timeout, auth=auth, connector=connector) as session:
        for done_count, (query_id, text) in enumerate(queries.items(), 1):
            started_s = time.perf_counter()
            outcomes[query_id], run[query_id] = await _send_search(session, url, index, format_body(text, depth))
            took_ms[query_id] = (time.perf_counter() - started_s) * 1000
            progress(done_count)
    return SearchedRun(run, outcomes, took_ms=took_ms)


async def _send_search(session: aiohttp.ClientSession, url: str, index: str, body: bytes) -> tuple[str, list[str]]:
    try:
        async with session.post(f"{url.rstrip('/')}/{index}/_search", data=body, allow_redirects=False) as response:
            answer = await response.json(content_type=None)
            outcome = response.headers.get(OUTCOME_HEADER, "")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise EngineError(f"{url} did not answer a search on {index}: {type(error).__name__}: {error}") from error
    if response.status != 200:
        raise EngineError(f"{url} answered a search on {index} with status {response.status}: {str(answer)[:300]}")
    return outcome, _get_doc_ids(answer)


def _get_doc_ids(answer: Mapping[str, object]) -> list[str]:
    hits = answer["hits"]
    assert isinstance(hits, dict)
    return [hit["_id"] for hit in hits["hits"]]


def _iter_batches(bodies: Mapping[str, bytes]) -> Iterator[list[str]]:
    query_ids = iter(bodies)
    while batch := list(islice(query_ids, _SEARCHES_PER_REQUEST)):
        yield batch
