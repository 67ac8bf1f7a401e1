"""`querylift serve`: run the proxy."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

from querylift.plugin.commands.options import config_option, read_settings


@click.command()
@config_option
def serve(config: Path | None) -> None:
    """Run the proxy in front of the engine.

    The proxy runs until it gets SIGINT or SIGTERM. On SIGHUP it reads the settings again, so switching an index on or
    off needs no restart.
    """
    import uvloop

    from querylift.plugin.proxy.server import serve_proxy

    _log_to_stderr()
    settings = read_settings(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_proxy(settings, lambda: read_settings(config), lambda line: click.echo(line, err=True)))


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
