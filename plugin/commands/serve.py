"""`querylift serve`: run the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from querylift.plugin.commands.options import config_option, read_settings
from querylift.plugin.errors import QueryliftError
from querylift.plugin.settings import Settings

_log = logging.getLogger("querylift")


@click.command()
@config_option
def serve(config: Path | None) -> None:
    """Run the proxy in front of the engine.

    The proxy runs until it gets SIGINT or SIGTERM. On SIGHUP it reads the settings again, so switching an index on or
    off needs no restart. The setting `workers` makes it several processes.
    """
    early_signals: list[int] = []  # SIGHUP would end a process that has no handler yet
    signal.signal(signal.SIGHUP, lambda number, _frame: early_signals.append(number))
    settings = read_settings(config)
    with contextlib.ExitStack() as stack:
        if settings.workers > 1:
            from querylift.plugin.proxy.workers.shared_folder import open_shared_folder

            folder = stack.enter_context(open_shared_folder())  # before anything imports prometheus_client
        from querylift.plugin.proxy.log_format import start_log

        start_log(settings.log)
        try:
            if settings.workers > 1:
                from querylift.plugin.proxy.workers.serving import serve_workers

                serve_workers(settings, lambda: read_settings(config), _log.info, folder, early_signals)
            else:
                _serve_in_this_process(settings, lambda: read_settings(config), early_signals)
        except QueryliftError as error:
            if settings.log.format == "text":
                raise  # the command prints the sentence
            _log.critical("%s", error)
            sys.exit(error.exit_code)


def _serve_in_this_process(
    settings: Settings, read_settings: Callable[[], Settings], early_signals: Sequence[int]
) -> None:
    import uvloop

    from querylift.plugin.proxy.server import serve_proxy

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_proxy(settings, read_settings, _log.info, early_signals))
