"""Metrics for Prometheus. Each proxy has its own registry, so that two proxies in one process do not mix."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from querylift.plugin.cache_faults import OPERATIONS, CacheFaults

_ADDED_SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The metrics of one proxy."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.searches = Counter(
            "querylift_searches", "Searches by outcome and reason", ["outcome", "reason"], registry=self.registry
        )
        self.added_seconds = Histogram(
            "querylift_added_seconds",
            "Time that Querylift added before it sent the search to the engine",
            ["outcome"],
            buckets=_ADDED_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.rejections = Counter(
            "querylift_refused", "Expanded searches that the engine refused", registry=self.registry
        )
        self.pending_generations = Gauge(
            "querylift_generations_pending", "Expansions that are being made now", registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.worker_restarts = Gauge(
            "querylift_worker_restarts", "Restarts of the model's worker process", registry=self.registry,
            multiprocess_mode="livemax",
        )

    def watch_cache(self, faults: CacheFaults) -> None:
        """Show the failed reads and writes of a cache among the metrics."""
        self.registry.register(_CacheErrors(faults))

    def render(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class _CacheErrors(Collector):
    """Reads the counts of a cache's faults whenever the metrics are rendered."""

    def __init__(self, faults: CacheFaults) -> None:
        self._faults = faults

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield one counter, by operation."""
        counter = CounterMetricFamily(
            "querylift_cache_errors", "Reads and writes of the cache that failed", labels=["operation"]
        )
        for operation in OPERATIONS:
            counter.add_metric([operation], self._faults.counts[operation])
        yield counter
