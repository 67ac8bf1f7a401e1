"""Records the outcome of each search: always as metrics, and as a log line when the settings ask for one."""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from typing import Any

from querylift.plugin.flow import FlowResult
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.proxy.search_meters import SearchMeters
from querylift.plugin.settings import Settings

SEARCH_LOGGER = "querylift.search"
"""The logger of search records. Each message is one JSON object."""
_log = logging.getLogger("querylift")
_search_log = logging.getLogger(SEARCH_LOGGER)


class Journal:
    """The record of all searches of one proxy."""

    def __init__(self, metrics: Metrics, settings: Settings) -> None:
        self.metrics = metrics
        self.log = settings.log
        self._meters = SearchMeters(metrics, settings)

    def apply_settings(self, settings: Settings) -> None:
        """Use new settings for the log and for the names of indices."""
        self.log = settings.log
        self._meters.apply_settings(settings)

    def record_search(self, index: str | None, result: FlowResult, added_s: float) -> None:
        """Record one search, to which Querylift added `added_s` seconds."""
        if index is None:
            index = result.index  # a point-in-time search, whose index the settings name
        self._meters.count_search(index, result.outcome, added_s)
        if self.log.searches:
            record = _build_record(index, result, added_s, with_text=self.log.query_text)
            _search_log.info("%s", json.dumps(record))

    def record_rejection(self, index: str | None) -> None:
        """Record a rewrite that the engine rejected."""
        self._meters.count_rejection(index)
        _log.warning("the engine refused an expanded search on %s; expansion pauses there", index or "all indices")


def hash_query(text: str) -> str:
    """Return 16 hex digits that stand for a query in logs."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _build_record(index: str | None, result: FlowResult, added_s: float, *, with_text: bool) -> dict[str, Any]:
    """Return a query record in the shape of User Behavior Insights. `user_query` is a hash without `with_text`."""
    return {
        "application": "querylift",
        "query_id": hash_query(result.query),
        "user_query": result.query if with_text else hash_query(result.query),
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "query_attributes": {
            "index": index,
            "outcome": result.outcome.kind,
            "reason": result.outcome.reason,
            "added_ms": round(added_s * 1000, 3),
            "expansion_words": result.expansion.count_words() if result.expansion else 0,
            "expansion_documents": len(result.expansion.documents) if result.expansion else 0,
        },
    }
