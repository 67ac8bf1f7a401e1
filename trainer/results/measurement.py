"""Measures the rows of a results table on an engine, with the rewrite that is served."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date
from pathlib import Path

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.experiment import Task, find_judging_model
from querylift.index_tools.evaluation.measures import MAIN_MEASURE, evaluate_run
from querylift.index_tools.searching import SearchedRun, expand_all, search_offline
from querylift.plugin.broker import open_broker
from querylift.plugin.errors import SettingsError
from querylift.plugin.flow import ExpansionRules
from querylift.plugin.generators import factory
from querylift.plugin.settings import Settings, enable_index, parse_settings, replace_generator
from querylift.plugin.settings_tables.index import IndexSettings
from querylift.trainer.results.apart_queries import leave_out_sharing_queries
from querylift.trainer.results.collection_notes import EXPANDED_OUTCOMES, list_collection_notes
from querylift.trainer.results.cut_tables import open_cut_table
from querylift.trainer.results.records import CollectionResult, Results, RowResult, SeedResult
from querylift.trainer.results.row_comparison import compare_rows, correct_over_collections
from querylift.trainer.results.table_settings import CollectionSettings, ResultsSettings, RowSettings

DEPTH = 100
"""The number of hits that a search asks for. nDCG@10 and recall@100 look at no more."""


def measure_rows(
    table: ResultsSettings,
    *,
    engine: Engine,
    settings: Settings,
    today: Callable[[], date] = date.today,
    progress: Callable[[int], None] = lambda count: None,
) -> Results:
    """Measure every row on every collection that it has, in the order of `table`.

    The policy of an index comes from its table in `settings`, and the weight from `table`. `progress` is called with the
    number of finished runs. Raises SettingsError before the first search when a corpus, a split or an index is missing.
    """
    tasks = {collection.name: _create_task(collection, engine) for collection in table.collection}
    run_count = 0
    results_by_collection: dict[str, dict[str, RowResult]] = {}
    for name, (task, _) in tasks.items():
        seeds_by_row: dict[str, tuple[SeedResult, ...]] = {}
        for row in table.row:
            weight = row.weight or table.weight
            seeds_by_row[row.name] = tuple(
                _measure_row(row, name, task, engine=engine, settings=settings, weight=weight)
            )
            run_count += len(seeds_by_row[row.name])
            progress(run_count)
        results_by_collection[name] = compare_rows(table.row, seeds_by_row, teacher=table.teacher)
    collections = [
        _make_collection_result(name, *tasks[name], results, table=table, settings=settings)
        for name, results in correct_over_collections(results_by_collection).items()
    ]
    return Results(
        row_names=tuple(row.name for row in table.row),
        collections=tuple(collections),
        engine=str(engine.read_info()),
        date=today().isoformat(),
        weight=table.weight,
        row_weights={row.name: row.weight or table.weight for row in table.row if not row.is_plain},
        teacher=table.teacher,
        notes=table.notes,
    )


def _create_task(collection: CollectionSettings, engine: Engine) -> tuple[Task, tuple[str, ...]]:
    """Return the judged queries of a collection, and notes about those that are left out.

    Raises SettingsError when its index does not exist, or when no query is left.
    """
    corpus = load_corpus(collection.corpus, relevant_from=collection.relevant_from)
    qrels, apart_notes = leave_out_sharing_queries(corpus, corpus.read_qrels(collection.split), collection.apart_from)
    queries = {query_id: text for query_id, text in corpus.read_queries(collection.split).items() if query_id in qrels}
    if not engine.has_index(collection.index):
        raise SettingsError(
            f"collection {collection.name!r}: {engine.url} has no index {collection.index!r}; "
            "make it with `querylift index`, or name another"
        )
    split = collection.split or corpus.split_names[0]
    judged_by = find_judging_model(corpus, split)
    return Task(corpus.name, split, collection.index, queries, qrels, corpus.relevant_from, judged_by), apart_notes


def _make_collection_result(
    name: str,
    task: Task,
    apart_notes: tuple[str, ...],
    results: dict[str, RowResult],
    *,
    table: ResultsSettings,
    settings: Settings,
) -> CollectionResult:
    """Return the results of all rows on a collection, with the notes about them."""
    return CollectionResult(
        name=name,
        task=task,
        query_count=len(next(iter(results.values())).per_query),
        mode=(settings.find_index_settings(task.index) or IndexSettings()).mode,
        rows=results,
        notes=(*apart_notes, *list_collection_notes(results, table.row, table.teacher, judged_by=task.judged_by)),
    )


def _measure_row(
    row: RowSettings, collection: str, task: Task, *, engine: Engine, settings: Settings, weight: float
) -> Iterator[SeedResult]:
    """Yield the result of each seed. Raises SettingsError when the plain search finds no relevant document.

    In that case the index holds another corpus.
    """
    if row.is_plain:
        searched = search_offline(engine, task.queries, index=task.index, depth=DEPTH)
        plain_result = _evaluate_seed(task, searched, collection, generator="")
        if not plain_result.recall_at_100:
            problem = f"no query finds a relevant document on {task.index}; index {task.corpus} there"
            raise SettingsError(f"collection {collection!r}: {problem}")
        yield plain_result
    for opened_generator in _list_generators(row, collection):
        with opened_generator as generator:
            row_settings = _create_row_settings(settings, task.index, generator=generator, weight=weight)
            identity, searched = _search_with_expansions(task, engine, row_settings)
        yield _evaluate_seed(task, searched, collection, generator=identity)


def _list_generators(row: RowSettings, collection: str) -> Iterator[AbstractContextManager[str]]:
    """Yield the name of the generator of each seed. A table that must be cut exists while it is open."""
    if row.generator is not None:
        yield nullcontext(row.generator)
    for path in row.list_tables(collection):
        yield _open_table(path, row.cut_for)


@contextmanager
def _open_table(path: Path, cut_for: str | None) -> Iterator[str]:
    with open_cut_table(path, student=cut_for) if cut_for is not None else nullcontext(path) as table:
        yield f"table:{table}"


def _create_row_settings(settings: Settings, index: str, *, generator: str, weight: float) -> Settings:
    """Return `settings` with expansion on for one index, and without a cache that outlives the run."""
    values = settings.model_dump() | {"cache": {}}
    row_settings = replace_generator(parse_settings(values, source="options"), generator)
    return enable_index(row_settings, index, weight=weight)


def _search_with_expansions(task: Task, engine: Engine, settings: Settings) -> tuple[str, SearchedRun]:
    """Return the identity of the generator, and the run of the rewritten searches."""

    async def expand_and_search() -> tuple[str, SearchedRun]:
        generator = factory.make_generator(settings.generator[0], settings)
        async with open_broker(settings, generator) as broker:
            rules = ExpansionRules(settings, clock=time.monotonic)
            results = await expand_all(task.queries, index=task.index, rules=rules, broker=broker, depth=DEPTH)
        searched = search_offline(engine, task.queries, index=task.index, results=results, depth=DEPTH)
        return generator.identity, searched

    return asyncio.run(expand_and_search())


def _evaluate_seed(task: Task, searched: SearchedRun, collection: str, *, generator: str) -> SeedResult:
    try:
        evaluation = evaluate_run(searched.run, task.qrels, relevant_from=task.relevant_from)
    except ValueError as error:  # No document is graded as high as relevant_from.
        raise SettingsError(f"collection {collection!r} cannot be measured: {error}") from None
    per_query = evaluation.per_query[MAIN_MEASURE]
    outcomes = Counter(searched.outcomes[query_id] for query_id in per_query if query_id in searched.outcomes)
    expanded = sum(outcomes[outcome] for outcome in EXPANDED_OUTCOMES)
    return SeedResult(
        per_query=per_query,
        recall_at_100=evaluation.means["recall_at_100"],
        generator=generator,
        outcomes=dict(outcomes),
        unexpanded=outcomes.total() - expanded,
        refusals=searched.refusals,
    )
