"""Real search engines. Each starts once for all tests, when the first test needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from querylift.index_tools.node.local_node import run_temporary_node
from querylift.plugin.telemetry import switch_off_telemetry

switch_off_telemetry()  # before a test imports onnxruntime or a library of Hugging Face


@pytest.fixture(scope="session")
def opensearch() -> Iterator[str]:
    """Give the URL of OpenSearch 3.8.0, or of the engine that QUERYLIFT_TEST_OPENSEARCH names."""
    if url := os.environ.get("QUERYLIFT_TEST_OPENSEARCH"):
        yield url.rstrip("/")
        return
    with run_temporary_node() as node:
        yield node.url


@pytest.fixture(scope="session")
def opensearch2() -> Iterator[str]:
    """Give the URL of OpenSearch 2.19.1."""
    with run_temporary_node(version="2.19.1") as node:
        yield node.url


def pytest_unconfigure() -> None:
    """Close the files that llama_cpp opens on import and never closes, because Python would warn about them."""
    if utils := sys.modules.get("llama_cpp._utils"):
        utils.outnull_file.close()
        utils.errnull_file.close()
