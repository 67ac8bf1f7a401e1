"""Records the outcome of each search: always as metrics, and as a query record where the settings ask for one."""

from __future__ import annotations

import json
import logging

from querylift.plugin.flow import FlowResult
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.proxy.query_records.record import NO_ORIGIN, SearchOrigin, build_query_record
from querylift.plugin.proxy.query_records.recorder import QueryRecorder
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
        self._meters = SearchMeters(metrics, settings)
        self._recorder = QueryRecorder(metrics.query_records)
        self.apply_settings(settings)

    def apply_settings(self, settings: Settings) -> None:
        """Use new settings for the log, for query records and for the names of indices."""
        self._log_settings = settings.log
        self._meters.apply_settings(settings)
        self._recorder.apply_settings(settings)
        self._keeps_records = settings.log.searches or self._recorder.is_active

    def record_search(
        self, index: str | None, result: FlowResult, added_s: float, origin: SearchOrigin = NO_ORIGIN
    ) -> None:
        """Record one search, to which Querylift added `added_s` seconds."""
        if index is None:
            index = result.index  # a point-in-time search names no index
        self._meters.count_search(index, result.outcome, added_s)
        if self._keeps_records:
            with_text = self._log_settings.query_text
            record = build_query_record(index, result, added_s, origin=origin, with_text=with_text)
            line = json.dumps(record)
            if self._log_settings.searches:
                _search_log.info("%s", line)
            self._recorder.add_line(line)

    def find_index_label(self, index: str | None) -> str:
        """Return the name of the settings table that governs searches on the index expression, or `other`."""
        return self._meters.find_label(index)

    def record_rejection(self, index: str | None) -> None:
        """Record a rewrite that the engine rejected."""
        self._meters.count_rejection(index)
        _log.warning("the engine refused an expanded search on %s; expansion pauses there", index or "all indices")

    async def close(self) -> None:
        """Write the query records that wait, for a moment at most."""
        await self._recorder.close()
