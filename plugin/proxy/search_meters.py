"""The metrics of searches, by the table of the settings that governs each."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from querylift.plugin.outcome import Outcome
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.search_memory import ExpressionMemory
from querylift.plugin.settings import Settings

OTHER_INDEX = "other"
"""The label of searches that no table of the settings governs. Clients choose index names, so there may be any number."""
_SHOWN_OUTCOMES = (
    Outcome("expanded"),
    Outcome("cached"),
    Outcome("late", "budget"),
    Outcome("error", "generator"),
    Outcome("error", "internal"),
    Outcome("error", "engine"),
)
"""Every table shows a count of these from the start, so that the first one is an increase for Prometheus."""


class SearchMeters:
    """Counts searches. Labels are looked up once for each, because a look-up takes as long as counting."""

    def __init__(self, metrics: Metrics, settings: Settings) -> None:
        self._metrics = metrics
        self._meters: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self.apply_settings(settings)

    def apply_settings(self, settings: Settings) -> None:
        """Use the tables of new settings."""
        self._labels = ExpressionMemory(
            lambda index: settings.find_index_table_name(index) or OTHER_INDEX, unknown=OTHER_INDEX
        )
        for name in settings.index:
            self._metrics.rejections.labels(name)
            for outcome in _SHOWN_OUTCOMES:
                self._metrics.searches.labels(name, outcome.kind, outcome.reason)

    def count_search(self, index: str | None, outcome: Outcome, added_s: float) -> None:
        """Count one search on an index expression, to which Querylift added `added_s` seconds."""
        label = self.find_label(index)
        meters = self._meters.get((label, outcome.kind, outcome.reason))
        if meters is None:
            counter = self._metrics.searches.labels(label, outcome.kind, outcome.reason)
            meters = self._meters[label, outcome.kind, outcome.reason] = (
                counter,
                self._metrics.added_seconds.labels(label),
            )
        searches, added_seconds = meters
        searches.inc()
        added_seconds.observe(added_s)

    def count_rejection(self, index: str | None) -> None:
        """Count a rewrite that the engine rejected."""
        self._metrics.rejections.labels(self.find_label(index)).inc()

    def find_label(self, index: str | None) -> str:
        """Return the name of the table that governs searches on the index expression, or `other`."""
        return self._labels.get(index)
