"""What several folders of tests share: real search engines, and the packaged model as a Hugging Face folder.

Each is made once in each process of pytest, when the first test needs it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from querylift.index_tools.node.local_node import run_temporary_node
from querylift.plugin.telemetry import switch_off_telemetry
from tests.helpers.saved_model import SavedModel, save_packaged_model

switch_off_telemetry()  # before a test imports onnxruntime or a library of Hugging Face

# Tiny models gain nothing from a second thread. On a busy machine, threads that wait for each other take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine may take seconds over an example.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")


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


@pytest.fixture(scope="session")
def saved_smollm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SavedModel]:
    """Give SmolLM2-135M as the trainer saves it. Loading it from its GGUF file takes half a minute."""
    saved_model = save_packaged_model(tmp_path_factory.mktemp("base") / "smollm")
    yield saved_model
    shutil.rmtree(saved_model.folder)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument. Compressed bytes hold the time, and every process must collect the same names."""
    return argname if isinstance(val, bytes) else None


def pytest_unconfigure() -> None:
    """Close the files that llama_cpp opens on import and never closes, because Python would warn about them."""
    if utils := sys.modules.get("llama_cpp._utils"):
        utils.outnull_file.close()
        utils.errnull_file.close()
