"""What `querylift warm` and `querylift export-table` show: a progress bar, a summary and the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import click

from querylift.plugin.errors import GeneratorError
from querylift.plugin.warming.runner import WarmingCounts


def run_and_report(warming: Coroutine[Any, Any, None], counts: WarmingCounts) -> None:
    """Run until the end or Ctrl-C, and print the summary. Exit with 1 when a query failed, 130 after Ctrl-C."""
    try:
        asyncio.run(warming)
    except KeyboardInterrupt:
        click.get_current_context().exit(130)
    finally:
        if counts.distinct_count:
            click.echo(counts.format_summary())
    if counts.failed_count:
        raise GeneratorError(
            f"{counts.failed_count} of {counts.distinct_count} queries failed, the first one because "
            f"{counts.first_failure}; run the same command again to retry them"
        )


@contextlib.contextmanager
def show_warming_progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere. Call the yielded function after each expansion."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=total, label="expansions", file=sys.stderr) as bar:
        yield lambda: bar.update(1)
