"""Send the original and the expanded search at the same time, and merge the hits of their answers.

Whatever goes wrong, one of the two answers goes to the client as the engine gave it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from querylift.plugin.interleave import draft_teams
from querylift.plugin.outcome import Outcome
from querylift.plugin.proxy import rejection, routes
from querylift.plugin.proxy.forwarded_headers import Headers
from querylift.plugin.proxy.hit_spans import UnreadableAnswer, find_hits
from querylift.plugin.proxy.search_request import SearchRequest
from querylift.plugin.proxy.shard_report import ShardReport, can_read_answer
from querylift.plugin.proxy.upstream import Reply, Upstream, UpstreamBroken, UpstreamDown

MAX_ANSWER_BYTES = 1_048_576
"""A longer answer is not merged, because reading it takes time. The bound holds after decompression too."""
_URL_PARAMETERS = frozenset(
    "size from timeout routing preference typed_keys rest_total_hits_as_int track_total_hits pretty human error_trace "
    "ignore_unavailable allow_no_indices expand_wildcards request_cache _source _source_includes _source_excludes "
    "stored_fields docvalue_fields batched_reduce_size ccs_minimize_roundtrips max_concurrent_shard_requests "
    "pre_filter_shard_size allow_partial_search_results version seq_no_primary_term search_type track_scores "
    "cancel_after_time_interval".split()
)
"""URL parameters that leave an answer whose hits can be merged."""
_OVERLOADED_STATUSES = frozenset({429, 502, 503, 504})
"""With these statuses the engine had no time for the original search, so the answer to the other one is better."""
_GZIP_LEVEL = 3
_MAX_INLINE_BYTES = 65_536
"""Answers of at most this size together are merged on the event loop, in about a millisecond."""


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """One answer of the engine: the reply, and the part of its body that was read. The reply may have more."""

    reply: Reply
    held: bytes = field(repr=False)

    @property
    def is_usable(self) -> bool:
        """Whether the engine answered the search."""
        return 200 <= self.reply.status < 300

    def read_text(self) -> str:
        """Return the whole body as text. Raises UnreadableAnswer when it is too long, not JSON, or broken."""
        is_whole = self.reply.is_at_end and len(self.held) <= MAX_ANSWER_BYTES
        if not is_whole or not can_read_answer(self.reply.headers, self.reply.encoding):
            raise UnreadableAnswer("the answer is too long or no JSON")
        try:
            if self.reply.encoding != b"gzip":
                return self.held.decode("utf-8")
            decompressor = zlib.decompressobj(wbits=31)
            text = decompressor.decompress(self.held, MAX_ANSWER_BYTES).decode("utf-8")
        except (zlib.error, UnicodeDecodeError) as error:
            raise UnreadableAnswer("the answer is not gzip or not UTF-8") from error
        if not decompressor.eof:
            raise UnreadableAnswer("the answer is too long")
        return text

    @property
    def shows_rejection(self) -> bool:
        """Whether the engine or one of its shards refused the search."""
        report = ShardReport(self.reply.encoding)
        report.add_bytes(self.held)
        return self.reply.status in rejection.REJECTION_STATUSES or report.shows_rejection


Failure = UpstreamDown | UpstreamBroken


@dataclass(frozen=True, slots=True)
class TwoAnswers:
    """The answer to the original and to the expanded search, or why there is none. None stands for a late answer."""

    original: EngineAnswer | Failure | None
    expanded: EngineAnswer | Failure | None


@dataclass(frozen=True, slots=True)
class MergedAnswer:
    """A merged answer: its headers and body, the id of every hit, and one letter for each hit's team."""

    headers: Headers
    body: bytes = field(repr=False)
    hit_ids: tuple[str, ...]
    teams: str


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """What goes to the client: the answer of one search with its outcome, and perhaps merged hits in place of its own."""

    answer: EngineAnswer
    outcome: Outcome
    merged: MergedAnswer | None = None


def can_interleave_request(request: SearchRequest) -> bool:
    """Whether the URL of a search allows its hits to be merged with those of another search."""
    names = routes.parse_parameters(request.query_string) if request.query_string else {}
    return request.route.api == "_search" and not request.in_url and _URL_PARAMETERS.issuperset(names)


@contextlib.asynccontextmanager
async def fetch_two_answers(
    upstream: Upstream, request: SearchRequest, expanded_body: bytes, *, wait_s: float
) -> AsyncIterator[TwoAnswers]:
    """Send both searches at once, and yield their answers. After a usable answer, the other may take `wait_s` more."""
    async with contextlib.AsyncExitStack() as replies:
        fetches = [
            asyncio.ensure_future(_fetch_answer(replies, upstream, request, body))
            for body in (request.body, expanded_body)
        ]
        try:
            done, pending = await asyncio.wait(fetches, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                has_answer = any(_is_usable(fetch.result()) for fetch in done)
                await asyncio.wait(pending, timeout=wait_s if has_answer else None)
        finally:
            late_fetches = [fetch for fetch in fetches if fetch.cancel()]
            await asyncio.gather(*late_fetches, return_exceptions=True)
        yield TwoAnswers(*(None if fetch.cancelled() else fetch.result() for fetch in fetches))


async def choose_without_blocking(answers: TwoAnswers, outcome: Outcome, *, seed: str) -> ServedAnswer:
    """Do the same as `choose_served_answer`. Long answers are merged in a thread, so that no other search waits."""
    sizes_bytes = [
        len(answer.held) for answer in (answers.original, answers.expanded) if isinstance(answer, EngineAnswer)
    ]
    if sum(sizes_bytes) <= _MAX_INLINE_BYTES:
        return choose_served_answer(answers, outcome, seed=seed)
    return await asyncio.to_thread(choose_served_answer, answers, outcome, seed=seed)


def choose_served_answer(answers: TwoAnswers, outcome: Outcome, *, seed: str) -> ServedAnswer:
    """Return the merged answer, or else one of the two. Raises the failure of the original search when there is none."""
    original, expanded = answers.original, answers.expanded
    if not isinstance(original, EngineAnswer) or not original.is_usable:
        is_overloaded = not isinstance(original, EngineAnswer) or original.reply.status in _OVERLOADED_STATUSES
        if is_overloaded and isinstance(expanded, EngineAnswer) and expanded.is_usable and not expanded.shows_rejection:
            return ServedAnswer(expanded, replace(outcome, reason="alone"))
        if not isinstance(original, EngineAnswer):
            raise original or UpstreamDown(504, "the engine did not answer in time")
        return ServedAnswer(original, rejection.ORIGINAL_FAILS)
    if not isinstance(expanded, EngineAnswer):
        return ServedAnswer(original, Outcome("late" if expanded is None else "error", "alone"))
    if expanded.shows_rejection:
        return ServedAnswer(original, rejection.ORIGINAL_FAILS if original.shows_rejection else rejection.REJECTED)
    try:
        merged = merge_answers(original, expanded, seed=seed)
    except UnreadableAnswer:
        return ServedAnswer(original, Outcome("error", "alone"))
    return ServedAnswer(original, replace(outcome, reason="interleaved"), merged)


def merge_answers(original: EngineAnswer, expanded: EngineAnswer, *, seed: str) -> MergedAnswer:
    """Return the answer to the original search, with the hits of both as a team draft. Raises UnreadableAnswer.

    Each hit is the bytes that the engine sent. Everything beside the hits is from the original search: their total, the
    greatest score and the aggregations.
    """
    lists = {"o": find_hits(original.read_text()), "e": find_hits(expanded.read_text())}
    draft = draft_teams(lists["o"].hit_ids, lists["e"].hit_ids, seed=seed)
    picks = [(lists["e" if team == "e" else "o"], position) for team, position in draft.picks]
    body = lists["o"].replace_hits([hits.hit_texts[position] for hits, position in picks]).encode("utf-8")
    if original.reply.encoding == b"gzip":
        body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
    headers = [(name, value) for name, value in original.reply.headers if name != b"content-length"]
    headers.append((b"content-length", str(len(body)).encode()))
    return MergedAnswer(headers, body, tuple(hits.hit_ids[position][1] for hits, position in picks), draft.teams)


async def _fetch_answer(
    replies: contextlib.AsyncExitStack, upstream: Upstream, request: SearchRequest, body: bytes
) -> EngineAnswer | Failure:
    query_string, headers = request.adapt_to_new_body()
    try:
        reply = await replies.enter_async_context(
            await upstream.send(request.method, request.path, query_string, headers, body)
        )
        return EngineAnswer(reply, await reply.read_up_to(MAX_ANSWER_BYTES))
    except (UpstreamDown, UpstreamBroken) as failure:
        return failure


def _is_usable(answer: EngineAnswer | Failure) -> bool:
    return isinstance(answer, EngineAnswer) and answer.is_usable
