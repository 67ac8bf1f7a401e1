"""The sub-commands that make expansions ahead of traffic: warm, export-table."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.plugin.commands.serve import config_option, settings_of
from querylift.plugin.errors import GeneratorError, SettingsError

if TYPE_CHECKING:
    from querylift.plugin.settings import Settings
    from querylift.plugin.warming.precompute import AsServed, Tally
    from querylift.plugin.warming.query_log import QueryLog

_concurrency = click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Expansions under way [default: the model's slots and queue; 16 for other generators].",
)


@click.command()
@click.argument("queries", type=click.Path(path_type=Path))
@click.option("--index", help="Index to which the searches would go [default: any that the settings list].")
@_concurrency
@config_option
def warm(queries: Path, index: str | None, concurrency: int | None, config: Path | None) -> None:
    """Fill the proxy's cache with the expansions of QUERIES, ahead of traffic.

    QUERIES, plain or .gz, - for standard input, has a line for each: the query; the query, a tab and a count; or JSON with
    "query". The most frequent come first. What the cache holds already is not made again, so a run that was stopped goes
    on where it was.

    An entry expires cache.ttl_s (86400, a day) after it was made, however often it is asked for or warmed in between.
    """
    from querylift.plugin.generators import factory
    from querylift.plugin.warming import precompute
    from querylift.plugin.warming.query_log import read_queries
    from querylift.plugin.warming.stores import check_outlives

    settings = settings_of(config)
    check_outlives(settings.cache)
    served = precompute.as_served(settings, factory.make(settings.generator, settings), index)
    log = read_queries(queries)
    tally = precompute.Tally()
    _run(_warm(settings, log, served, tally, concurrency or precompute.lanes(settings)), tally)


@click.command("export-table")
@click.argument("queries", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The table to write, JSON lines or .gz.")
@_concurrency
@config_option
def export_table(queries: Path, out: Path, concurrency: int | None, config: Path | None) -> None:
    """Write the expansions of QUERIES as a table, for machines without a model: generator = "table:FILE".

    QUERIES is what `querylift warm` reads. A table knows no letter case: of queries that differ in nothing else, the
    more frequent one's expansion serves all. What cache.file or cache.url holds is taken from there.

    Until it is done the table is FILE.part, with which the same command goes on.
    """
    from querylift.plugin.generators import factory
    from querylift.plugin.warming import precompute
    from querylift.plugin.warming.query_log import read_queries
    from querylift.plugin.warming.stores import check_outlives, part_of

    settings = settings_of(config)
    if _has_cache(settings):
        check_outlives(settings.cache)
    if factory.make(settings.generator, settings).reads_index:
        raise SettingsError(
            f"generator is {settings.generator!r}, whose words depend on the index, which a table does not know"
        )
    if out.exists() and not part_of(out).exists():
        raise SettingsError(f"{out} exists; delete it, or name another --out")
    log = read_queries(queries)
    tally = precompute.Tally()
    served = precompute.AsServed.anywhere(settings.index.values())
    _run(_export(settings, log, served, tally, out=out, lanes=concurrency or precompute.lanes(settings)), tally)


async def _warm(settings: Settings, log: QueryLog, served: AsServed, tally: Tally, lanes: int) -> None:
    from querylift.plugin.cache import key_of
    from querylift.plugin.warming import precompute
    from querylift.plugin.warming.stores import cache_store

    async with precompute.started(settings) as generator, cache_store(settings.cache, generator) as store:
        plan = precompute.plan(log, served, key=lambda ask: key_of(generator, ask))
        tally.begin(log, plan)
        asks = _that_fit(plan.asks, settings)
        with _bar(len(asks)) as on_done:
            await precompute.Maker(generator, store, tally, lanes=lanes).run(asks, on_done)


def _that_fit(asks: tuple[Any, ...], settings: Settings) -> tuple[Any, ...]:
    """Those that a cache file keeps: past `size` it forgets the oldest, which would be the most frequent queries."""
    size = settings.cache.size
    if settings.cache.file is None or len(asks) <= size:
        return asks
    click.echo(
        f"cache.size is {size}, and the cache file keeps no more than that: of {len(asks)} queries only the {size} most "
        "frequent are made; raise it, for serve too",
        err=True,
    )
    return asks[:size]


async def _export(settings: Settings, log: QueryLog, served: AsServed, tally: Tally, *, out: Path, lanes: int) -> None:
    from querylift.plugin.warming import precompute
    from querylift.plugin.warming.stores import TableStore, opened, table_key

    async with contextlib.AsyncExitStack() as stack:
        generator = await stack.enter_async_context(precompute.started(settings))
        cache = await stack.enter_async_context(opened(settings.cache, size=1)) if _has_cache(settings) else None
        store = TableStore(out, generator, cache=cache)
        stack.callback(store.close)
        plan = precompute.plan(log, served, key=table_key)
        tally.begin(log, plan)
        with _bar(len(plan.asks)) as on_done:
            await precompute.Maker(generator, store, tally, lanes=lanes).run(plan.asks, on_done)
        click.echo(f"{out}: {store.finish(plan.asks, whole=not tally.failed)} queries")


def _has_cache(settings: Settings) -> bool:
    return settings.cache.url is not None or settings.cache.file is not None


def _run(making: Coroutine[Any, Any, None], tally: Tally) -> None:
    """Run to the end, or to Ctrl-C, and say what came of it; exit code 1 where a query failed, 130 where stopped."""
    try:
        asyncio.run(making)
    except KeyboardInterrupt:
        click.get_current_context().exit(130)
    finally:
        if tally.distinct:
            click.echo(tally.line())
    if tally.failed:
        raise GeneratorError(
            f"{tally.failed} of {tally.distinct} queries failed, the first one because {tally.first_failure}; "
            "the same command tries them again"
        )


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; called once for each that is done."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=total, label="expansions", file=sys.stderr) as bar:
        yield lambda: bar.update(1)
