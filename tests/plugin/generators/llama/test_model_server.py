"""Several workers of a proxy share one model: its batching, its queue and its restarts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from querylift.plugin.errors import GeneratorBusy, GeneratorError, SettingsError
from querylift.plugin.generators.base import Generator
from querylift.plugin.generators.factory import make_generator, make_ordered_generator
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.generators.llama.model_server import ModelServer
from querylift.plugin.settings import parse_settings
from tests.helpers.llama import QUERIES, wait_until_it_writes, write_text, write_texts

pytestmark = pytest.mark.model
Check = Callable[[list[Generator], list[LlamaGenerator]], Awaitable[None]]


def _run_with_clients(check: Check, folder: Path, *, names: tuple[str, ...] = ("llama", "llama"), **llama: Any) -> None:
    """Run `check` with a started client for each name, and the generators that the server made for them."""

    async def main() -> None:
        made_generators: list[LlamaGenerator] = []

        def make(order: Any) -> Generator:
            generator = make_ordered_generator(order)
            assert isinstance(generator, LlamaGenerator)
            made_generators.append(generator)
            return generator

        models = ModelServer(make)
        server = await models.listen(folder / "model.sock")
        settings = parse_settings({"llama": {"socket": folder / "model.sock", **llama}})
        clients = [make_generator(name, settings) for name in names]
        try:
            async with asyncio.timeout(100):
                await asyncio.gather(*(client.start() for client in clients))
                await check(clients, made_generators)
        finally:
            await asyncio.gather(*(client.close() for client in clients))
            server.close()
            await models.close()
        assert [generator.pid for generator in made_generators] == [None] * len(made_generators)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_two_workers_share_one_model_and_write_what_one_alone_writes(tmp_path: Path) -> None:
    async def check(clients: list[Generator], made: list[LlamaGenerator]) -> None:
        assert len(made) == 1
        assert [client.identity for client in clients] == [made[0].identity] * 2
        texts, other_texts = await asyncio.gather(
            write_texts(clients[0], QUERIES[:3]), write_texts(clients[1], QUERIES[:3])
        )
        assert texts == other_texts == await write_texts(made[0], QUERIES[:3])
        assert all(texts)

    _run_with_clients(check, tmp_path)


def test_each_model_is_run_once(tmp_path: Path) -> None:
    async def check(clients: list[Generator], made: list[LlamaGenerator]) -> None:
        assert len(made) == 2
        assert {client.identity for client in clients} == {generator.identity for generator in made}

    _run_with_clients(check, tmp_path, names=("llama", "llama:base", "llama"))


def test_a_search_that_leaves_frees_the_slot_for_another_worker(tmp_path: Path) -> None:
    async def check(clients: list[Generator], made: list[LlamaGenerator]) -> None:
        leaving = [asyncio.create_task(write_text(clients[0], query)) for query in QUERIES[:2]]
        while made[0].pending_count < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(GeneratorBusy):
            await write_text(clients[1], QUERIES[2])
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        while made[0].pending_count:
            await asyncio.sleep(0.01)
        assert await write_text(clients[1], QUERIES[2])

    _run_with_clients(check, tmp_path, slots=1, queue_size=1)


def test_a_model_that_ends_fails_the_searches_of_all_workers_and_comes_back(tmp_path: Path) -> None:
    async def check(clients: list[Generator], made: list[LlamaGenerator]) -> None:
        waiting = [asyncio.create_task(write_text(client, QUERIES[0])) for client in clients]
        while made[0].pending_count < 2:
            await asyncio.sleep(0.01)
        assert made[0].pid is not None
        os.kill(made[0].pid, signal.SIGKILL)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in errors] == [GeneratorError] * 2
        for client in clients:
            await wait_until_it_writes(client)
            assert getattr(client, "restarts") == 1  # noqa: B009

    _run_with_clients(check, tmp_path)


def test_a_worker_connects_again_when_the_process_that_runs_the_model_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        settings = parse_settings({"llama": {"socket": tmp_path / "model.sock"}})
        client = make_generator("llama", settings)
        for _ in range(2):
            models = ModelServer(make_ordered_generator)
            server = await models.listen(tmp_path / "model.sock")
            await client.start()
            await wait_until_it_writes(client)
            server.close()
            await models.close()
            with pytest.raises(GeneratorError):
                while True:
                    await write_text(client, QUERIES[1])
        await client.close()

    async def run_within_limit() -> None:
        async with asyncio.timeout(100):
            await main()

    asyncio.run(run_within_limit())


def test_what_is_wrong_with_a_model_is_said_to_the_worker(tmp_path: Path) -> None:
    async def check(clients: list[Generator], made: list[LlamaGenerator]) -> None:
        raise AssertionError

    with pytest.raises(SettingsError, match=r"gone\.gguf"):
        _run_with_clients(check, tmp_path, names=(f"llama:{tmp_path}/gone.gguf",))


def test_a_model_that_the_settings_name_later_needs_a_restart(tmp_path: Path) -> None:
    client = make_generator("llama", parse_settings({"llama": {"socket": tmp_path / "none.sock"}}))
    with pytest.raises(
        SettingsError, match=r"generator is 'llama', and no process runs a model .*; restart querylift serve"
    ):
        asyncio.run(client.start())
