"""`querylift demo`: try everything out in one command."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="File for the report [default: in a new folder].",
)
def demo(report: Path | None) -> None:
    """Try it out: one search before and after, and a table.

    The demo starts the engine and a proxy, and searches the Python documentation
    with and without expansion. It prints one search and a table of measures. Then
    it stops everything that it started.
    """
    from querylift.index_tools.demo import make_report_path, run_demo

    run_demo(report or make_report_path(), click.echo)
