"""What a cache could not read or write: counted for the metrics, and said once in the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from querylift.plugin.warning_pause import WarningPause

_log = logging.getLogger("querylift")

Operation = Literal["read", "write"]
OPERATIONS: tuple[Operation, ...] = ("read", "write")
_MAX_REASON_CHARS = 200
_S_BETWEEN_WARNINGS = 60


class CacheFaults:
    """The failed reads and writes of one cache. `cache_name` stands in the log, so it must hold no password.

    The first failure of an outage is a warning, and its end is a line too. There is at most one warning a minute.
    `clock` gives seconds. A command that reports the faults itself sets `is_logged` to False. `report_failure` is told of
    each failure.
    """

    def __init__(self, cache_name: str, clock: Callable[[], float]) -> None:
        self.cache_name = cache_name
        self.is_logged = True
        self.report_failure: Callable[[Operation], None] = lambda operation: None
        self.counts: Counter[Operation] = Counter()
        self._reasons: dict[Operation, str] = {}
        self._warning_pause = WarningPause(_S_BETWEEN_WARNINGS, clock)

    def describe_state(self) -> str:
        """Return "ok", or what fails now and why: "writes fail: OOM command not allowed"."""
        if set(self._reasons) == set(OPERATIONS) and len(set(self._reasons.values())) == 1:
            return f"reads and writes fail: {self._reasons['read']}"
        return "; ".join(f"{operation}s fail: {self._reasons[operation]}" for operation in self._reasons) or "ok"

    def record_failure(self, operation: Operation, reason: str, *, stops: Sequence[Operation] = ()) -> None:
        """Count a failure. `stops` are the operations that do not work now, in place of the failed one alone."""
        self.counts[operation] += 1
        self.report_failure(operation)
        old_reasons = dict(self._reasons)
        one_line = " ".join(reason.split())[:_MAX_REASON_CHARS] or "no reason given"
        self._reasons |= dict.fromkeys(stops or (operation,), one_line)
        is_new = self._reasons.keys() != old_reasons.keys()
        if self.is_logged and is_new and self._warning_pause.take_turn():
            _log.warning("%s: %s; expansions are made without it", self.cache_name, self.describe_state())

    def record_success(self, operation: Operation) -> None:
        """Note that an operation works. Log it when nothing fails any more."""
        if self._reasons.pop(operation, None) is not None and not self._reasons:
            _log.info("%s works again", self.cache_name)
