"""No redirect is followed: it could carry a query, a password or a key to another host."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.searching import search_over_http
from querylift.plugin.errors import EngineError, GeneratorError
from querylift.plugin.fast_expander.expander_folder import SourceIndex
from querylift.plugin.fast_expander.index_check import IndexChecker
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.engine_reader import EngineReader
from querylift.plugin.generators.http import HttpGenerator
from querylift.plugin.testing import ScriptedGenerator
from querylift.trainer.teaching.prompts import list_requests
from querylift.trainer.teaching.teacher import ask_teacher
from tests.helpers.teacher_server import QUERIES, make_plan
from tests.helpers.upstream_stub import answer_with, run_proxy, run_stub_engine

SOURCE = SourceIndex(
    index="docs",
    indices=("docs",),
    aliases=(),
    uuids=("u",),
    field="text",
    documents=1,
    in_index=1,
    engine="e",
    probe={"word": ("word",)},
)


async def _ask_endpoint(url: str, folder: Path) -> None:
    generator = HttpGenerator(url, model="m", api_key="secret")
    await generator.start()
    try:
        with pytest.raises(GeneratorError, match="status 307"):
            await generator.expand(ExpansionRequest("a private query"))
    finally:
        await generator.close()


async def _read_engine(url: str, folder: Path) -> None:
    reader = EngineReader(url)
    await reader.start()
    try:
        with pytest.raises(GeneratorError, match="status 307"):
            await reader.search_documents("docs", {"query": {"match": {"text": "a private query"}}})
    finally:
        await reader.close()


async def _check_index(url: str, folder: Path) -> None:
    await IndexChecker(url).check_index(SOURCE, folder)


async def _search_by_run(url: str, folder: Path) -> None:
    with pytest.raises(EngineError):
        await search_over_http(url, {"1": "a private query"}, index="docs")


async def _teach(url: str, folder: Path) -> None:
    plan = make_plan(url)
    with pytest.raises(GeneratorError):
        await ask_teacher(list(list_requests(QUERIES, plan)), plan, folder / "out.jsonl", api_key="secret")


async def _search_through_proxy(url: str, folder: Path) -> None:
    async with run_proxy(url, ScriptedGenerator({})) as proxy, aiohttp.ClientSession() as client:
        async with client.post(proxy.url + "/docs/_search", data=b"{}", allow_redirects=False) as answer:
            assert answer.status == 307


CALLERS: Sequence[Callable[[str, Path], Awaitable[None]]] = (
    _ask_endpoint,
    _read_engine,
    _check_index,
    _search_by_run,
    _teach,
    _search_through_proxy,
)


@pytest.mark.parametrize("call", CALLERS)
def test_a_redirect_to_another_host_is_not_followed(
    call: Callable[[str, Path], Awaitable[None]], tmp_path: Path
) -> None:
    async def main() -> list[Any]:
        async with run_stub_engine(answer_with()) as other_host:
            location = f"Location: http://127.0.0.1:{other_host.port}/stolen\r\n".encode()
            redirect = answer_with(b"{}", status="307 Temporary Redirect", extra=location)
            async with run_stub_engine(redirect) as engine, asyncio.timeout(20):
                await call(f"http://127.0.0.1:{engine.port}", tmp_path)
                assert engine.requests
            return other_host.requests

    assert asyncio.run(main()) == []
