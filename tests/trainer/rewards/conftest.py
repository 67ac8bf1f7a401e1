"""A real engine with the index that rewards are tested on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.settings import parse_settings
from tests.helpers.rewards import DOCUMENTS, INDEX
from tests.index_tools.test_indexing import SmallCorpus


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as client:
        build_index(client, SmallCorpus(DOCUMENTS), IndexPlan(INDEX))
        yield client
        client.call("DELETE", f"/{INDEX}")
