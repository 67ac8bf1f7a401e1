"""Accept a level of quantisation by what it does to searches: every level writes for the same queries, and the engine decides."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.comparison import NonInferiority, non_inferior
from querylift.index_tools.evaluation.experiment import MEASURE, Task
from querylift.index_tools.evaluation.measures import evaluate
from querylift.index_tools.searching import Searched, expand_all, search_offline
from querylift.plugin.broker import Expander
from querylift.plugin.cache import MemoryCache
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import parse
from querylift.plugin.flow import Rules
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.settings import Settings, switched_on

_SLOTS = 8
_PATIENCE_S = 600.0
"""For one passage: a large reference on a small machine is slow, and is to be measured all the same."""
_CACHED = 1 << 20


@dataclass(frozen=True, slots=True)
class Level:
    """A GGUF file and what to call it."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """What one level wrote and what that did. `ndcg` holds nDCG@10 by "index:query id", from 0 to 1."""

    level: Level
    file_bytes: int
    peak_bytes: int | None
    """Most memory that the worker held; None where the system does not tell."""
    passages: int
    parsed: int
    """Passages of which words for a search were left."""
    tokens: int
    took_s: float
    ndcg: Mapping[str, float]

    @property
    def tokens_per_s(self) -> float:
        """With up to eight passages at once."""
        return self.tokens / self.took_s if self.took_s else 0.0

    @property
    def parse_rate(self) -> float:
        """From 0 to 1."""
        return self.parsed / self.passages if self.passages else 0.0

    def mean(self, index: str | None = None) -> float:
        """nDCG@10 over all queries, or over those of one index."""
        values = [value for query, value in self.ndcg.items() if index is None or query.startswith(f"{index}:")]
        return sum(values) / len(values)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A level set against the reference."""

    measured: Measured
    test: NonInferiority
    parses: bool
    """Whether as many of its passages can be used, less one in a hundred."""

    @property
    def passes(self) -> bool:
        """Whether it may be served in the reference's place."""
        return self.test.holds and self.parses


async def measure(
    level: Level,
    tasks: Sequence[Task],
    *,
    engine: Engine,
    settings: Settings,
    table: Mapping[str, object],
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Write for every query of `tasks`, greedily, and search as it would be served. Raises SettingsError, EngineError.

    Expansion is on for the index of each task, by its table in `settings` with the keys of `table` on top.
    """
    generator = _Watched(level.path, threads=threads, slots=_SLOTS, max_seconds=_PATIENCE_S)
    ndcg: dict[str, float] = {}
    took_s, done = 0.0, 0
    await generator.start()
    try:
        for task in tasks:
            expander = Expander(generator, MemoryCache(_CACHED, time.monotonic), clock=time.monotonic, pin_s=0)
            rules = Rules(switched_on(settings, task.index, **table), clock=time.monotonic)
            began_s = time.perf_counter()
            before = done
            results = await expand_all(
                task.queries,
                index=task.index,
                rules=rules,
                expander=expander,
                concurrency=_SLOTS,
                progress=lambda count, before=before: progress(before + count),  # type: ignore[misc]
            )
            took_s += time.perf_counter() - began_s
            if not any(result.expansion for result in results.values()):
                reason = next(iter(results.values())).outcome.header()
                raise SettingsError(
                    f"no search on {task.index} was expanded by {level.name} ({reason}), so nothing was measured"
                )
            done += len(task.queries)
            searched = search_offline(engine, task.queries, index=task.index, results=results)
            ndcg |= ndcg_of(task, searched)
        peak_bytes = _peak_bytes(generator.pid)
        tokens = generator.tokens
    finally:
        await generator.close()
    return Measured(
        level=level,
        file_bytes=level.path.stat().st_size,
        peak_bytes=peak_bytes,
        passages=generator.passages,
        parsed=generator.parsed,
        tokens=tokens,
        took_s=took_s,
        ndcg=ndcg,
    )


def ndcg_of(task: Task, searched: Searched) -> dict[str, float]:
    """nDCG@10 by "index:query id"."""
    found = evaluate(searched.run, task.qrels, relevant_from=task.relevant_from).per_query[MEASURE]
    return {f"{task.index}:{query_id}": value for query_id, value in found.items()}


def judge(reference: Measured, levels: Sequence[Measured], *, bound: float) -> list[Verdict]:
    """Each level against `reference`; `bound` is the loss of nDCG@10 that is borne, from 0 to 1."""
    return [
        Verdict(
            measured,
            non_inferior(reference.ndcg, measured.ndcg, bound=bound),
            parses=measured.parse_rate >= reference.parse_rate - 0.01,
        )
        for measured in levels
    ]


def smallest(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The one with the smallest file among those that pass; None where none does."""
    passing = [verdict for verdict in verdicts if verdict.passes]
    return min(passing, key=lambda verdict: verdict.measured.file_bytes, default=None)


class _Watched(LlamaGenerator):
    """Counts what it writes."""

    passages = 0
    parsed = 0

    async def write(self, ask: Ask) -> str:
        text = await super().write(ask)
        self.passages += 1
        self.parsed += parse(text, query=ask.text) is not None
        return text


def _peak_bytes(pid: int | None) -> int | None:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
