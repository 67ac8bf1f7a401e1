"""Writes query records to the places that the settings name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from prometheus_client import Counter

from querylift.plugin.engine.access import build_engine_access
from querylift.plugin.proxy.query_records.file_place import FilePlace
from querylift.plugin.proxy.query_records.index_place import IndexPlace
from querylift.plugin.proxy.query_records.record_queue import RECORD_FATES, RecordFate, RecordPlace, RecordQueue
from querylift.plugin.settings import Settings


class QueryRecorder:
    """Holds one queue for each place. Without a place in the settings, it does nothing and is not active.

    `records` counts records by destination, `file` or `index`, and by their fate.
    """

    def __init__(self, records: Counter) -> None:
        self._records = records
        self._queues: dict[str, tuple[Any, RecordQueue]] = {}
        self._closings: set[asyncio.Task[None]] = set()
        self.is_active = False

    def apply_settings(self, settings: Settings) -> None:
        """Open the places that the settings name now, and close the others in the background.

        Needs a running event loop when there is a place.
        """
        log = settings.log
        self._change_place("file", log.searches_file, lambda path: FilePlace(path))
        self._change_place("index", log.searches_index, partial(_open_index_place, settings))
        self.is_active = bool(self._queues)

    def add_line(self, line: str) -> None:
        """Take a record, as one line of JSON, for every place."""
        for _, queue in self._queues.values():
            queue.add_line(line)

    async def close(self) -> None:
        """Write what waits, for a moment at most, and close the places."""
        closings = [queue.close() for _, queue in self._queues.values()]
        self._queues = {}
        self.is_active = False
        await asyncio.gather(*closings, *self._closings)

    def _change_place(self, destination: str, value: Any, open_place: Callable[[Any], RecordPlace]) -> None:
        old_value, old_queue = self._queues.get(destination, (None, None))
        if value == old_value:
            return
        if old_queue is not None:
            del self._queues[destination]
            self._close_later(old_queue.close())
        if value is not None:
            counters = {fate: self._records.labels(destination, fate) for fate in RECORD_FATES}

            def count_records(fate: RecordFate, count: int) -> None:
                counters[fate].inc(count)

            self._queues[destination] = value, RecordQueue(open_place(value), count_records)

    def _close_later(self, closing: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(closing)
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)


def _open_index_place(settings: Settings, index: str) -> RecordPlace:
    return IndexPlace(settings.engine, index, access=build_engine_access(settings))
