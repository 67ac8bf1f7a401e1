"""Writes down what became of each search: metrics always, a log line where the settings ask for one."""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Counter, Histogram

from querylift.plugin.flow import Result
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.settings import LogSettings

_log = logging.getLogger("querylift.search")


class Journal:
    """One per proxy."""

    def __init__(self, metrics: Metrics, log: LogSettings) -> None:
        self.metrics = metrics
        self.log = log
        self._meters: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def search(self, index: str | None, result: Result, added_s: float) -> None:
        """Count one search that took `added_s` seconds on our side."""
        searches, added = self._metered(result.outcome.kind, result.outcome.reason)
        searches.inc()
        added.observe(added_s)
        if self.log.searches:
            _log.info("%s", json.dumps(_record(index, result, added_s, text=self.log.query_text)))

    def _metered(self, kind: str, reason: str) -> tuple[Counter, Histogram]:
        """The meters of an outcome, kept: finding them by label takes as long as counting."""
        found = self._meters.get((kind, reason))
        if found is None:
            found = self.metrics.searches.labels(kind, reason), self.metrics.added.labels(kind)
            self._meters[kind, reason] = found
        return found

    def refused(self, index: str | None) -> None:
        """Count an expanded search that the engine did not take."""
        self.metrics.refused.inc()
        _log.warning("the engine refused an expanded search on %s; expansion pauses there", index or "all indices")


def query_hash(text: str) -> str:
    """16 hex digits that stand for a query in logs."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _record(index: str | None, result: Result, added_s: float, *, text: bool) -> dict[str, Any]:
    """A query record in the shape of User Behavior Insights; `user_query` is a hash unless the settings ask for text."""
    return {
        "application": "querylift",
        "query_id": query_hash(result.text),
        "user_query": result.text if text else query_hash(result.text),
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "query_attributes": {
            "index": index,
            "outcome": result.outcome.kind,
            "reason": result.outcome.reason,
            "added_ms": round(added_s * 1000, 3),
            "expansion_words": result.expansion.size() if result.expansion else 0,
        },
    }
