"""The index that the tests of the rewrite on a real engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.engine_index import EngineIndex, build_document, build_mappings


@pytest.fixture(scope="module", params=["opensearch", "opensearch2"])
def index(request: pytest.FixtureRequest) -> Iterator[EngineIndex]:
    """Yield the index on each engine in turn."""
    engine_index = EngineIndex(request.getfixturevalue(request.param))
    engine_index.call("DELETE", "/dsl")
    status, answer = engine_index.call(
        "PUT", "/dsl", {"settings": {"number_of_replicas": 0}, "mappings": build_mappings()}
    )
    assert status == 200, answer
    lines = [line for i in range(40) for line in ({"index": {"_id": str(i)}}, build_document(i))]
    assert not engine_index.call("POST", "/dsl/_bulk?refresh=true", lines)[1]["errors"]
    yield engine_index
    engine_index.call("DELETE", "/dsl")
    engine_index.close()
