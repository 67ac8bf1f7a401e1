"""Real search engines, started once for the run and only when a test asks for one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from querylift.index_tools.node.local_node import run_temporary_node


@pytest.fixture(scope="session")
def opensearch() -> Iterator[str]:
    """URL of OpenSearch 3.8.0, or of the engine that QUERYLIFT_TEST_OPENSEARCH names."""
    if given := os.environ.get("QUERYLIFT_TEST_OPENSEARCH"):
        yield given.rstrip("/")
        return
    with run_temporary_node() as node:
        yield node.url


@pytest.fixture(scope="session")
def opensearch2() -> Iterator[str]:
    """URL of OpenSearch 2.19.1."""
    with run_temporary_node(version="2.19.1") as node:
        yield node.url


def pytest_unconfigure() -> None:
    """Close what llama_cpp opens as it is imported and never closes, of which Python would warn as it ends."""
    if utils := sys.modules.get("llama_cpp._utils"):
        utils.outnull_file.close()
        utils.errnull_file.close()
