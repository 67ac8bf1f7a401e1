"""Counters for Prometheus. One registry per proxy, so that two in one process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_ADDED_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """What the served path counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.searches = Counter(
            "querylift_searches", "Searches by what became of them", ["outcome", "reason"], registry=self.registry
        )
        self.added = Histogram(
            "querylift_added_seconds",
            "Time that Querylift added before the engine was asked",
            ["outcome"],
            buckets=_ADDED_S,
            registry=self.registry,
        )
        self.refused = Counter("querylift_refused", "Expanded searches that the engine refused", registry=self.registry)
        self.pending = Gauge("querylift_generations_pending", "Expansions being made", registry=self.registry)
        self.restarts = Gauge("querylift_worker_restarts", "Restarts of the model's worker", registry=self.registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
