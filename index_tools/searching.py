"""Search an index with every query of a split: offline by `_msearch`, or over HTTP through a proxy.

Both ways send the same search body and expand it by the same flow, so both give the same run.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import aiohttp

from querylift.index_tools.corpora.records import Run, normalize_id
from querylift.index_tools.engine import (
    Engine,
    SearchRefusal,
    encode_json,
    extract_engine_reason,
    is_refusal_status,
)
from querylift.index_tools.indexing import CONTENTS_FIELD
from querylift.plugin.broker import ExpansionBroker
from querylift.plugin.brokers import ExpansionBrokers, open_brokers
from querylift.plugin.engine.access import ANONYMOUS_ACCESS, EngineAccess
from querylift.plugin.errors import EngineError
from querylift.plugin.flow import ExpansionRules, FlowResult, Search, run_flow_async, search_flow
from querylift.plugin.outcome import OUTCOME_HEADER
from querylift.plugin.proxy.rejection import REJECTED
from querylift.plugin.settings import Settings

DEFAULT_DEPTH = 1000
_SEARCHES_PER_REQUEST = 32

Answer: TypeAlias = "dict[str, Any] | SearchRefusal"
"""The engine's answer to one search."""


@dataclass(frozen=True, slots=True)
class SearchedRun:
    """A run, and facts about each query by its id.

    `outcomes` are the outcomes as header values, `expansions` what was added, `bodies` the search bodies
    that were sent, and `took_ms` the measured times. `refusals` holds the engine's reason for every search that it refused.
    Such a query has no hits in `run`, so that it counts 0.
    """

    run: Run
    outcomes: Mapping[str, str]
    expansions: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[str, bytes] = field(default_factory=dict)
    took_ms: Mapping[str, float] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)


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
    broker: ExpansionBroker | ExpansionBrokers,
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


async def expand_with_generators(
    settings: Settings,
    queries: Mapping[str, str],
    *,
    index: str,
    depth: int = DEFAULT_DEPTH,
    format_body: BodyFormatter = format_search_body,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, FlowResult]:
    """Return the result of expanding each query as `expand_all` does, with the generators that the settings name for `index`.

    The generators are open during the call. Raises SettingsError and MissingExtra when one cannot be opened.
    """
    async with open_brokers(settings, settings.find_generator_names(index)) as brokers:
        rules = ExpansionRules(settings, clock=time.monotonic)
        return await expand_all(
            queries,
            index=index,
            rules=rules,
            broker=brokers,
            depth=depth,
            format_body=format_body,
            progress=progress,
        )


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

    A query whose result has a rewritten body is sent with it. When the engine refuses the rewrite, or a shard fails on it, the
    original search is sent, as the proxy does. Every other query is sent as the original search. An original search that the
    engine refuses has no hits, and the others go on.
    """
    results = results or {}
    originals = {query_id: format_body(text, depth) for query_id, text in queries.items()}
    rewrites = {query_id: body for query_id in originals if query_id in results and (body := results[query_id].body)}
    answers = _send_searches(engine, index, rewrites)
    rejected_ids = {query_id for query_id, answer in answers.items() if _is_rejection(answer)}
    accepted_ids = rewrites.keys() - rejected_ids
    answers |= _send_searches(
        engine, index, {query_id: body for query_id, body in originals.items() if query_id not in accepted_ids}
    )
    outcomes = {query_id: result.outcome.format_header() for query_id, result in results.items()}
    return SearchedRun(
        run={query_id: _get_doc_ids(answers[query_id]) for query_id in originals},
        outcomes=outcomes | dict.fromkeys(rejected_ids, REJECTED.format_header()),
        expansions={
            query_id: result.expansion.to_summary()
            for query_id, result in results.items()
            if result.expansion is not None and query_id not in rejected_ids
        },
        bodies={
            query_id: rewrites[query_id] if query_id in accepted_ids else originals[query_id] for query_id in originals
        },
        refusals={query_id: answer.reason for query_id, answer in answers.items() if isinstance(answer, SearchRefusal)},
    )


async def search_over_http(
    url: str,
    queries: Mapping[str, str],
    *,
    index: str,
    depth: int = DEFAULT_DEPTH,
    format_body: BodyFormatter = format_search_body,
    access: EngineAccess = ANONYMOUS_ACCESS,
    headers: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> SearchedRun:
    """Return the run of `queries`, by one `_search` after the other on the proxy or engine at `url`.

    The client measures the time of each search. A search that the engine refuses has no hits, and the others go on.
    `progress` is called with the number of finished queries. Raise EngineError, with the query's id, when no engine answers.
    """
    run: Run = {}
    outcomes: dict[str, str] = {}
    took_ms: dict[str, float] = {}
    refusals: dict[str, str] = {}
    headers = {"Content-Type": "application/json", **(headers or {})}
    async with access.open_session(headers=headers, timeout=aiohttp.ClientTimeout(total=120)) as session:
        for done_count, (query_id, text) in enumerate(queries.items(), 1):
            started_s = time.perf_counter()
            search_url = f"{url.rstrip('/')}/{index}/_search"
            try:
                outcomes[query_id], answer = await _send_search(session, search_url, format_body(text, depth))
            except EngineError as error:
                raise EngineError(f"query {query_id!r}: {error}") from error
            took_ms[query_id] = (time.perf_counter() - started_s) * 1000
            run[query_id] = _get_doc_ids(answer)
            if isinstance(answer, SearchRefusal):
                refusals[query_id] = answer.reason
            progress(done_count)
    return SearchedRun(run, outcomes, took_ms=took_ms, refusals=refusals)


async def _send_search(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[str, Answer]:
    """Return the outcome in the header of the answer, and the answer."""
    try:
        async with session.post(url, data=body, allow_redirects=False) as response:
            text = await response.text(errors="replace")
            outcome = response.headers.get(OUTCOME_HEADER, "")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(f"{url} did not answer: {type(error).__name__}: {error}") from error
    try:
        answer: Any = json.loads(text)
    except ValueError:
        answer = text
    if response.status == 200 and isinstance(answer, dict) and "hits" in answer:
        return outcome, answer
    if is_refusal_status(response.status):
        return outcome, SearchRefusal(extract_engine_reason(answer))
    raise EngineError(f"{url} answered with status {response.status}: {extract_engine_reason(answer)}")


def _send_searches(engine: Engine, index: str, bodies: Mapping[str, bytes]) -> dict[str, Answer]:
    """Return the answer to each search, by query id."""
    answers: dict[str, Answer] = {}
    query_ids = iter(bodies)
    while batch := list(islice(query_ids, _SEARCHES_PER_REQUEST)):
        answers |= zip(batch, engine.search_many(index, [bodies[query_id] for query_id in batch]), strict=True)
    return answers


def _is_rejection(answer: Answer) -> bool:
    """Whether the proxy would send the original search after this answer to a rewrite."""
    return isinstance(answer, SearchRefusal) or bool(answer.get("_shards", {}).get("failed"))


def _get_doc_ids(answer: Answer) -> list[str]:
    """Return the ids of the hits, best first and each once. Several indices may hold the same id."""
    if isinstance(answer, SearchRefusal):
        return []
    return list(dict.fromkeys(normalize_id(hit["_id"]) for hit in answer["hits"]["hits"]))
