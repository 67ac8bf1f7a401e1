"""`querylift warm`: fill the proxy's cache before users search."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.plugin.cache import cache_key
from querylift.plugin.commands.options import concurrency_option, config_option, generator_option, read_settings
from querylift.plugin.commands.warming_output import run_and_report, show_warming_progress
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.settings import Settings
from querylift.plugin.warming.cache_store import check_cache_outlives_process, open_cache_store
from querylift.plugin.warming.planning import (
    RequestPlanner,
    choose_generator_name,
    make_request_planner,
    plan_warming,
)
from querylift.plugin.warming.query_log import QueryLog, read_query_log
from querylift.plugin.warming.runner import WarmingCounts, WarmingRunner, choose_concurrency, open_generator


@click.command()
@click.argument("queries", type=click.Path(path_type=Path))
@click.option("--index", help="Index that will be searched [default: every index in the settings].")
@generator_option
@concurrency_option
@config_option
def warm(queries: Path, index: str | None, generator: str | None, concurrency: int | None, config: Path | None) -> None:
    """Fill the proxy's cache before users search.

    QUERIES is a file with one query per line, plain or .gz, or - for standard input. A line is a query; a query, a tab
    and a count; or JSON with "query" (or "user_query") and perhaps "count". The most frequent queries come first.

    Queries that are in the cache already are not made again. So when a run was stopped, run the same command again.

    An entry expires cache.ttl_s after it was made (86400 seconds, a day), or cache_ttl_s of the index. Searches and later
    runs do not extend that time.
    """
    from querylift.plugin.generators.factory import make_generator

    settings = read_settings(config)
    name = choose_generator_name(settings, index, option=generator)
    check_cache_outlives_process(settings.cache)
    planner = make_request_planner(settings, name, make_generator(name, settings), index)
    log = read_query_log(queries)
    counts = WarmingCounts()
    concurrency = concurrency or choose_concurrency(settings, name)
    table = settings.find_index_settings(index)
    if table is not None and table.cache_ttl_s is not None:
        settings = settings.model_copy(update={"cache": settings.cache.model_copy(update={"ttl_s": table.cache_ttl_s})})
    run_and_report(_warm_cache(settings, name, log, planner, counts, concurrency), counts)


async def _warm_cache(
    settings: Settings, name: str, log: QueryLog, planner: RequestPlanner, counts: WarmingCounts, concurrency: int
) -> None:
    async with open_generator(settings, name) as generator, open_cache_store(settings.cache, generator) as store:
        plan = plan_warming(log, planner, make_key=lambda request: cache_key(generator, request))
        counts.count_plan(log, plan)
        requests = _limit_to_cache_size(plan.requests, settings)
        with show_warming_progress(len(requests)) as on_done:
            await WarmingRunner(generator, store, counts, concurrency=concurrency).run(requests, on_done)


def _limit_to_cache_size(requests: tuple[ExpansionRequest, ...], settings: Settings) -> tuple[ExpansionRequest, ...]:
    """Return the requests that a cache file keeps, with a warning about the others.

    Past `cache.size` a cache file drops the oldest entries, which would be those of the most frequent queries.
    """
    size = settings.cache.size
    if settings.cache.file is None or len(requests) <= size:
        return requests
    click.echo(
        f"cache.size is {size}, and a cache file keeps no more entries: only the {size} most frequent of "
        f"{len(requests)} queries are warmed; raise cache.size, for serve too",
        err=True,
    )
    return requests[:size]
