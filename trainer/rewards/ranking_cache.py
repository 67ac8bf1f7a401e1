"""A cache of rankings. The key is a digest of the search body and of the index as it stands.

Other labels or another mix of measures need no new search. An index that was rebuilt or written to is searched anew. So is,
in every run, an index whose words come from outside, such as a file of synonyms: they can change without a trace.
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
from querylift.trainer.rewards.engine_retry import EngineUnavailable, classify_engine_errors

_VOLATILE_SETTINGS = frozenset({"refresh_interval", "number_of_replicas", "auto_expand_replicas"})
"""Index settings that change no ranking."""
_OUTSIDE_SUFFIXES = ("_path", "synonyms_set", "user_dictionary")
"""Ends of the analysis settings that name a file of the node, or a set of synonyms that the engine keeps."""
_LASTING_TABLE, _PASSING_TABLE = "rankings", "temp.passing_rankings"


class RankingCache:
    """A SQLite file of rankings: document ids, best first, by key. It is in memory when `path` is None.

    Rankings that are not `lasting` are forgotten when the cache is closed. One thread may use it.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path or ":memory:", timeout=30)
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"the cache {path} cannot be opened ({error}); name another file") from None
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            for table in (_LASTING_TABLE, _PASSING_TABLE):
                self._db.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, doc_ids TEXT NOT NULL) WITHOUT ROWID"
                )
        except sqlite3.Error as error:
            self._db.close()
            raise SettingsError(
                f"{path} is not a cache of rankings ({error}); name another file, or remove it"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def find_ranking(self, key: bytes, *, lasting: bool) -> list[str] | None:
        """Return the ranking under `key`, or None when there is no such key."""
        row = self._db.execute(f"SELECT doc_ids FROM {_name_table(lasting)} WHERE key = ?", (key,)).fetchone()
        return list(json.loads(row[0])) if row is not None else None

    def save_rankings(self, rankings: Mapping[bytes, Sequence[str]], *, lasting: bool) -> None:
        """Write all of `rankings`, or none of them when writing fails."""
        rows = [(key, json.dumps(doc_ids, ensure_ascii=False)) for key, doc_ids in rankings.items()]
        with self._db:
            self._db.executemany(f"INSERT OR REPLACE INTO {_name_table(lasting)} VALUES (?, ?)", rows)


def _name_table(lasting: bool) -> str:
    return _LASTING_TABLE if lasting else _PASSING_TABLE


@dataclass(frozen=True, slots=True)
class IndexSnapshot:
    """The state of an index. The fingerprint changes with everything that may change a ranking, as far as the engine tells.

    `has_outside_words` says that its analysis reads files of the node, or a set of synonyms. The engine does not tell when they
    change.
    """

    fingerprint: str
    one_shard: bool
    has_outside_words: bool = False

    def cache_key(self, body: bytes) -> bytes:
        """The key under which the ranking of the search `body` is cached."""
        return hashlib.sha256(self.fingerprint.encode() + b"\0" + body).digest()


def take_snapshot(engine: Engine, index: str) -> IndexSnapshot:
    """Return the state of every index behind the name `index`.

    It covers the engine's version and each index's settings, mappings, identity, document count and last write. Raises
    EngineUnavailable when the engine or a shard may be back later, and EngineError for other failures.
    """
    with classify_engine_errors():
        engine.count_documents(index)  # An idle shard shows new documents only once it is searched.
        settings = engine.call("GET", f"/{index}/_settings")
        mappings = engine.call("GET", f"/{index}/_mapping")
        stats = engine.call("GET", f"/{index}/_stats/docs", params={"level": "shards"})["indices"]
        version = str(engine.read_info())
    index_settings = {name: response["settings"]["index"] for name, response in settings.items()}
    states = {
        name: [
            {key: value for key, value in values.items() if key not in _VOLATILE_SETTINGS},
            mappings[name],
            *_describe_documents(name, stats.get(name, {}), shards=int(values["number_of_shards"])),
        ]
        for name, values in index_settings.items()
    }
    description = json.dumps([version, index, states], sort_keys=True)
    one_shard = [str(values["number_of_shards"]) for values in index_settings.values()] == ["1"]
    return IndexSnapshot(
        hashlib.sha256(description.encode()).hexdigest(),
        one_shard,
        has_outside_words=any(_reads_outside_words(values.get("analysis", {})) for values in index_settings.values()),
    )


def _reads_outside_words(analysis: Mapping[str, Any]) -> bool:
    """Whether a tokenizer or a filter of these settings takes words from a file or from a set of synonyms."""
    return any(
        name.endswith(_OUTSIDE_SUFFIXES)
        for kind in analysis.values()
        for definition in kind.values()
        for name in definition
    )


def _describe_documents(name: str, stats: Mapping[str, Any], *, shards: int) -> tuple[Any, dict[str, int]]:
    """Return the document counts and the last write of each shard. Raises EngineUnavailable while a shard is starting."""
    last_writes = _find_last_writes(stats.get("shards", {}))
    if len(last_writes) < shards:
        raise EngineUnavailable(f"{len(last_writes)} of the {shards} shards of {name} are ready")
    return stats["primaries"]["docs"], last_writes


def _find_last_writes(shards: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, int]:
    """Return the highest sequence number of each primary shard that is ready."""
    return {
        number: copy["seq_no"]["max_seq_no"]
        for number, copies in shards.items()
        for copy in copies
        if copy["routing"]["primary"] and "seq_no" in copy
    }
