"""`querylift serve` with several workers: what each process does, and in which order they start."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client.multiprocess import mark_process_dead

from querylift.plugin.errors import QueryliftError, SettingsError
from querylift.plugin.generation_meter import attach_meter
from querylift.plugin.generators.base import Generator
from querylift.plugin.generators.factory import make_ordered_generator
from querylift.plugin.generators.llama.model_server import ModelServer
from querylift.plugin.proxy.address_check import bind_address
from querylift.plugin.proxy.connection_guard import ADMIN_CONNECTIONS, ConnectionLimits
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.proxy.server import (
    check_before_start,
    create_server,
    format_greeting,
    run_servers,
    run_until_stopped,
    stop_server,
)
from querylift.plugin.proxy.settings_reload import keep_settings_in_use, reload_certificate
from querylift.plugin.proxy.workers.child import STOP_SIGNAL, Role
from querylift.plugin.proxy.workers.fair_listener import ConnectionCounts, listen_fairly
from querylift.plugin.proxy.workers.shared_admin import SharedAdmin
from querylift.plugin.proxy.workers.shared_folder import SharedFolder, fit_to_worker
from querylift.plugin.proxy.workers.supervisor import Supervisor
from querylift.plugin.settings import Settings
from querylift.plugin.tls import ServerCertificate

_log = logging.getLogger("querylift")
_SHARED_SETTINGS = ("listen", "admin", "workers")


class SettingsHistory:
    """The settings that a worker may start with, newest first. Each fork of the supervisor takes the state of its moment.

    `first` are those of the start, whose addresses and processes stay. `certificate` is the one that was last read without a
    fault, and None without TLS.
    """

    def __init__(
        self, settings: Settings, read_settings: Callable[[], Settings], certificate: ServerCertificate | None
    ) -> None:
        self._read_settings = read_settings
        self.first = settings
        self.certificate = certificate
        self.candidates = [settings]

    def read_current(self) -> Settings:
        """Return the settings of the file, with those that the processes share as they were. Raises SettingsError."""
        shared = {name: getattr(self.first, name) for name in _SHARED_SETTINGS}
        return self._read_settings().model_copy(update=shared)

    def reload(self) -> None:
        """Remember the settings of the file for the next worker, if they can be read, and the ones before them."""
        with contextlib.suppress(QueryliftError):  # every worker logs it
            settings = keep_settings_in_use(self._read_settings(), self.first, _SHARED_SETTINGS)
            self.candidates = [settings, *self.candidates][:3]
        if self.certificate is not None:
            reload_certificate(self.certificate)


def serve_workers(
    settings: Settings,
    read_settings: Callable[[], Settings],
    announce: Callable[[str], None],
    folder: SharedFolder,
    early_signals: Sequence[int] = (),
) -> None:
    """Serve with several processes until SIGINT or SIGTERM. Raises QueryliftError when one of them cannot start.

    `early_signals` holds a SIGHUP that came before it could be handled. All processes are forked from this one after it has
    loaded what they only read, so that they share that memory.
    """
    if sys.platform != "linux":
        raise SettingsError(f"workers is {settings.workers}, and several workers need Linux; set it to 1")
    fit_to_worker(settings, folder, 1)  # raises now what would be wrong for every worker
    certificate = asyncio.run(check_before_start(settings))
    sockets = bind_address(settings.listen)
    admin_sockets = bind_address(settings.admin) if settings.admin is not None else []
    counts = ConnectionCounts(settings.workers)
    history = SettingsHistory(settings, read_settings, certificate)
    workers = [
        Role(f"worker {number}", partial(_run_worker, number, history, folder, sockets, counts))
        for number in range(1, settings.workers + 1)
    ]
    models = [Role("models", partial(_run_models, folder, sockets))] if _runs_models(settings) else []
    admin_page = Role("admin page", partial(_run_admin, history, folder, sockets, admin_sockets))
    admin_pages = [admin_page] if admin_sockets else []

    def note_end(role: Role, pid: int) -> None:
        mark_process_dead(pid, str(folder.metrics))  # type: ignore[no-untyped-call]
        if role in workers:
            counts.remove(workers.index(role) + 1)

    supervisor = Supervisor(
        # What is wrong with the settings is said once, by the first worker.
        start_stages=[models, workers[:1], workers[1:], admin_pages],
        # The admin page shows how the workers finish their searches, and those may wait for a model.
        stop_stages=[workers, admin_pages, models],
        essential=workers,
        on_start_stopping=partial(_close_sockets, sockets),
        on_reload=history.reload,
        on_end=note_end,
    )
    _load_shared_memory(settings)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # from here on it waits for the supervisor
    if early_signals:
        history.reload()
    supervisor.run(lambda: announce(f"{format_greeting(settings)}, with {settings.workers} workers"))


def _load_shared_memory(settings: Settings) -> None:
    """Load what all workers only read, so that they share it. Raises SettingsError, MissingExtra.

    The libraries must start no thread here, because a thread does not live on in a forked process. One thread is also
    right for the workers, as there is one for each core.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in settings.list_generator_names():
        kind, _, argument = name.partition(":")
        if kind == "expander" and argument:
            from querylift.plugin.generators.fast_expander import preload_expander_model

            preload_expander_model(Path(argument))
    gc.collect()
    gc.freeze()  # otherwise the garbage collector of each worker would write to all objects
    with contextlib.suppress(AttributeError, OSError):  # only the GNU C library has this function
        ctypes.CDLL(None).malloc_trim(0)


def _runs_models(settings: Settings) -> bool:
    return any(name.partition(":")[0] == "llama" for name in settings.list_generator_names())


def _close_sockets(sockets: Sequence[socket.socket]) -> None:
    """Let new connections be refused as soon as the workers accept none."""
    for listener in sockets:
        listener.close()


def _run_worker(
    number: int,
    history: SettingsHistory,
    folder: SharedFolder,
    sockets: Sequence[socket.socket],
    counts: ConnectionCounts,
    announce_ready: Callable[[], None],
) -> None:
    """Serve with the newest settings that work. After a wrong change, those before it still do."""
    for older_count, settings in zip(reversed(range(len(history.candidates))), history.candidates, strict=True):
        try:
            _run_on_event_loop(
                run_servers(
                    fit_to_worker(settings, folder, number),
                    lambda: fit_to_worker(history.read_current(), folder, number),
                    announce_ready,
                    start_listening=lambda server: listen_fairly(server, sockets, counts, number),
                    certificate=history.certificate,
                    stop_signals=[STOP_SIGNAL],
                )
            )
            return
        except QueryliftError as error:
            if not older_count:
                raise
            _log.error("worker %d starts with the settings before the last SIGHUP: %s", number, error)


def _run_admin(
    history: SettingsHistory,
    folder: SharedFolder,
    proxy_sockets: Sequence[socket.socket],
    sockets: Sequence[socket.socket],
    announce_ready: Callable[[], None],
) -> None:
    _close_sockets(proxy_sockets)  # while any process has them open, they take connections
    settings, certificate = history.first, history.certificate
    worker_sockets = [folder.admin_socket(number) for number in range(1, settings.workers + 1)]
    app = SharedAdmin(worker_sockets, folder.metrics)

    async def serve() -> None:
        server = create_server(app, settings.admin or "", ConnectionLimits(ADMIN_CONNECTIONS), certificate)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(STOP_SIGNAL, stop_server, server)
        if certificate is not None:
            loop.add_signal_handler(signal.SIGHUP, reload_certificate, certificate)
        await server.startup(list(sockets))
        announce_ready()
        await run_until_stopped(server)

    _run_on_event_loop(serve())


def _run_models(
    folder: SharedFolder, proxy_sockets: Sequence[socket.socket], announce_ready: Callable[[], None]
) -> None:
    _close_sockets(proxy_sockets)

    async def serve() -> None:
        metrics = Metrics()  # the files of this process are added up with those of the workers

        def make_counted_generator(order: Mapping[str, Any]) -> Generator:
            generator = make_ordered_generator(order)
            attach_meter(generator, metrics.make_generation_meter(order["generator"]))
            return generator

        models = ModelServer(make_counted_generator)
        is_over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(STOP_SIGNAL, is_over.set)
        server = await models.listen(folder.model_socket)
        announce_ready()
        await is_over.wait()
        server.close()
        await models.close()

    _run_on_event_loop(serve())


def _run_on_event_loop(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
