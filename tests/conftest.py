"""Real search engines, started once for the run and only when a test asks for one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from index_tools.node import temporary_node


@pytest.fixture(scope="session")
def opensearch() -> Iterator[str]:
    """URL of OpenSearch 3.8.0, or of the engine that QUERYLIFT_TEST_OPENSEARCH names."""
    if given := os.environ.get("QUERYLIFT_TEST_OPENSEARCH"):
        yield given.rstrip("/")
        return
    with temporary_node() as node:
        yield node.url


@pytest.fixture(scope="session")
def opensearch2() -> Iterator[str]:
    """URL of OpenSearch 2.19.1."""
    with temporary_node(version="2.19.1") as node:
        yield node.url
