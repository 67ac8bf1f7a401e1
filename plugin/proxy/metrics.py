"""Metrics for Prometheus. Each proxy has its own registry, so that two proxies in one process do not mix.

Every value is changed where its event happens and never while the metrics are read, so that several processes can add up
theirs. `docs/reference/metrics.md` describes each metric.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from querylift.plugin.cache_faults import OPERATIONS, CacheFaults
from querylift.plugin.generation_meter import GenerationFailure, GenerationMeter

_ADDED_SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_GENERATION_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one proxy.

    Labels have few values: tables and generators of the settings, outcomes and reasons. The histogram of added seconds
    has 15 series for each table, so it is not divided by outcome too.
    """

    def __init__(self) -> None:
        # Otherwise each counter would have a second series, with the time of its first event.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        self.registry = registry
        self.searches = Counter(
            "querylift_searches",
            "Searches by settings table, outcome and reason",
            ["index", "outcome", "reason"],
            registry=registry,
        )
        self.added_seconds = Histogram(
            "querylift_added_seconds",
            "Time that Querylift added before it sent the search to the engine",
            ["index"],
            buckets=_ADDED_SECONDS_BUCKETS,
            registry=registry,
        )
        self.rejections = Counter(
            "querylift_refused", "Expanded searches that the engine refused", ["index"], registry=registry
        )
        self.generation_seconds = Histogram(
            "querylift_generation_seconds",
            "Time that a generator took for an expansion, its queue included",
            ["generator"],
            buckets=_GENERATION_SECONDS_BUCKETS,
            registry=registry,
        )
        self.generation_failures = Counter(
            "querylift_generation_failures",
            "Expansions that a generator refused because too many wait (busy), or did not make (failed)",
            ["generator", "reason"],
            registry=registry,
        )
        self.pending_generations = Gauge(
            "querylift_generations_pending",
            "Expansions that are under way now",
            ["generator"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.waiting_generations = Gauge(
            "querylift_generations_waiting",
            "Expansions that wait now until the generator has a place for them",
            ["generator"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.generator_restarts = Counter(
            "querylift_generator_restarts",
            "Restarts of a generator's worker process",
            ["generator"],
            registry=registry,
        )
        self.cache_errors = Counter(
            "querylift_cache_errors", "Reads and writes of the cache that failed", ["operation"], registry=registry
        )
        self.query_records = Counter(
            "querylift_query_records",
            "Query records by destination and fate: written, refused by the engine, or dropped",
            ["destination", "fate"],
            registry=registry,
        )

    def watch_cache(self, faults: CacheFaults) -> None:
        """Count the failed reads and writes of a cache: those that it had when it started, and those to come."""
        counters = {operation: self.cache_errors.labels(operation) for operation in OPERATIONS}
        for operation, counter in counters.items():
            counter.inc(faults.counts[operation])
        faults.report_failure = lambda operation: counters[operation].inc()

    def make_generation_meter(self, generator: str) -> GenerationMeter:
        """Return the meter of the generator that has this name in the settings."""
        return CountingMeter(self, generator)

    def render(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class CountingMeter(GenerationMeter):
    """The metrics of one generator. They are looked up once, because a look-up takes as long as counting."""

    def __init__(self, metrics: Metrics, generator: str) -> None:
        self._pending = metrics.pending_generations.labels(generator)
        self._waiting = metrics.waiting_generations.labels(generator)
        self._seconds = metrics.generation_seconds.labels(generator)
        self._restarts = metrics.generator_restarts.labels(generator)
        self._failures = {
            "busy": metrics.generation_failures.labels(generator, "busy"),
            "failed": metrics.generation_failures.labels(generator, "failed"),
        }

    def add_pending(self, change: int) -> None:
        """Change the number of expansions that are under way."""
        self._pending.inc(change)

    def add_waiting(self, change: int) -> None:
        """Change the number of expansions that wait for a place in the generator."""
        self._waiting.inc(change)

    def add_duration(self, duration_s: float) -> None:
        """Add the time of one expansion to the histogram."""
        self._seconds.observe(duration_s)

    def count_failure(self, failure: GenerationFailure) -> None:
        """Count an expansion that was refused or not made."""
        self._failures[failure].inc()

    def count_restart(self) -> None:
        """Count a replaced worker process."""
        self._restarts.inc()
