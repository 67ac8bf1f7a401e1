"""Rankings, kept by content: under the digest of the index as it stands and of the body that is sent.

So other labels or another mix of measures need no new search, and an index that was built anew or has changed gives new ones.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import SettingsError
from querylift.trainer.rewards.retry import Away, told_apart

_VOLATILE = frozenset({"refresh_interval", "number_of_replicas", "auto_expand_replicas"})


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

    def key(self, body: bytes) -> bytes:
        """What the ranking of `body` is kept under."""
        return hashlib.sha256(self.fingerprint.encode() + b"\0" + body).digest()


def snapshot(engine: Engine, index: str) -> Snapshot:
    """The engine's version, and the settings, mappings, identity, documents and last write of every index behind `index`.

    Raises Away where the engine, or a shard of the index, may be back later, else EngineError.
    """
    with told_apart():
        engine.count(index)  # An idle shard shows new documents only once it is searched.
        settings = engine.call("GET", f"/{index}/_settings")
        mappings = engine.call("GET", f"/{index}/_mapping")
        stats = engine.call("GET", f"/{index}/_stats/docs", params={"level": "shards"})["indices"]
        version = str(engine.info())
    given = {name: of["settings"]["index"] for name, of in settings.items()}
    seen = {
        name: [
            {key: value for key, value in of.items() if key not in _VOLATILE},
            mappings[name],
            *_documents(name, stats.get(name, {}), shards=int(of["number_of_shards"])),
        ]
        for name, of in given.items()
    }
    lasting = json.dumps([version, index, seen], sort_keys=True)
    one_shard = [str(of["number_of_shards"]) for of in given.values()] == ["1"]
    return Snapshot(hashlib.sha256(lasting.encode()).hexdigest(), one_shard)


def _documents(name: str, stats: Mapping[str, Any], *, shards: int) -> tuple[Any, dict[str, int]]:
    """The count of documents and the last writes. Raises Away while a shard is not there: an engine that starts."""
    writes = _last_writes(stats.get("shards", {}))
    if len(writes) < shards:
        raise Away(f"{len(writes)} of the {shards} shards of {name} are ready")
    return stats["primaries"]["docs"], writes


def _last_writes(shards: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, int]:
    """The highest sequence number of each primary that is ready."""
    return {
        number: copy["seq_no"]["max_seq_no"]
        for number, copies in shards.items()
        for copy in copies
        if copy["routing"]["primary"] and "seq_no" in copy
    }
