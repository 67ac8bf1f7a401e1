"""Records the outcome of each search: always as metrics, and as a log line when the settings ask for one."""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Counter, Histogram

from querylift.plugin.flow import FlowResult
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.settings import LogSettings

SEARCH_LOGGER = "querylift.search"
"""The logger of search records. Each message is one JSON object."""
_log = logging.getLogger("querylift")
_search_log = logging.getLogger(SEARCH_LOGGER)


class Journal:
    """The record of all searches of one proxy."""

    def __init__(self, metrics: Metrics, log: LogSettings) -> None:
        self.metrics = metrics
        self.log = log
        self._meters: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def record_search(self, index: str | None, result: FlowResult, added_s: float) -> None:
        """Record one search, to which Querylift added `added_s` seconds."""
        searches, added_seconds = self._get_meters(result.outcome.kind, result.outcome.reason)
        searches.inc()
        added_seconds.observe(added_s)
        if self.log.searches:
            record = _build_record(index, result, added_s, with_text=self.log.query_text)
            if result.assignment is not None:
                result.assignment.add_to_record(record)
            _search_log.info("%s", json.dumps(record))

    def _get_meters(self, kind: str, reason: str) -> tuple[Counter, Histogram]:
        """Return the meters of an outcome. They are cached, because a look-up by label takes as long as counting."""
        meters = self._meters.get((kind, reason))
        if meters is None:
            meters = self.metrics.searches.labels(kind, reason), self.metrics.added_seconds.labels(kind)
            self._meters[kind, reason] = meters
        return meters

    def record_rejection(self, index: str | None) -> None:
        """Record a rewrite that the engine rejected."""
        self.metrics.rejections.inc()
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
