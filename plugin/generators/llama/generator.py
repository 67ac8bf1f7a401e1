"""The generator `llama`: a worker process runs the model, and a supervisor on the event loop keeps one alive."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from querylift.plugin.errors import GeneratorBusy, GeneratorError, QueryliftError, SettingsError
from querylift.plugin.expansion import MAX_TOKENS, PROMPT_VERSION, Expansion, clean_prose, clean_query, parse_output
from querylift.plugin.files import compute_file_digest
from querylift.plugin.generation_meter import GenerationMeter, WaitingLine
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.llama.model_file import check_gguf_magic, check_llama_cpp
from querylift.plugin.generators.llama.worker import WorkerOptions
from querylift.plugin.generators.llama.worker_process import AdapterLaunchError, LaunchError, WorkerProcess
from querylift.plugin.refusals import is_refusal

_log = logging.getLogger("querylift")
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_HEALTHY_S = 60.0
"""A worker that lived for this long, or answered a request, is replaced after the first delay again."""
_CHARS_PER_TOKEN = 20


class LlamaGenerator:
    """Writes passages with the GGUF file `model`, for up to `slots` requests at a time. `queue_size` more may wait.

    `adapter` is a LoRA adapter as GGUF, trained for that model and for this version's prompt. `slot_tokens` holds prompt and
    passage of one request, and so bounds the query; the memory grows with `slots` times `slot_tokens`. `max_seconds` bounds
    one request from the moment when it has a slot.

    llama.cpp's threads wait for each other hundreds of times for each token, so one thread that has to share its core holds
    up all. The engine often runs beside this worker. So there is one thread by default.

    A worker is replaced when requests wait and it shows no sign of life for `hang_s` seconds. A worker that has not loaded
    the model within `start_s` seconds has failed.
    """

    reads_index = False
    uses_account = False
    expected_s = 1.0

    def __init__(
        self,
        model: Path,
        adapter: Path | None = None,
        *,
        threads: int = 1,
        slots: int = 8,
        queue_size: int = 64,
        max_seconds: float = 60.0,
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
        self._max_pending = slots + queue_size
        self._max_chars = slot_tokens * _CHARS_PER_TOKEN
        self._options = WorkerOptions(
            model=str(model.absolute()),
            threads=threads,
            slots=slots,
            slot_tokens=slot_tokens,
            gpu_layers=gpu_layers,
            alive_s=min(1.0, hang_s / 4),
            adapter=str(adapter.absolute()) if adapter else "",
        )
        self._worker: WorkerProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0
        self.meter = GenerationMeter()
        self._line = WaitingLine(slots, lambda change: self.meter.add_waiting(change))
        self.identity = f"llama:{'+'.join(file.name for file in self._files)}"

    @property
    def pid(self) -> int | None:
        """The worker's process id, or None while there is no worker."""
        return self._worker.pid if self._worker else None

    @property
    def pending_count(self) -> int:
        """Number of requests that run or wait."""
        return self._worker.pending_count if self._worker else 0

    @property
    def written_tokens(self) -> int:
        """Number of tokens that the present worker has written for answered requests."""
        return self._worker.written_tokens if self._worker else 0

    async def start(self) -> None:
        """Launch the worker and load the model. Raises SettingsError, MissingExtra."""
        if self._supervisor is not None:
            return
        check_llama_cpp()
        try:
            self._worker = await self._launch_worker()
        except AdapterLaunchError as error:
            raise SettingsError(
                f"the adapter {self._adapter} cannot be used with the model {self._model} ({error}); "
                "name one that was made for both in llama.adapter"
            ) from None
        except LaunchError as error:
            raise SettingsError(
                f"the model {self._model} cannot be used ({error}); give a complete GGUF file that llama.cpp knows"
            ) from None
        self._supervisor = asyncio.create_task(self._supervise_worker(self._worker))

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the words of the model's passage, or None. Raises GeneratorError. Cancelling frees the slot."""
        if not clean_query(request.text):
            return None
        passage = await self.write_passage(request)
        if is_refusal(clean_prose(passage)):
            _log.warning("a query stays without an expansion: the model refused to answer")
            return None
        return parse_output(passage, query=request.text)

    async def write_passage(self, request: ExpansionRequest) -> str:
        """Return the model's text up to the stop string. Raises GeneratorError. Cancelling frees the slot."""
        if self._worker is None or self._worker.has_ended:
            raise GeneratorError("the model's worker is not running; it is being restarted")
        if self._worker.pending_count >= self._max_pending:
            raise GeneratorBusy(f"{self._max_pending} requests already wait for the model")
        if len(request.text) > self._max_chars:
            raise GeneratorError(f"the query is longer than {self._max_chars} characters")
        with self._line.hold_place():
            return await self._worker.write_passage(request.text, max_seconds=self._max_seconds)

    async def close(self) -> None:
        """End the worker. Pending requests fail with GeneratorError."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])
            worker, self._worker = self._worker, None
            if worker is not None:  # the supervisor had not begun when it was cancelled
                await worker.end_process()

    @property
    def _files(self) -> list[Path]:
        return [self._model, *filter(None, [self._adapter])]

    async def _launch_worker(self) -> WorkerProcess:
        """Start a worker with the present contents of the files. Raises SettingsError, LaunchError."""
        await asyncio.to_thread(check_gguf_magic, self._model)
        if self._adapter:
            await asyncio.to_thread(check_gguf_magic, self._adapter, role="adapter")
        try:
            digests = [await asyncio.to_thread(compute_file_digest, file) for file in self._files]
            worker = await WorkerProcess.launch(self._options, hang_s=self._hang_s, start_s=self._start_s)
        except OSError as error:
            raise LaunchError(str(error)) from error
        self.identity = f"llama:{'+'.join(digest[:16] for digest in digests)}:{PROMPT_VERSION}:greedy-{MAX_TOKENS}"
        return worker

    async def _supervise_worker(self, worker: WorkerProcess) -> None:
        """Replace the worker whenever it ends. The delay grows while workers end without having been healthy."""
        clock = asyncio.get_running_loop().time
        delay_s = _FIRST_DELAY_S
        while True:
            started_at_s = clock()
            reason = await worker.run_until_end()
            self._worker = None
            if worker.answered_count or clock() - started_at_s >= _HEALTHY_S:
                delay_s = _FIRST_DELAY_S
            _log.warning("the model's worker ended (%s); a new one starts in %g s", reason, delay_s)
            worker, delay_s = await self._replace_worker(delay_s)

    async def _replace_worker(self, delay_s: float) -> tuple[WorkerProcess, float]:
        """Launch a new worker after `delay_s`, and try again until that succeeds. Return it and the next delay."""
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
            try:
                self._worker = await self._launch_worker()
            except (QueryliftError, LaunchError) as error:
                _log.warning("the model's worker did not start (%s); the next attempt is in %g s", error, delay_s)
                continue
            self.restarts += 1
            self.meter.count_restart()
            return self._worker, delay_s
