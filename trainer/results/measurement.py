"""What every stage brought: rows measured on collections by the rewrite that is served, and what is said of them.

`measure` asks the engine; `cells` is pure: shares of the teacher's result kept, and paired tests over per-query means.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise

from querylift.index_tools.corpora.loading import load
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.comparison import TIE, Comparison, compare
from querylift.index_tools.evaluation.experiment import MEASURE, Task
from querylift.index_tools.evaluation.measures import Evaluation, evaluate, mean
from querylift.index_tools.searching import Searched, expand_all, search_offline
from querylift.plugin.errors import SettingsError
from querylift.plugin.flow import Rules
from querylift.plugin.generators import factory
from querylift.plugin.proxy.server import expander_for
from querylift.plugin.settings import IndexSettings, Settings, check, switched_on
from querylift.trainer.results.table_settings import CollectionSettings, ResultsSettings, RowSettings

DEPTH = 100
"""Hits that a search asks for: all that nDCG@10 and recall@100 look at."""
_APPLIED = ("expanded", "cached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run: a row on a collection with one seed. `per_query` is nDCG@10 by query id.

    `outcomes` counts what became of the queries that are measured, `unexpanded` those that were sent as they were.
    """

    per_query: Mapping[str, float] = field(repr=False)
    recall_at_100: float
    generator: str = ""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    unexpanded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row on one collection. A share is None where there is no teacher to take it of; the plain row has no comparison."""

    seeds: tuple[Measured, ...]
    per_query: Mapping[str, float] = field(repr=False)
    """nDCG@10 by query id, the mean over seeds: what is compared."""
    kept: float | None
    gain_kept: float | None
    against_plain: Comparison | None
    against_above: Comparison | None
    above: str
    """Name of the row that `against_above` compares with; "" where there is none."""

    @property
    def ndcg_at_10(self) -> float:
        """The mean over queries and seeds."""
        return mean(self.per_query.values())

    @property
    def recall_at_100(self) -> float:
        """The mean over queries and seeds."""
        return mean(seed.recall_at_100 for seed in self.seeds)

    @property
    def by_seed(self) -> tuple[float, ...]:
        """nDCG@10 of every seed."""
        return tuple(mean(seed.per_query.values()) for seed in self.seeds)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of nDCG@10 over seeds (n - 1 in the divisor); None for one seed."""
        return statistics.stdev(self.by_seed) if len(self.seeds) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One collection: `cells` by the row's name, without the rows that lack it."""

    name: str
    task: Task = field(repr=False)
    queries: int
    mode: str
    cells: Mapping[str, Cell]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that is printed. `row_weights` holds the weight of the rows that are expanded."""

    rows: tuple[str, ...]
    blocks: tuple[Block, ...]
    engine: str
    date: str
    weight: float
    row_weights: Mapping[str, float]
    teacher: str | None = None
    notes: tuple[str, ...] = ()


def measure(
    table: ResultsSettings,
    *,
    engine: Engine,
    settings: Settings,
    today: Callable[[], date] = date.today,
    progress: Callable[[int], None] = lambda count: None,
) -> Results:
    """Measure every row on every collection that it has, in the order of `table`.

    What is allowed on an index comes from its table in `settings`, the weight from `table`. `progress` is called with the
    count of runs so far. Raises SettingsError before the first search where a corpus, a split or an index is not there.
    """
    tasks = {collection.name: _task(collection, engine) for collection in table.collection}
    done = 0
    blocks = []
    for name, task in tasks.items():
        measured: dict[str, tuple[Measured, ...]] = {}
        for row in table.row:
            weight = row.weight or table.weight
            measured[row.name] = tuple(_runs(row, name, task, engine=engine, settings=settings, weight=weight))
            done += len(measured[row.name])
            progress(done)
        made = cells(table.row, measured, teacher=table.teacher)
        blocks.append(_block(name, task, made, table=table, settings=settings))
    return Results(
        rows=tuple(row.name for row in table.row),
        blocks=tuple(blocks),
        engine=str(engine.info()),
        date=today().isoformat(),
        weight=table.weight,
        row_weights={row.name: row.weight or table.weight for row in table.row if not row.plain},
        teacher=table.teacher,
        notes=table.notes,
    )


def cells(
    rows: Sequence[RowSettings], measured: Mapping[str, Sequence[Measured]], *, teacher: str | None
) -> dict[str, Cell]:
    """Every row that was measured, compared with the first and with the nearest measured one above (or its `against`).

    `kept` is nDCG@10 over the teacher's; `gain_kept` is (row - plain) / (teacher - plain), None where the teacher gains
    nothing.
    """
    means = {row.name: _over_seeds(measured[row.name]) for row in rows if measured.get(row.name)}
    values = {name: mean(per_query.values()) for name, per_query in means.items()}
    plain = rows[0].name
    taught = values.get(teacher) if teacher is not None else None
    gain = taught - values[plain] if taught is not None else 0.0
    made: dict[str, Cell] = {}
    for row in rows:
        if row.name not in means:
            continue
        above = "" if row.name == plain else row.against or list(made)[-1]
        against_plain = _compared(means, plain, row.name) if above else None
        made[row.name] = Cell(
            seeds=tuple(measured[row.name]),
            per_query=means[row.name],
            kept=values[row.name] / taught if taught else None,
            gain_kept=(values[row.name] - values[plain]) / gain if gain > TIE else None,
            against_plain=against_plain,
            against_above=against_plain if above == plain else _compared(means, above, row.name),
            above=above,
        )
    return made


def _over_seeds(seeds: Sequence[Measured]) -> dict[str, float]:
    return {query_id: mean(seed.per_query[query_id] for seed in seeds) for query_id in seeds[0].per_query}


def _compared(means: Mapping[str, Mapping[str, float]], above: str, name: str) -> Comparison | None:
    return compare(means[above], means[name]) if above in means else None


def _task(collection: CollectionSettings, engine: Engine) -> Task:
    corpus = load(collection.corpus, relevant_from=collection.relevant_from)
    qrels = corpus.qrels(collection.split)
    queries = {q: text for q, text in corpus.queries(collection.split).items() if q in qrels}
    if not engine.exists(collection.index):
        raise SettingsError(
            f"collection {collection.name!r}: {engine.url} has no index {collection.index!r}; "
            "make it with `querylift index`, or name another"
        )
    split = collection.split or corpus.splits()[0]
    return Task(corpus.name, split, collection.index, queries, qrels, corpus.relevant_from)


def _runs(
    row: RowSettings, collection: str, task: Task, *, engine: Engine, settings: Settings, weight: float
) -> Iterator[Measured]:
    """The row's runs, one a seed. A plain search that finds nothing relevant is of another corpus, and no result."""
    if row.plain:
        searched = search_offline(engine, task.queries, index=task.index, depth=DEPTH)
        plain = _measured(_evaluated(task, searched, collection), searched, "")
        if not plain.recall_at_100:
            problem = f"not one query finds a relevant document on {task.index}; index {task.corpus} there"
            raise SettingsError(f"collection {collection!r}: {problem}")
        yield plain
    for generator in row.generators(collection):
        identity, searched = _expanded(task, engine, _for_row(settings, task.index, generator=generator, weight=weight))
        yield _measured(_evaluated(task, searched, collection), searched, identity)


def _for_row(settings: Settings, index: str, *, generator: str, weight: float) -> Settings:
    """`settings` that expand on one index, with every expansion made anew: no cache that outlives the run."""
    own = settings.model_dump() | {"generator": generator, "cache": {}}
    return switched_on(check(own, source="options"), index, weight=weight)


def _expanded(task: Task, engine: Engine, settings: Settings) -> tuple[str, Searched]:
    async def rewrites() -> tuple[str, Searched]:
        generator = factory.make(settings.generator, settings)
        async with expander_for(settings, generator) as expander:
            rules = Rules(settings, clock=time.monotonic)
            made = await expand_all(task.queries, index=task.index, rules=rules, expander=expander, depth=DEPTH)
        return generator.identity, search_offline(engine, task.queries, index=task.index, results=made, depth=DEPTH)

    return asyncio.run(rewrites())


def _evaluated(task: Task, searched: Searched, collection: str) -> Evaluation:
    try:
        return evaluate(searched.run, task.qrels, relevant_from=task.relevant_from)
    except ValueError as error:  # nothing is graded as high as relevant_from
        raise SettingsError(f"collection {collection!r} cannot be measured: {error}") from None


def _measured(evaluation: Evaluation, searched: Searched, generator: str) -> Measured:
    per_query = evaluation.per_query[MEASURE]
    outcomes = Counter(searched.outcomes[q] for q in per_query if q in searched.outcomes)
    applied = sum(count for name, count in outcomes.items() if name in _APPLIED)
    return Measured(
        per_query=per_query,
        recall_at_100=evaluation.means["recall_at_100"],
        generator=generator,
        outcomes=dict(outcomes),
        unexpanded=outcomes.total() - applied,
    )


def _block(name: str, task: Task, made: Mapping[str, Cell], *, table: ResultsSettings, settings: Settings) -> Block:
    return Block(
        name=name,
        task=task,
        queries=len(next(iter(made.values())).per_query),
        mode=(settings.index_for(task.index) or IndexSettings()).mode,
        cells=made,
        notes=(*_teacher_notes(made, table.teacher), *_above_notes(made, table.row), *_unexpanded_notes(made)),
    )


def _teacher_notes(made: Mapping[str, Cell], teacher: str | None) -> Iterator[str]:
    if teacher is not None and teacher not in made:
        yield f"no share is shown: the teacher, {teacher}, has no result here"
    elif teacher is not None and made[teacher].gain_kept is None:
        yield f"no share of gain is shown: the teacher, {teacher}, gains nothing here"


def _above_notes(made: Mapping[str, Cell], rows: Sequence[RowSettings]) -> Iterator[str]:
    """Where the row above is not the one that stands above."""
    for before, row in pairwise(rows):
        above = made[row.name].above if row.name in made else before.name
        if row.name in made and above not in made:
            yield f"{row.name} is to be compared with {above}, which has no result here"
        elif above != before.name:
            yield f"the row above {row.name} is here {above}"


def _unexpanded_notes(made: Mapping[str, Cell]) -> Iterator[str]:
    """How many queries a row had no expansion for; rows of which the same is said share a sentence."""
    expanded = [name for name, cell in made.items() if cell.above]
    said: dict[str, list[str]] = defaultdict(list)
    for name in expanded:
        if any(seed.unexpanded for seed in made[name].seeds):
            said[_unexpanded(made[name])].append(name)
    for sentence, names in said.items():
        others = "; ".join(name for name in expanded if name not in names)
        most = f"every row but {others}" if others else "every row"
        yield f"{most if len(names) > max(1, len(expanded) / 2) else '; '.join(names)}: {sentence}"


def _unexpanded(cell: Cell) -> str:
    counts = ", ".join(str(seed.unexpanded) for seed in cell.seeds)
    reasons = sum((Counter(seed.outcomes) for seed in cell.seeds), Counter[str]())
    listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common() if reason not in _APPLIED)
    return f"no expansion for {counts} of {len(cell.per_query)} queries ({listed})"
