#!/usr/bin/env python3
"""One way to write passages, in a process of its own, for bench/generate: JSON lines in, JSON lines out.

    generators.py SYSTEM {"model": ..., "adapter": ..., "threads": ..., "slots": ..., "slot_tokens": ...}
    in:  {"queries": [...], "clients": 4}     out: {"ready": true}, then {"texts": [...], "seconds": [...], "took_s": ...}

Each client takes the next query when its last one is answered. All systems get the same prompts, write greedily, at most
`MAX_TOKENS` tokens, and end at the same strings.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from processes import json_lines

from querylift.plugin.expansion import MAX_TOKENS, STOP_STRINGS, build_prompt
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.llama.generator import LlamaGenerator

MOST_CLIENTS = 64
Write = Callable[[str], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What all systems share."""

    model: str
    adapter: str
    threads: int
    slots: int
    slot_tokens: int


class Querylift:
    """The served path's own worker, and its event loop."""

    def __init__(self, setup: Setup) -> None:
        adapter = Path(setup.adapter) if setup.adapter else None
        self._generator = LlamaGenerator(
            Path(setup.model), adapter, threads=setup.threads, slots=setup.slots, slot_tokens=setup.slot_tokens
        )
        self.process_id = 0

    async def start(self) -> None:
        await self._generator.start()
        self.process_id = self._generator.pid or 0

    async def write(self, query: str) -> str:
        return await self._generator.write_passage(ExpansionRequest(query))

    async def close(self) -> None:
        await self._generator.close()


class InThreads:
    """A model in this very process, asked by one thread for each client."""

    def __init__(self) -> None:
        self.process_id = os.getpid()

    async def start(self) -> None:
        """Nothing more."""

    async def write(self, query: str) -> str:
        return await asyncio.to_thread(self._ask, query)

    async def close(self) -> None:
        """The process ends."""

    def _ask(self, query: str) -> str:
        raise NotImplementedError


class XLlamaServer(InThreads):
    """llama-server inside the package xllamacpp."""

    def __init__(self, setup: Setup) -> None:
        import xllamacpp  # type: ignore[import-not-found]

        super().__init__()
        params = xllamacpp.CommonParams()
        params.model.path = setup.model
        params.n_parallel = setup.slots
        params.n_ctx = setup.slots * setup.slot_tokens
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = setup.threads
        params.verbosity = 0
        params.no_extra_bufts = False
        if setup.adapter:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(setup.adapter, 1.0)]
        self._server = xllamacpp.Server(params)

    def _ask(self, query: str) -> str:
        asked = {"prompt": build_prompt(query), "n_predict": MAX_TOKENS, "temperature": 0, "stop": list(STOP_STRINGS)}
        answer = self._server.handle_completions(asked)
        if "choices" not in answer:
            raise RuntimeError(f"xllamacpp answered {answer}")
        return str(answer["choices"][0]["text"])


class Locked(InThreads):
    """`llama_cpp.Llama`, which neither batches nor bears two threads, behind a lock."""

    def __init__(self, setup: Setup) -> None:
        from llama_cpp import Llama

        super().__init__()
        self._lock = Lock()
        self._llama = Llama(
            setup.model,
            n_ctx=setup.slot_tokens,
            n_threads=setup.threads,
            n_threads_batch=setup.threads,
            lora_path=setup.adapter or None,
            flash_attn=True,
            verbose=False,
        )

    def _ask(self, query: str) -> str:
        with self._lock:
            answer = self._llama(build_prompt(query), max_tokens=MAX_TOKENS, temperature=0.0, stop=list(STOP_STRINGS))
        return str(answer["choices"][0]["text"])


SYSTEMS: dict[str, Callable[[Setup], Any]] = {
    "querylift": Querylift,
    "xllamacpp.Server": XLlamaServer,
    "llama_cpp.Llama": Locked,
}


async def serve(system: Any, answer: Callable[[dict[str, Any]], None]) -> None:
    """Do what the lines of standard input ask for, one after the other."""
    await system.start()
    answer({"ready": True, "process_id": system.process_id})
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        answer(await drive(system.write, asked["queries"], clients=asked["clients"]))
    await system.close()


async def drive(write: Write, queries: list[str], *, clients: int) -> dict[str, Any]:
    """All queries through `clients` clients: the texts and the seconds of each, in order, and how long it all took."""
    texts, seconds = [""] * len(queries), [0.0] * len(queries)
    left = iter(range(len(queries)))

    async def client() -> None:
        for i in left:
            began_s = time.perf_counter()
            texts[i] = await write(queries[i])
            seconds[i] = time.perf_counter() - began_s

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return {"texts": texts, "seconds": seconds, "took_s": time.perf_counter() - began_s}


def main() -> None:
    """Run the system that the first argument names until standard input ends."""
    answer = json_lines()
    setup = Setup(**json.loads(sys.argv[2]))
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(ThreadPoolExecutor(MOST_CLIENTS))
        runner.run(serve(SYSTEMS[sys.argv[1]](setup), answer))


if __name__ == "__main__":
    main()
