"""What an index ranks for a search, asked once: in `_msearch` batches, through the engine's absences, from the cache if there.

Reading `_id` takes the engine most of a search that wants 100 hits, because it is a stored field. Where the index is one
shard, hits are named by their sequence number, which is a column, and each number is looked up once.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from querylift.index_tools.engine import Engine, compact
from querylift.plugin.errors import EngineError
from querylift.trainer.rewards.ranking_cache import RankingCache, Snapshot, snapshot
from querylift.trainer.rewards.retry import OURS, PASSING, Away, Patience, Refused, told_apart

BATCH = 64
"""Searches in one `_msearch`."""
AT_ONCE = 2
"""Batches under way: one is searched while the answer to another is read."""
_LOOKED_UP = 1000
_PLAIN_KEYS = frozenset({"query", "size", "_source"})
# A shard that fails makes an error of the answer: part of a ranking would be kept as the whole.
_HEADER = b'{"allow_partial_search_results":false}\n'
_T = TypeVar("_T")
_SHOWN = {"filter_path": "responses.error,responses.status,responses.hits.hits._id,responses.hits.hits._seq_no"}


@dataclass(frozen=True, slots=True)
class _Hits:
    """The answer to one search: its hits, or why it was refused."""

    hits: Sequence[Mapping[str, Any]] = ()
    refusal: str = ""


_Answers = tuple[dict[bytes, list[str]], dict[bytes, str]]
"""Rankings, and reasons of refusal, by body."""


class Ranker:
    """The rankings of searches on one index: from the cache, else from the engine.

    `searched` and `from_cache` count bodies; `refused` says of each body that the engine would not take why not.
    """

    def __init__(
        self,
        engine: Engine,
        index: str,
        *,
        cache: RankingCache,
        patience: Patience,
        batch: int = BATCH,
        at_once: int = AT_ONCE,
    ) -> None:
        self._engine = engine
        self._index = index
        self._cache = cache
        self._patience = patience
        self._batch = batch
        self._at_once = at_once
        self._found = patience.ask(self._snapshot)
        self._names: dict[int, str] = {}
        self._by_number = self._found.one_shard
        self.searched = 0
        self.from_cache = 0
        self.refused: dict[bytes, str] = {}

    @property
    def fingerprint(self) -> str:
        """The index's, as it stood when this began."""
        return self._found.fingerprint

    def rank(self, bodies: Iterable[bytes]) -> dict[bytes, list[str]]:
        """The ranking of every body that is not refused; equal bodies are searched once. Raises EngineError.

        `bodies` is drawn from while the engine searches, so it may do the work of making them.
        """
        found: dict[bytes, list[str]] = {}
        with ThreadPoolExecutor(self._at_once) as pool:
            left: Iterable[list[bytes]] = batched(self._unknown(bodies, found), self._batch)
            while again := list(self._walk(pool, left, found)):
                left = again
        return found

    def _unknown(self, bodies: Iterable[bytes], found: dict[bytes, list[str]]) -> Iterator[bytes]:
        """Each body once that has to be searched; what the cache knows goes into `found`."""
        seen = set(self.refused)
        for body in bodies:
            if body in seen:
                continue
            seen.add(body)
            known = self._cache.find(self._found.key(body))
            if known is None:
                yield body
            else:
                found[body] = known
                self.from_cache += 1

    def changed(self) -> bool:
        """Whether the index is another than when this began, so that what was found may belong to either."""
        return self._patience.ask(self._snapshot) != self._found

    def _snapshot(self) -> Snapshot:
        return snapshot(self._engine, self._index)

    def _walk(
        self,
        pool: ThreadPoolExecutor,
        batches: Iterable[list[bytes]],
        found: dict[bytes, list[str]],
    ) -> Iterator[list[bytes]]:
        """Search every batch into `found`, and give back those that the engine was away for."""
        for batch, answer in self._ahead(pool, batches):
            try:
                rankings, refused = answer.result()
            except Away as away:
                self._patience.wait(away)
                yield batch
                continue
            self._patience.well()
            self._cache.keep({self._found.key(body): doc_ids for body, doc_ids in rankings.items()})
            self.searched += len(batch)
            self.refused |= refused
            found |= rankings

    def _ahead(
        self, pool: ThreadPoolExecutor, batches: Iterable[list[bytes]]
    ) -> Iterator[tuple[list[bytes], Future[_Answers]]]:
        """Every batch with its answers, in order, `at_once` of them under way."""
        waiting: deque[tuple[list[bytes], Future[_Answers]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(self._search, batch)))
            if len(waiting) >= self._at_once:
                yield waiting.popleft()
        yield from waiting

    def _search(self, batch: list[bytes]) -> _Answers:
        """Rankings and refusals by body, from one thread of several. Raises Away, EngineError."""
        answers = self._ask(batch, by_number=self._by_number)
        numbers = {hit["_seq_no"] for answer in answers for hit in answer.hits if "_id" not in hit}
        if not self._look_up({number for number in numbers if number not in self._names}):
            self._by_number = False
            answers = self._ask(batch, by_number=False)
        rankings, refused = {}, {}
        for body, answer in zip(batch, answers, strict=True):
            if answer.refusal:
                refused[body] = answer.refusal
            else:
                rankings[body] = [hit["_id"] if "_id" in hit else self._names[hit["_seq_no"]] for hit in answer.hits]
        return rankings, refused

    def _ask(self, bodies: list[bytes], *, by_number: bool) -> list[_Hits]:
        """The answers in order. A refusal of the whole is taken apart until it is one body's. Raises Away, EngineError."""
        sent = [_by_number(body) for body in bodies] if by_number else bodies
        lines = b"".join(_HEADER + body + b"\n" for body in sent)
        try:
            answers = self._call(f"/{self._index}/_msearch", lines.decode(), _SHOWN)["responses"]
        except Refused as refused:
            if len(bodies) == 1:
                return [_Hits(refusal=str(refused))]
            half = len(bodies) // 2
            return [*self._ask(bodies[:half], by_number=by_number), *self._ask(bodies[half:], by_number=by_number)]
        return [_hits(answer) for answer in answers]

    def _call(self, path: str, body: Any, params: Mapping[str, str]) -> Any:
        with told_apart():
            return self._engine.call("POST", path, body, params=params)

    def _look_up(self, numbers: Collection[int]) -> bool:
        """Learn the ids of documents by their sequence numbers; False where one stays unknown: it was written anew since."""
        for some in batched(sorted(numbers), _LOOKED_UP):
            query = {"query": {"terms": {"_seq_no": some}}, "size": len(some), "_source": False}
            try:
                answer = self._call(f"/{self._index}/_search", {**query, "seq_no_primary_term": True}, {})
            except Refused:
                return False
            self._names.update({hit["_seq_no"]: hit["_id"] for hit in answer["hits"]["hits"]})
        return all(number in self._names for number in numbers)


def _hits(answer: Mapping[str, Any]) -> _Hits:
    if "error" not in answer:
        return _Hits(answer.get("hits", {}).get("hits", ()))
    error = answer["error"]
    cause = (error.get("root_cause") or [error])[0] if isinstance(error, Mapping) else {"reason": error}
    reason = str(cause.get("reason") or cause.get("type"))
    status = answer.get("status")
    if status in PASSING:
        raise Away(f"the engine has no room for a search just now ({status}: {reason})")
    if status in OURS:
        raise EngineError(f"a search was answered with status {status}: {reason}")
    return _Hits(refusal=f"status {status}: {reason}")


def _by_number(body: bytes) -> bytes:
    """The same search, its hits named by sequence number; one that asks for more than hits stays as it is."""
    asked = json.loads(body)
    if not isinstance(asked, dict) or asked.keys() - _PLAIN_KEYS or asked.get("_source", True) is not False:
        return body
    del asked["_source"]
    return compact({**asked, "stored_fields": "_none_", "seq_no_primary_term": True})


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """The items in order, `size` at a time."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
