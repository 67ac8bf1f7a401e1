"""The embedded model: llama.cpp in a worker process, kept alive by a supervisor on the event loop."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from querylift.plugin.errors import Busy, GeneratorError, QueryliftError, SettingsError
from querylift.plugin.expansion import MAX_TOKENS, PROMPT_VERSION, Expansion, clean_query, parse
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.llama.model_file import (
    check_gguf,
    check_llama_cpp,
    default_threads,
    file_digest,
    packaged_model,
)
from querylift.plugin.generators.llama.worker import Options
from querylift.plugin.generators.llama.worker_process import AdapterLaunchError, LaunchError, WorkerProcess

__all__ = ["LlamaGenerator", "packaged_model"]

_log = logging.getLogger("querylift")
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_HEALTHY_S = 60.0
_CHARS_PER_TOKEN = 20


class LlamaGenerator:
    """Writes passages with the GGUF file `model`, up to `slots` at a time; `queue_size` more may wait.

    `adapter` is a LoRA adapter as GGUF, made for that model and for this version's prompt.

    `threads` is by default the physical cores less one. `slot_tokens` holds prompt and passage of one request, so it
    bounds the query; memory grows with `slots` times it. `max_seconds` bounds one request, waiting included. A worker
    that shows no sign of life for `hang_s` seconds while requests wait is replaced; one that is not loaded within
    `start_s` seconds has failed.
    """

    reads_index = False

    def __init__(
        self,
        model: Path,
        adapter: Path | None = None,
        *,
        threads: int | None = None,
        slots: int = 8,
        queue_size: int = 64,
        max_seconds: float = 10.0,
        slot_tokens: int = 256,
        gpu_layers: int = 0,
        hang_s: float = 5.0,
        start_s: float = 120.0,
    ) -> None:
        if slot_tokens < 2 * MAX_TOKENS:
            raise ValueError(f"slot_tokens is {slot_tokens}; a prompt and a passage need at least {2 * MAX_TOKENS}")
        self._model = model
        self._adapter = adapter
        self._hang_s = hang_s
        self._start_s = start_s
        self._max_seconds = max_seconds
        self._most_pending = slots + queue_size
        self._most_chars = slot_tokens * _CHARS_PER_TOKEN
        self._options = Options(
            model=str(model.absolute()),
            threads=threads or default_threads(),
            slots=slots,
            slot_tokens=slot_tokens,
            gpu_layers=gpu_layers,
            alive_s=min(1.0, hang_s / 4),
            adapter=str(adapter.absolute()) if adapter else "",
        )
        self._worker: WorkerProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0
        self.identity = f"llama:{'+'.join(file.name for file in self._files())}"

    @property
    def pid(self) -> int | None:
        """The worker's process id; None while there is none."""
        return self._worker.pid if self._worker else None

    @property
    def pending(self) -> int:
        """Requests under way, waiting ones included."""
        return self._worker.pending if self._worker else 0

    @property
    def tokens(self) -> int:
        """Tokens that the present worker has written, of answered requests."""
        return self._worker.tokens if self._worker else 0

    async def start(self) -> None:
        """Launch the worker and load the model. Raises SettingsError, MissingExtra."""
        if self._supervisor is not None:
            return
        check_llama_cpp()
        try:
            self._worker = await self._launch()
        except AdapterLaunchError as error:
            raise SettingsError(
                f"the adapter {self._adapter} cannot be used with the model {self._model} ({error}); "
                "name one that was made for both in llama.adapter"
            ) from None
        except LaunchError as error:
            raise SettingsError(
                f"the model {self._model} cannot be used ({error}); give a complete GGUF file that llama.cpp knows"
            ) from None
        self._supervisor = asyncio.create_task(self._supervise(self._worker))

    async def expand(self, ask: Ask) -> Expansion | None:
        """The model's passage as words. Raises GeneratorError; a cancelled call frees its slot."""
        if not clean_query(ask.text):
            return None
        return parse(await self.write(ask), query=ask.text)

    async def write(self, ask: Ask) -> str:
        """The passage as the model wrote it, up to the stop rule. Raises GeneratorError; a cancelled call frees its slot."""
        return await self._usable_worker(ask).ask(ask.text, max_seconds=self._max_seconds)

    async def close(self) -> None:
        """End the worker. What still waits fails with GeneratorError."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])
            self._worker = None

    def _usable_worker(self, ask: Ask) -> WorkerProcess:
        if self._worker is None or self._worker.over:
            raise GeneratorError("the model's worker is not running; it is being restarted")
        if self._worker.pending >= self._most_pending:
            raise Busy(f"{self._most_pending} requests already wait for the model")
        if len(ask.text) > self._most_chars:
            raise GeneratorError(f"the query is longer than {self._most_chars} characters")
        return self._worker

    def _files(self) -> list[Path]:
        return [self._model, *filter(None, [self._adapter])]

    async def _launch(self) -> WorkerProcess:
        """A worker with the files as they are now. Raises SettingsError, LaunchError."""
        await asyncio.to_thread(self._check)
        try:
            digests = [await asyncio.to_thread(file_digest, file) for file in self._files()]
            worker = await WorkerProcess.launch(self._options, hang_s=self._hang_s, start_s=self._start_s)
        except OSError as error:
            raise LaunchError(str(error)) from error
        self.identity = f"llama:{'+'.join(digest[:16] for digest in digests)}:{PROMPT_VERSION}:greedy-{MAX_TOKENS}"
        return worker

    def _check(self) -> None:
        check_gguf(self._model)
        if self._adapter:
            check_gguf(self._adapter, role="adapter")

    async def _supervise(self, worker: WorkerProcess) -> None:
        """Replace the worker whenever it ends, each time later while it does nothing useful in between."""
        clock = asyncio.get_running_loop().time
        delay_s = _FIRST_DELAY_S
        while True:
            since = clock()
            reason = await worker.run()
            self._worker = None
            if worker.answered or clock() - since >= _HEALTHY_S:
                delay_s = _FIRST_DELAY_S
            _log.warning("the model's worker ended (%s); a new one starts in %g s", reason, delay_s)
            worker, delay_s = await self._replace(delay_s)

    async def _replace(self, delay_s: float) -> tuple[WorkerProcess, float]:
        """A new worker after `delay_s` or as much later as it takes, and the delay before the next one."""
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
            try:
                self._worker = await self._launch()
            except (QueryliftError, LaunchError) as error:
                _log.warning("the model's worker did not start (%s); again in %g s", error, delay_s)
                continue
            self.restarts += 1
            return self._worker, delay_s
