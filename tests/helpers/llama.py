"""Runs a test against a started llama generator, and waits for its worker process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.plugin.generators.base import ExpansionRequest, Generator
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.generators.llama.model_file import find_packaged_model

QUERIES = [
    "what causes a rainbow", "how to compress a folder", "vitamin D deficiency symptoms",
    "history of the steam engine", "why do cats purr", "treatment of acute bronchitis",
    "best time to plant tomatoes", "0-dimensional biomaterials lack inductive properties",
    "how are volcanoes formed", "effects of sleep on memory", "what is a black hole", "cheap flights to lisbon",
]  # fmt: skip
Drill = Callable[[LlamaGenerator], Awaitable[None]]


def run_drill(drill: Drill, model: Path | None = None, **options: object) -> None:
    """Run `drill` with a started generator, and assert that no task, file or process outlives it."""

    async def main() -> None:
        generator = LlamaGenerator(model or find_packaged_model(), **{"max_seconds": 120, **options})  # type: ignore[arg-type]
        await generator.start()
        try:
            async with asyncio.timeout(150):
                await drill(generator)
        finally:
            last_pid = generator.pid
            await generator.close()
        assert last_pid is None or not is_running(last_pid)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    open_files = os.listdir("/proc/self/fd")
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) <= len(open_files)


def read_start_error(model: Path, **options: object) -> str:
    """Return the error of a generator that cannot start."""
    with pytest.raises(SettingsError) as caught:
        run_drill(_do_nothing, model, **options)
    return str(caught.value)


async def _do_nothing(generator: LlamaGenerator) -> None:
    pass


async def write_text(generator: Generator, query: str) -> str:
    """Return the expansion's text; "" when there is none."""
    expansion = await generator.expand(ExpansionRequest(query))
    return expansion.text if expansion else ""


async def write_texts(generator: Generator, queries: Sequence[str]) -> list[str]:
    """Return the expansions' texts for queries that are sent all at once."""
    return list(await asyncio.gather(*(write_text(generator, query) for query in queries)))


async def wait_until_it_writes(generator: Generator) -> None:
    """Return when the generator has written a text."""
    while True:
        try:
            assert await write_text(generator, "what causes a rainbow")
            return
        except GeneratorError:
            await asyncio.sleep(0.05)


def get_worker_pid(generator: LlamaGenerator) -> int:
    """Return the process id of a worker that must exist."""
    assert generator.pid is not None
    return generator.pid


def is_running(pid: int) -> bool:
    """Whether the process exists, and is no zombie that waits for a parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def wait_until_gone(pid: int) -> None:
    """Return when the process has ended. Raises TimeoutError after three seconds."""
    async with asyncio.timeout(3):
        while is_running(pid):
            await asyncio.sleep(0.02)
