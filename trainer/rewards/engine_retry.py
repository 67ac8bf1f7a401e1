"""Retries of engine requests: which errors may pass, and how long the same request is sent again.

An engine that never answered is not retried. Its URL is probably mistyped, or nobody has started it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from querylift.plugin.errors import EngineError, SettingsError

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
"""With these statuses the engine may accept the same request later."""
FATAL_STATUSES = frozenset({401, 403, 404})
"""With these statuses every request to the same index fails."""
_T = TypeVar("_T")


class EngineUnavailable(EngineError):
    """The engine does not answer, or is overloaded. The same request may succeed later."""


class EngineUnreachable(EngineUnavailable):
    """Nothing answers at the engine's URL, not even with an error status."""


class RequestRejected(EngineError):
    """The engine rejects this one request, and will reject it again."""


@contextmanager
def classify_engine_errors() -> Iterator[None]:
    """Turn an EngineError of the block into EngineUnavailable or RequestRejected.

    Failures of the login, of TLS and of the index name stay EngineErrors, because no retry mends them.
    """
    try:
        yield
    except (EngineUnavailable, RequestRejected):
        raise
    except EngineError as error:
        status = getattr(error.__cause__, "status_code", None)
        if _is_tls_error(error.__cause__) or status in FATAL_STATUSES:
            raise
        if isinstance(status, int) and status not in RETRYABLE_STATUSES:
            raise RequestRejected(str(error)) from error
        engine_is_there = isinstance(status, int) or _is_timeout(error.__cause__)
        raise (EngineUnavailable if engine_is_there else EngineUnreachable)(str(error)) from error


def _is_tls_error(cause: object) -> bool:
    from opensearchpy.exceptions import SSLError

    return isinstance(cause, SSLError)


def _is_timeout(cause: object) -> bool:
    from opensearchpy.exceptions import ConnectionTimeout

    return isinstance(cause, ConnectionTimeout)


def silence_client_log() -> None:
    """Stop the client from logging a traceback for every failed attempt. `EngineRetry` reports a failure once."""
    logging.getLogger("opensearch").setLevel(logging.CRITICAL)


class EngineRetry:
    """Waits for an engine that became unavailable, twice as long after every try.

    It gives up with EngineError when no request succeeded for `patience_s`. It gives up at once with SettingsError when
    the engine never answered. `say` gets a sentence for the user before every wait, and one when the engine is back.
    """

    def __init__(
        self,
        patience_s: float = 600,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._patience_s = patience_s
        self._sleep = sleep
        self._clock = clock
        self._say = say
        self._has_answered = False
        self._unavailable_since: float | None = None
        self._delay_s = _FIRST_DELAY_S

    def call_until_answered(self, request: Callable[[], _T]) -> _T:
        """Return the result of `request`, and call it again while it raises EngineUnavailable.

        Raises EngineError and SettingsError as `wait_for_engine` does.
        """
        while True:
            try:
                result = request()
            except EngineUnavailable as error:
                self.wait_for_engine(error)
            else:
                self.record_answer()
                return result

    def wait_for_engine(self, error: EngineUnavailable) -> None:
        """Sleep before the next try, and say so.

        Raises EngineError when the wait would exceed the patience, and SettingsError when the engine never answered.
        """
        if isinstance(error, EngineUnreachable) and not self._has_answered:
            raise SettingsError(str(error))
        self._has_answered = True
        now_s = self._clock()
        self._unavailable_since = now_s if self._unavailable_since is None else self._unavailable_since
        if now_s + self._delay_s - self._unavailable_since > self._patience_s:
            raise EngineError(
                f"{error}; gave up after {self._patience_s:g} s; run the same command again, finished searches are kept"
            )
        self._say(f"{error}; next try in {self._delay_s:g} s")
        self._sleep(self._delay_s)
        self._delay_s = min(self._delay_s * 2, _LONGEST_DELAY_S)

    def record_answer(self) -> None:
        """Note that the engine answered. The next wait is short again."""
        if self._unavailable_since is not None:
            self._say("the engine is back")
        self._has_answered = True
        self._unavailable_since, self._delay_s = None, _FIRST_DELAY_S
