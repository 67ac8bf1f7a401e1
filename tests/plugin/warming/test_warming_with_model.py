"""Warming with the real model."""

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.generators.llama.model_file import find_packaged_model
from querylift.plugin.warming.runner import WarmingCounts, WarmingRunner
from tests.helpers.warming import QUERIES, MemoryStore, make_requests, read_expansions
from tests.helpers.warming_commands import (
    make_popen_options,
    read_cache_values,
    run_querylift,
    wait_until,
    write_log,
    write_settings,
)

pytestmark = pytest.mark.model


def test_a_killed_run_is_resumed_and_served_searches_find_its_expansions(tmp_path: Path) -> None:
    write_settings(tmp_path, "llama", tables="[llama]\nslots = 2\n")
    write_log(tmp_path, *QUERIES[:6])
    with subprocess.Popen(cwd=tmp_path, stdout=subprocess.DEVNULL, **make_popen_options("warm", "log.txt")) as process:
        assert wait_until(lambda: len(read_cache_values(tmp_path)) >= 2, timeout_s=150)
        process.kill()
    stored_count = len(read_cache_values(tmp_path))
    second_result = run_querylift(tmp_path, "warm", "log.txt")
    assert second_result.returncode == 0, second_result.stderr
    assert (
        f"6 distinct: {6 - stored_count} made, {stored_count} already there, 0 skipped, 0 failed;"
        in second_result.stdout
    )
    for query in QUERIES[:2]:
        explanation = json.loads(run_querylift(tmp_path, "explain", query, "--index", "docs", "--json").stdout)
        assert explanation["outcome"] == "cached"
    export_result = run_querylift(tmp_path, "export-table", "log.txt", "--out", "t.jsonl")
    assert "0 made, 6 already there" in export_result.stdout
    assert sorted(json.loads(value)["text"] for value in read_cache_values(tmp_path)) == sorted(
        expansion.text for expansion in read_expansions(tmp_path / "t.jsonl", *QUERIES[:6]) if expansion
    )


def test_a_table_serves_the_words_that_the_model_wrote(tmp_path: Path) -> None:
    write_settings(tmp_path, "llama:base", cache=False)
    write_log(tmp_path, *QUERIES[-8:])
    result = run_querylift(tmp_path, "export-table", "log.txt", "--out", "t.jsonl")
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "t.jsonl: 8 queries"), result.stderr

    async def generate_all() -> list[Expansion | None]:
        generator = LlamaGenerator(find_packaged_model(), max_seconds=200)
        await generator.start()
        try:
            return list(await asyncio.gather(*(generator.expand(ExpansionRequest(query)) for query in QUERIES[-8:])))
        finally:
            await generator.close()

    assert read_expansions(tmp_path / "t.jsonl", *QUERIES[-8:]) == asyncio.run(generate_all())


def test_a_model_that_is_busy_loses_no_query() -> None:
    """More requests are under way than the model has slots and queue places, so the generator is busy."""

    async def main() -> None:
        generator = LlamaGenerator(find_packaged_model(), slots=2, queue_size=1, max_seconds=200)
        store, counts = MemoryStore(), WarmingCounts()
        await generator.start()
        try:
            await WarmingRunner(generator, store, counts, concurrency=8).run(make_requests(*QUERIES[:6]), lambda: None)
        finally:
            await generator.close()
        assert sorted(store.saved_queries) == sorted(QUERIES[:6])
        assert (counts.made_count, counts.failed_count) == (6, 0)

    asyncio.run(main())


def test_a_worker_process_that_is_killed_loses_no_query() -> None:
    async def main() -> None:
        generator = LlamaGenerator(find_packaged_model(), slots=2, max_seconds=200)
        store, counts = MemoryStore(), WarmingCounts()
        runner = WarmingRunner(generator, store, counts, concurrency=4)
        await generator.start()
        try:
            run = asyncio.ensure_future(runner.run(make_requests(*QUERIES[:8]), lambda: None))
            while len(store.saved_queries) < 3:
                await asyncio.sleep(0.02)
            os.kill(generator.pid or 0, signal.SIGKILL)
            await run
        finally:
            await generator.close()
        assert sorted(store.saved_queries) == sorted(QUERIES[:8])
        assert (counts.made_count, counts.failed_count, generator.restarts) == (8, 0, 1)

    asyncio.run(main())
