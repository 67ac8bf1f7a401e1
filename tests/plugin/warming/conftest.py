"""Fixtures for the tests of warming."""

from collections.abc import Iterator

import pytest

from tests.helpers.warming_commands import Endpoint


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An OpenAI-compatible endpoint that stands for the model."""
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()
