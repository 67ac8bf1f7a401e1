"""`querylift serve`: run the proxy."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

from querylift.plugin.commands.options import config_option, read_settings
from querylift.plugin.errors import QueryliftError

_log = logging.getLogger("querylift")


@click.command()
@config_option
def serve(config: Path | None) -> None:
    """Run the proxy in front of the engine.

    The proxy runs until it gets SIGINT or SIGTERM. On SIGHUP it reads the settings again, so switching an index on or
    off needs no restart.
    """
    import uvloop

    from querylift.plugin.proxy.log_format import start_log
    from querylift.plugin.proxy.server import serve_proxy

    settings = read_settings(config)
    start_log(settings.log)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_proxy(settings, lambda: read_settings(config), _log.info))
    except QueryliftError as error:
        if settings.log.format == "text":
            raise  # the command prints the sentence
        _log.critical("%s", error)
        sys.exit(error.exit_code)
