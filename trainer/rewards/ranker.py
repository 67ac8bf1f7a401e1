"""Rankings of searches on one index. Each search is made once, in `_msearch` batches, and its ranking is cached.

Reading `_id` costs the engine most of the time of a search for 100 hits, because `_id` is a stored field. A sequence number
is a column and is cheap. On an index of one shard, searches therefore ask for sequence numbers. The document id of each
number is looked up once.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from querylift.index_tools.corpora.records import normalize_id
from querylift.index_tools.engine import Engine, encode_json
from querylift.plugin.errors import EngineError
from querylift.trainer.rewards.engine_retry import (
    FATAL_STATUSES,
    RETRYABLE_STATUSES,
    EngineRetry,
    EngineUnavailable,
    RequestRejected,
    classify_engine_errors,
)
from querylift.trainer.rewards.ranking_cache import IndexSnapshot, RankingCache, take_snapshot

SEARCHES_PER_BATCH = 64
"""Searches in one `_msearch`."""
CONCURRENT_BATCHES = 2
"""Batches under way: the engine searches one while the answer to another is read."""
_IDS_PER_LOOKUP = 1000
_PLAIN_KEYS = frozenset({"query", "size", "_source"})
# A failed shard makes the whole answer an error: part of a ranking must not be cached as the whole.
_HEADER = b'{"allow_partial_search_results":false}\n'
_RESPONSE_FILTER = {
    "filter_path": "responses.error,responses.status,responses.hits.hits._id,responses.hits.hits._seq_no"
}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _SearchAnswer:
    """The hits of one search, or the reason why the engine rejected it."""

    hits: Sequence[Mapping[str, Any]] = ()
    rejection: str = ""


_BatchAnswer = tuple[dict[bytes, list[str]], dict[bytes, str]]
"""The rankings by search body, and the reasons of rejection by search body."""


class Ranker:
    """Finds the rankings of searches on one index, in the cache or on the engine.

    `search_count` counts the bodies that were searched, `cache_hits` those that were in the cache. `rejections` holds the
    reason for every body that the engine rejected.
    """

    def __init__(
        self,
        engine: Engine,
        index: str,
        *,
        cache: RankingCache,
        retry: EngineRetry,
        batch_size: int = SEARCHES_PER_BATCH,
        concurrent_batches: int = CONCURRENT_BATCHES,
    ) -> None:
        self._engine = engine
        self._index = index
        self._cache = cache
        self._retry = retry
        self._batch_size = batch_size
        self._concurrent_batches = concurrent_batches
        self._snapshot = retry.call_until_answered(self._take_snapshot)
        self._doc_ids: dict[int, str] = {}
        self._use_sequence_numbers = self._snapshot.one_shard
        self.search_count = 0
        self.cache_hits = 0
        self.rejections: dict[bytes, str] = {}

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the index when this ranker was made."""
        return self._snapshot.fingerprint

    def find_rankings(self, bodies: Iterable[bytes]) -> dict[bytes, list[str]]:
        """Return the document ids, best first, of every body that the engine accepts. Raises EngineError.

        Equal bodies are searched once. A lazy iterable works best, because it is read while the engine searches.
        """
        rankings: dict[bytes, list[str]] = {}
        with ThreadPoolExecutor(self._concurrent_batches) as pool:
            batches: Iterable[list[bytes]] = split_into_batches(
                self._take_from_cache(bodies, rankings), self._batch_size
            )
            while unanswered := list(self._search_batches(pool, batches, rankings)):
                batches = unanswered
        return rankings

    def _take_from_cache(self, bodies: Iterable[bytes], rankings: dict[bytes, list[str]]) -> Iterator[bytes]:
        """Add cached rankings to `rankings`, and yield once each body that must be searched."""
        seen = set(self.rejections)
        for body in bodies:
            if body in seen:
                continue
            seen.add(body)
            ranking = self._cache.find_ranking(
                self._snapshot.cache_key(body), lasting=not self._snapshot.has_outside_words
            )
            if ranking is None:
                yield body
            else:
                rankings[body] = ranking
                self.cache_hits += 1

    def has_index_changed(self) -> bool:
        """Whether the index differs from when this ranker was made. The rankings may then mix two states."""
        return self._retry.call_until_answered(self._take_snapshot) != self._snapshot

    def _take_snapshot(self) -> IndexSnapshot:
        return take_snapshot(self._engine, self._index)

    def _search_batches(
        self, pool: ThreadPoolExecutor, batches: Iterable[list[bytes]], rankings: dict[bytes, list[str]]
    ) -> Iterator[list[bytes]]:
        """Add the rankings of every batch to `rankings`. Yield each batch for which the engine was unavailable."""
        for batch, answer in self._search_ahead(pool, batches):
            try:
                batch_rankings, rejections = answer.result()
            except EngineUnavailable as error:
                self._retry.wait_for_engine(error)
                yield batch
                continue
            self._retry.record_answer()
            self._cache.save_rankings(
                {self._snapshot.cache_key(body): doc_ids for body, doc_ids in batch_rankings.items()},
                lasting=not self._snapshot.has_outside_words,
            )
            self.search_count += len(batch)
            self.rejections |= rejections
            rankings |= batch_rankings

    def _search_ahead(
        self, pool: ThreadPoolExecutor, batches: Iterable[list[bytes]]
    ) -> Iterator[tuple[list[bytes], Future[_BatchAnswer]]]:
        """Yield every batch with its answer, in order, and keep `concurrent_batches` under way."""
        waiting: deque[tuple[list[bytes], Future[_BatchAnswer]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(self._search_batch, batch)))
            if len(waiting) >= self._concurrent_batches:
                yield waiting.popleft()
        yield from waiting

    def _search_batch(self, batch: list[bytes]) -> _BatchAnswer:
        """Search one batch. Several threads call this at once. Raises EngineUnavailable and EngineError."""
        answers = self._send_batch(batch, use_sequence_numbers=self._use_sequence_numbers)
        numbers = {hit["_seq_no"] for answer in answers for hit in answer.hits if "_id" not in hit}
        if not self._look_up_doc_ids({number for number in numbers if number not in self._doc_ids}):
            self._use_sequence_numbers = False
            answers = self._send_batch(batch, use_sequence_numbers=False)
        rankings, rejections = {}, {}
        for body, answer in zip(batch, answers, strict=True):
            if answer.rejection:
                rejections[body] = answer.rejection
            else:
                doc_ids = (hit["_id"] if "_id" in hit else self._doc_ids[hit["_seq_no"]] for hit in answer.hits)
                rankings[body] = list(map(normalize_id, doc_ids))
        return rankings, rejections

    def _send_batch(self, bodies: list[bytes], *, use_sequence_numbers: bool) -> list[_SearchAnswer]:
        """Return the answers to `bodies`, in order. Raises EngineUnavailable and EngineError.

        A batch that is rejected as a whole is halved until the one body at fault stands alone.
        """
        sent = [_ask_for_sequence_numbers(body) for body in bodies] if use_sequence_numbers else bodies
        lines = b"".join(_HEADER + body + b"\n" for body in sent)
        try:
            responses = self._post(f"/{self._index}/_msearch", lines.decode(), _RESPONSE_FILTER)["responses"]
        except RequestRejected as error:
            if len(bodies) == 1:
                return [_SearchAnswer(rejection=str(error))]
            middle = len(bodies) // 2
            halves = (bodies[:middle], bodies[middle:])
            return [
                answer
                for half in halves
                for answer in self._send_batch(half, use_sequence_numbers=use_sequence_numbers)
            ]
        return [_parse_response(response) for response in responses]

    def _post(self, path: str, body: Any, params: Mapping[str, str]) -> Any:
        with classify_engine_errors():
            return self._engine.call("POST", path, body, params=params)

    def _look_up_doc_ids(self, numbers: Collection[int]) -> bool:
        """Learn the ids of the documents with these sequence numbers.

        Returns False when one is unknown, because its document was written again since the search.
        """
        for batch in split_into_batches(sorted(numbers), _IDS_PER_LOOKUP):
            query = {"query": {"terms": {"_seq_no": batch}}, "size": len(batch), "_source": False}
            try:
                response = self._post(f"/{self._index}/_search", {**query, "seq_no_primary_term": True}, {})
            except RequestRejected:
                return False
            self._doc_ids.update({hit["_seq_no"]: hit["_id"] for hit in response["hits"]["hits"]})
        return all(number in self._doc_ids for number in numbers)


def _parse_response(response: Mapping[str, Any]) -> _SearchAnswer:
    """Return the hits or the rejection of one search of an `_msearch`. Raises EngineUnavailable and EngineError."""
    if "error" not in response:
        return _SearchAnswer(response.get("hits", {}).get("hits", ()))
    error = response["error"]
    cause = (error.get("root_cause") or [error])[0] if isinstance(error, Mapping) else {"reason": error}
    reason = str(cause.get("reason") or cause.get("type"))
    status = response.get("status")
    if status in RETRYABLE_STATUSES:
        raise EngineUnavailable(f"the engine is overloaded ({status}: {reason})")
    if status in FATAL_STATUSES:
        raise EngineError(f"a search was answered with status {status}: {reason}")
    return _SearchAnswer(rejection=f"status {status}: {reason}")


def _ask_for_sequence_numbers(body: bytes) -> bytes:
    """Return the same search with sequence numbers instead of ids. A body that asks for more than hits stays as it is."""
    search = json.loads(body)
    if not isinstance(search, dict) or search.keys() - _PLAIN_KEYS or search.get("_source", True) is not False:
        return body
    del search["_source"]
    return encode_json({**search, "stored_fields": "_none_", "seq_no_primary_term": True})


def split_into_batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield the items in order, in lists of at most `size`."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
