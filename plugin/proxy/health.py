"""Three questions about a proxy: is its process alive, should it get searches, and how are its parts."""

from __future__ import annotations

from typing import Any

from querylift.plugin.proxy.application import Proxy
from querylift.plugin.proxy.upstream import join_failures

ENGINE_CHECK_S = 2.0
"""How long a check waits for the engine."""
Report = tuple[int, dict[str, Any]]
"""The status of an answer, and its JSON object."""


class HealthReporter:
    """Answers the three questions about one proxy. A status of 503 means no."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._has_engine_answered = False

    async def report_life(self) -> Report:
        """Say that the event loop runs. Nobody is asked, so an engine that is down restarts no proxy."""
        return 200, {"status": "alive"}

    async def report_readiness(self) -> Report:
        """Say whether searches should come here: since the engine answered once, until the process is told to stop.

        A proxy listens only when its generators are open, so nothing else has to be awaited.
        """
        if self._proxy.is_draining:
            return 503, {"status": "draining", "reason": "the process was told to stop, and finishes its searches"}
        if not self._has_engine_answered:
            failure = await self._proxy.upstream.find_failure(ENGINE_CHECK_S)
            if failure is not None:
                return 503, {"status": "engine-down", "reason": failure}
            self._has_engine_answered = True
        return 200, {"status": "ready"}

    async def report_health(self) -> Report:
        """Describe the parts. 503 means that no search can be answered now, because the engine does not answer."""
        failures = await self._proxy.upstream.find_node_failures(ENGINE_CHECK_S)
        parts = self._describe_parts()
        if len(failures) > 1:
            parts["nodes"] = {url: failure or "ok" for url, failure in failures.items()}
        failure = join_failures(failures)
        if failure is None:
            return 200, {**parts, "engine": "ok"}
        return 503, {**parts, "status": "engine-down", "engine": failure}

    def _describe_parts(self) -> dict[str, Any]:
        brokers = self._proxy.brokers
        generators = brokers.generators
        return {
            "status": "ok",
            "generators": {name: generator.identity for name, generator in generators.items()},
            "enabled": self._proxy.settings.enabled,
            "generator_restarts": sum(getattr(generator, "restarts", 0) for generator in generators.values()),
            "pending": brokers.pending_count,
            "cache": brokers.cache_faults.describe_state(),
        }
