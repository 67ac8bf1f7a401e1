"""`querylift node`: a local search engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from querylift.index_tools.node.local_node import (
    check_node_packages,
    is_engine_fetched,
    read_node_status,
    start_node,
    stop_node,
)

_OPTIONS = (
    click.option(
        "--engine",
        default="opensearch",
        show_default=True,
        help="Name of the engine. Only opensearch is possible so far.",
    ),
    click.option("--version", help="Version of the engine [default: the newest that Querylift knows]."),
    click.option("--name", default="default", show_default=True, help="Name of the node. Every node has its own data."),
)


def _add_node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def node() -> None:
    """Run a real search engine on this machine.

    It needs neither Docker nor an installed Java.
    """


@node.command()
@_add_node_options
@click.option(
    "--heap-mb",
    default=512,
    show_default=True,
    type=click.IntRange(min=32),
    help="Heap size of the Java process, in MB.",
)
@click.option(
    "--timeout-s",
    default=90.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds to wait until it is ready.",
)
def up(engine: str, version: str | None, name: str, heap_mb: int, timeout_s: float) -> None:
    """Start the node if it does not run, and print its URL."""
    if not is_engine_fetched(engine, version):
        check_node_packages(engine, version)
        click.echo(f"downloading {engine}: up to 85 MB, only once, about half a minute", err=True)
    click.echo(start_node(engine, version, name=name, heap_mb=heap_mb, timeout_s=timeout_s).url)


@node.command()
@_add_node_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def status(ctx: click.Context, engine: str, version: str | None, name: str, as_json: bool) -> None:
    """Print the URL of the node. The exit code is 1 when the node does not run."""
    running_node = read_node_status(engine, version, name=name)
    if as_json:
        facts = asdict(running_node) if running_node else {}
        click.echo(json.dumps({"running": running_node is not None, **facts}, default=str))
    else:
        click.echo(running_node.url if running_node else "not running")
    ctx.exit(0 if running_node else 1)


@node.command()
@_add_node_options
def down(engine: str, version: str | None, name: str) -> None:
    """Stop the node and keep its data."""
    click.echo("stopped" if stop_node(engine, version, name=name) else "not running")
