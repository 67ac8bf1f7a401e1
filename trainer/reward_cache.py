"""What an index ranks for a search, asked once: in `_msearch` batches, through the engine's absences, kept by content.

A ranking is kept under the digest of the index as it stands and of the body that is sent, so other labels or another mix of
measures need no new search, and an index that was built anew or has changed gives new ones.

Reading `_id` takes the engine most of a search that wants 100 hits, because it is a stored field. Where the index is one
shard, hits are named by their sequence number, which is a column, and each number is looked up once.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from index_tools.engine import Engine, compact
from plugin.errors import EngineError, SettingsError

BATCH = 64
"""Searches in one `_msearch`."""
AT_ONCE = 2
"""Batches under way: one is searched while the answer to another is read."""
_LOOKED_UP = 1000
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_PASSING = frozenset({429, 502, 503, 504})
_OURS = frozenset({401, 403, 404})
_PLAIN_KEYS = frozenset({"query", "size", "_source"})
_VOLATILE = frozenset({"refresh_interval", "number_of_replicas", "auto_expand_replicas"})
# A shard that fails makes an error of the answer: part of a ranking would be kept as the whole.
_HEADER = b'{"allow_partial_search_results":false}\n'
_SHOWN = {"filter_path": "responses.error,responses.status,responses.hits.hits._id,responses.hits.hits._seq_no"}


class RankingCache:
    """Document ids, best first, by key, in one SQLite file; in memory where `path` is None. For one thread."""

    def __init__(self, path: Path | None = None) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path or ":memory:", timeout=30)
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"the cache {path} cannot be opened ({error}); name another file") from None
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS rankings (key BLOB PRIMARY KEY, doc_ids TEXT NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            self._db.close()
            raise SettingsError(f"{path} is no cache of rankings ({error}); name another file, or remove it") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def find(self, key: bytes) -> list[str] | None:
        """The ranking under `key`, None where there is none."""
        row = self._db.execute("SELECT doc_ids FROM rankings WHERE key = ?", (key,)).fetchone()
        return list(json.loads(row[0])) if row is not None else None

    def keep(self, rankings: Mapping[bytes, Sequence[str]]) -> None:
        """Write them down, all or none."""
        rows = [(key, json.dumps(doc_ids, ensure_ascii=False)) for key, doc_ids in rankings.items()]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO rankings VALUES (?, ?)", rows)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An index as it stands: `fingerprint` changes with whatever may change a ranking."""

    fingerprint: str
    one_shard: bool


def snapshot(engine: Engine, index: str) -> Snapshot:
    """The engine's version, and the settings, mappings, identity, documents and last write of every index behind `index`."""
    engine.count(index)  # An idle shard shows new documents only once it is searched.
    settings = engine.call("GET", f"/{index}/_settings")
    mappings = engine.call("GET", f"/{index}/_mapping")
    stats = engine.call("GET", f"/{index}/_stats/docs", params={"level": "shards"})["indices"]
    seen = {
        name: [
            {key: value for key, value in of["settings"]["index"].items() if key not in _VOLATILE},
            mappings[name],
            stats[name]["primaries"]["docs"],
            _last_writes(stats[name]["shards"]),
        ]
        for name, of in settings.items()
    }
    lasting = json.dumps([str(engine.info()), index, seen], sort_keys=True)
    shards = [str(of["settings"]["index"]["number_of_shards"]) for of in settings.values()]
    return Snapshot(hashlib.sha256(lasting.encode()).hexdigest(), shards == ["1"])


def _last_writes(shards: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, int]:
    """The highest sequence number of each primary."""
    return {
        number: copy["seq_no"]["max_seq_no"]
        for number, copies in shards.items()
        for copy in copies
        if copy["routing"]["primary"]
    }


class Patience:
    """Waits for an engine that is away, longer each time; after `patience_s` without one answer it raises EngineError."""

    def __init__(
        self,
        patience_s: float = 600,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._patience_s = patience_s
        self._sleep = sleep
        self._clock = clock
        self._tell = tell
        self._away_since: float | None = None
        self._delay_s = _FIRST_DELAY_S

    def wait(self, reason: object) -> None:
        """Sleep, and say so in a sentence. Raises EngineError where that would be longer than the patience lasts."""
        now = self._clock()
        self._away_since = now if self._away_since is None else self._away_since
        if now + self._delay_s - self._away_since > self._patience_s:
            raise EngineError(
                f"{reason}; waited {self._patience_s:g} s: what was found is kept, so run the same command again"
            )
        self._tell(f"{reason}; asking again in {self._delay_s:g} s")
        self._sleep(self._delay_s)
        self._delay_s = min(self._delay_s * 2, _LONGEST_DELAY_S)

    def well(self) -> None:
        """The engine has answered."""
        if self._away_since is not None:
            self._tell("the engine is back")
        self._away_since, self._delay_s = None, _FIRST_DELAY_S


@dataclass(frozen=True, slots=True)
class _Hits:
    """The answer to one search: its hits, or why it was refused."""

    hits: Sequence[Mapping[str, Any]] = ()
    refusal: str = ""


_Answers = tuple[dict[bytes, list[str]], dict[bytes, str]]
"""Rankings, and reasons of refusal, by body."""


class _Away(Exception):
    """The engine does not answer, or has no room just now."""


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
        self._found = snapshot(engine, index)
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
            left: Iterable[list[bytes]] = _batches(self._unknown(bodies, found), self._batch)
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
            known = self._cache.find(self._key(body))
            if known is None:
                yield body
            else:
                found[body] = known
                self.from_cache += 1

    def changed(self) -> bool:
        """Whether the index is another than when this began, so that what was found may belong to either."""
        return snapshot(self._engine, self._index) != self._found

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
            except _Away as away:
                self._patience.wait(away)
                yield batch
                continue
            self._patience.well()
            self._cache.keep({self._key(body): doc_ids for body, doc_ids in rankings.items()})
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

    def _key(self, body: bytes) -> bytes:
        return hashlib.sha256(self._found.fingerprint.encode() + b"\0" + body).digest()

    def _search(self, batch: list[bytes]) -> _Answers:
        """Rankings and refusals by body, from one thread of several. Raises _Away, EngineError."""
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
        """The answers in order. A refusal of the whole is taken apart until it is one body's. Raises _Away, EngineError."""
        sent = [_by_number(body) for body in bodies] if by_number else bodies
        lines = b"".join(_HEADER + body + b"\n" for body in sent)
        try:
            answers = _call(self._engine, f"/{self._index}/_msearch", lines.decode(), _SHOWN)["responses"]
        except _Refused as refused:
            if len(bodies) == 1:
                return [_Hits(refusal=str(refused))]
            half = len(bodies) // 2
            return [*self._ask(bodies[:half], by_number=by_number), *self._ask(bodies[half:], by_number=by_number)]
        return [_hits(answer) for answer in answers]

    def _look_up(self, numbers: Collection[int]) -> bool:
        """Learn the ids of documents by their sequence numbers; False where one stays unknown: it was written anew since."""
        for some in _batches(sorted(numbers), _LOOKED_UP):
            query = {"query": {"terms": {"_seq_no": some}}, "size": len(some), "_source": False}
            try:
                answer = _call(self._engine, f"/{self._index}/_search", {**query, "seq_no_primary_term": True}, {})
            except _Refused:
                return False
            self._names.update({hit["_seq_no"]: hit["_id"] for hit in answer["hits"]["hits"]})
        return all(number in self._names for number in numbers)


class _Refused(Exception):
    """The engine does not take this request, and will not take it later."""


def _call(engine: Engine, path: str, body: Any, params: Mapping[str, str]) -> Any:
    """A request that may pass later raises _Away, one that never will _Refused, one that is our fault EngineError."""
    try:
        return engine.call("POST", path, body, params=params)
    except EngineError as error:
        status = getattr(error.__cause__, "status_code", None)
        if _is_tls(error.__cause__) or status in _OURS:
            raise
        if isinstance(status, int) and status not in _PASSING:
            raise _Refused(str(error)) from error
        raise _Away(str(error)) from error


def _is_tls(cause: object) -> bool:
    from opensearchpy.exceptions import SSLError

    return isinstance(cause, SSLError)


def _hits(answer: Mapping[str, Any]) -> _Hits:
    if "error" not in answer:
        return _Hits(answer.get("hits", {}).get("hits", ()))
    error = answer["error"]
    cause = (error.get("root_cause") or [error])[0] if isinstance(error, Mapping) else {"reason": error}
    reason = str(cause.get("reason") or cause.get("type"))
    status = answer.get("status")
    if status in _PASSING:
        raise _Away(f"the engine has no room for a search just now ({status}: {reason})")
    if status in _OURS:
        raise EngineError(f"a search was answered with status {status}: {reason}")
    return _Hits(refusal=f"status {status}: {reason}")


def _by_number(body: bytes) -> bytes:
    """The same search, its hits named by sequence number; one that asks for more than hits stays as it is."""
    asked = json.loads(body)
    if not isinstance(asked, dict) or asked.keys() - _PLAIN_KEYS or asked.get("_source", True) is not False:
        return body
    del asked["_source"]
    return compact({**asked, "stored_fields": "_none_", "seq_no_primary_term": True})


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
