"""`querylift demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--report", type=click.Path(path_type=Path), help="Where the HTML report goes [default: a new folder].")
def demo(report: Path | None) -> None:
    """Start a real engine and the proxy, search before and after, print a table, stop everything."""
    from querylift.index_tools.demo import demo as run
    from querylift.index_tools.demo import report_path

    run(report or report_path(), click.echo)
