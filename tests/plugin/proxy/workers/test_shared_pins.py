"""Proxies that share a cache file agree on which queries stay without an expansion."""

from __future__ import annotations

from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import run_proxy
from querylift.plugin.shared_pins import SharedPins
from querylift.plugin.testing import ManualClock
from tests.helpers.late_endpoint import find_outcome, run_late_endpoint, wait_for_outcome


@pytest.mark.engine
def test_pages_of_one_query_agree_when_two_processes_answer_them(docs: str, tmp_path: Path) -> None:
    with run_late_endpoint() as endpoint:
        settings = {
            "engine": docs,
            "generator": f"http:{endpoint.url}",
            "index": {"docs": {}},
            "cache": {"file": str(tmp_path / "shared.cache")},
        }
        with run_proxy(settings) as proxy, run_proxy(settings) as other_proxy:
            assert find_outcome(proxy.url) == "late;warming"
            wait_for_outcome(other_proxy.url, "late;pinned", start=10)
            endpoint.release.set()
            wait_for_outcome(proxy.url, "cached")  # the latest first page is expanded, so the later ones must be
            wait_for_outcome(other_proxy.url, "cached", start=10)  # a pin in memory would hold for two minutes
            assert find_outcome(proxy.url, start=10) == "cached"


def test_a_pin_that_another_process_wrote_is_seen_at_once_until_it_ends(tmp_path: Path) -> None:
    clock = ManualClock()
    pins, other_pins = (SharedPins(tmp_path / "pins", clock) for _ in range(2))
    assert other_pins.get("pin:a") is None
    pins.set("pin:a", "late", ttl_s=120)
    assert (other_pins.get("pin:a"), other_pins.get("pin:b")) == ("late", None)
    other_pins.set("pin:a", "", ttl_s=120)
    assert pins.get("pin:a") == ""
    clock.advance(121)
    assert pins.get("pin:a") is None
