"""An engine that goes away is waited for: which of its errors pass, and how long it is asked again.

One that was never there is not: its URL is mistyped, or nobody has started it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from querylift.plugin.errors import EngineError, SettingsError

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
PASSING = frozenset({429, 502, 503, 504})
"""Statuses of an engine that may answer the same request later."""
OURS = frozenset({401, 403, 404})
"""Statuses that no other request to the same index would do without."""
_T = TypeVar("_T")


class Away(EngineError):
    """The engine does not answer, or has no room just now."""


class Silent(Away):
    """No engine answers at all, not even that it has no room."""


class Refused(EngineError):
    """The engine does not take this request, and will not take it later."""


@contextmanager
def told_apart() -> Iterator[None]:
    """An EngineError of the block that may pass leaves it as Away, one that never will as Refused, our fault as it is."""
    try:
        yield
    except (Away, Refused):
        raise
    except EngineError as error:
        status = getattr(error.__cause__, "status_code", None)
        if _is_tls(error.__cause__) or status in OURS:
            raise
        if isinstance(status, int) and status not in PASSING:
            raise Refused(str(error)) from error
        answers = isinstance(status, int) or _is_late(error.__cause__)
        raise (Away if answers else Silent)(str(error)) from error


def _is_tls(cause: object) -> bool:
    from opensearchpy.exceptions import SSLError

    return isinstance(cause, SSLError)


def _is_late(cause: object) -> bool:
    from opensearchpy.exceptions import ConnectionTimeout

    return isinstance(cause, ConnectionTimeout)


class Patience:
    """Waits for an engine that went away, longer each time; after `patience_s` without one answer it raises EngineError.

    Where no engine has answered yet, it raises SettingsError at once.
    """

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
        self._was_there = False
        self._away_since: float | None = None
        self._delay_s = _FIRST_DELAY_S

    def ask(self, request: Callable[[], _T]) -> _T:
        """What `request` gives, called again for as long as it raises Away. Raises as `wait` does."""
        while True:
            try:
                answer = request()
            except Away as away:
                self.wait(away)
            else:
                self.well()
                return answer

    def wait(self, away: Away) -> None:
        """Sleep, and say so in a sentence.

        Raises EngineError where that would be longer than the patience lasts, SettingsError where the engine never was there.
        """
        if isinstance(away, Silent) and not self._was_there:
            raise SettingsError(str(away))
        self._was_there = True
        now = self._clock()
        self._away_since = now if self._away_since is None else self._away_since
        if now + self._delay_s - self._away_since > self._patience_s:
            raise EngineError(
                f"{away}; waited {self._patience_s:g} s: what was found is kept, so run the same command again"
            )
        self._tell(f"{away}; asking again in {self._delay_s:g} s")
        self._sleep(self._delay_s)
        self._delay_s = min(self._delay_s * 2, _LONGEST_DELAY_S)

    def well(self) -> None:
        """The engine has answered."""
        if self._away_since is not None:
            self._tell("the engine is back")
        self._was_there = True
        self._away_since, self._delay_s = None, _FIRST_DELAY_S
