"""`querylift export-table`: write expansions as a table, for machines without a model."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from querylift.plugin.commands.options import concurrency_option, config_option, generator_option, read_settings
from querylift.plugin.commands.warming_output import run_and_report, show_warming_progress
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings
from querylift.plugin.warming.cache_store import check_cache_outlives_process, open_lasting_cache
from querylift.plugin.warming.planning import RequestPlanner, choose_generator_name, plan_warming
from querylift.plugin.warming.query_log import QueryLog, read_query_log
from querylift.plugin.warming.runner import WarmingCounts, WarmingRunner, choose_concurrency, open_generator
from querylift.plugin.warming.table_store import TableStore, get_part_path, make_table_key


@click.command("export-table")
@click.argument("queries", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Table to write, as JSON lines or .gz.")
@generator_option
@concurrency_option
@config_option
def export_table(queries: Path, out: Path, generator: str | None, concurrency: int | None, config: Path | None) -> None:
    """Write expansions as a table, to serve without a model.

    QUERIES is a file as for `querylift warm`. Serve the table with the setting generator = "table:FILE".

    A table ignores upper and lower case. When queries differ in nothing else, the expansion of the most frequent one
    serves them all. Expansions that cache.file or cache.url holds are copied.

    Until the table is complete, its rows are in FILE.part. When a run was stopped, run the same command again.
    """
    from querylift.plugin.generators.factory import make_generator

    settings = read_settings(config)
    name = choose_generator_name(settings, option=generator)
    if _has_lasting_cache(settings):
        check_cache_outlives_process(settings.cache)
    if make_generator(name, settings).reads_index:
        raise SettingsError(
            f"generator is {name!r}, which reads the index, but a table serves every index; "
            "use a generator that does not read it"
        )
    if out.exists() and not get_part_path(out).exists():
        raise SettingsError(f"{out} exists; delete it, or name another --out")
    log = read_query_log(queries)
    counts = WarmingCounts()
    concurrency = concurrency or choose_concurrency(settings, name)
    run_and_report(_export_table(settings, name, log, counts, out=out, concurrency=concurrency), counts)


async def _export_table(
    settings: Settings, name: str, log: QueryLog, counts: WarmingCounts, *, out: Path, concurrency: int
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        generator = await stack.enter_async_context(open_generator(settings, name))
        cache = None
        if _has_lasting_cache(settings):
            cache = await stack.enter_async_context(open_lasting_cache(settings.cache, memory_size=1))
        store = TableStore(out, generator, cache=cache)
        stack.callback(store.close)
        planner = RequestPlanner.for_any_index(settings.index.values())
        plan = plan_warming(log, planner, make_key=make_table_key)
        counts.count_plan(log, plan)
        with show_warming_progress(len(plan.requests)) as on_done:
            await WarmingRunner(generator, store, counts, concurrency=concurrency).run(plan.requests, on_done)
        row_count = store.write_table(plan.requests, is_complete=not counts.failed_count)
        click.echo(f"{out}: {row_count} queries")


def _has_lasting_cache(settings: Settings) -> bool:
    return settings.cache.url is not None or settings.cache.file is not None
