"""`querylift node`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from querylift.index_tools.node.local_node import down as stop
from querylift.index_tools.node.local_node import is_fetched
from querylift.index_tools.node.local_node import status as find
from querylift.index_tools.node.local_node import up as start

_OPTIONS = (
    click.option("--engine", default="opensearch", show_default=True, help="Only opensearch so far."),
    click.option("--version", help="Version of the engine [default: the newest known]."),
    click.option("--name", default="default", show_default=True, help="One of several nodes, each with its own data."),
)


def _which_node(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def node() -> None:
    """A real search engine on this machine, without Docker or an installed Java."""


@node.command()
@_which_node
@click.option("--heap-mb", default=512, show_default=True, type=click.IntRange(min=32), help="Heap of its JVM.")
@click.option("--timeout-s", default=90.0, show_default=True, type=click.FloatRange(min=1), help="Wait so long for it.")
def up(engine: str, version: str | None, name: str, heap_mb: int, timeout_s: float) -> None:
    """Start it unless it runs, and print its URL."""
    if not is_fetched(engine, version):
        click.echo(f"fetching {engine}, up to 85 MB, once (half a minute)", err=True)
    click.echo(start(engine, version, name=name, heap_mb=heap_mb, timeout_s=timeout_s).url)


@node.command()
@_which_node
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def status(ctx: click.Context, engine: str, version: str | None, name: str, as_json: bool) -> None:
    """Print its URL; exit code 1 when it does not run."""
    found = find(engine, version, name=name)
    if as_json:
        click.echo(json.dumps({"running": bool(found), **(asdict(found) if found else {})}, default=str))
    else:
        click.echo(found.url if found else "not running")
    ctx.exit(0 if found else 1)


@node.command()
@_which_node
def down(engine: str, version: str | None, name: str) -> None:
    """Stop it and keep its data."""
    click.echo("stopped" if stop(engine, version, name=name) else "not running")
