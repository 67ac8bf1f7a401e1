"""An index for proxies with several workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.engine_index import EngineIndex


@pytest.fixture
def docs(opensearch: str) -> Iterator[str]:
    """Give the URL of an engine with the index `docs`."""
    engine = EngineIndex(opensearch)
    engine.call("DELETE", "/docs?ignore_unavailable=true")
    engine.call("PUT", "/docs", {"settings": {"number_of_replicas": 0, "number_of_shards": 1}})
    engine.call("PUT", "/docs/_doc/1?refresh=true", {"text": "how to download a page"})
    yield opensearch
    engine.call("DELETE", "/docs")
    engine.close()
