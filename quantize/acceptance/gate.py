"""Measure how each quantisation level changes search results on a real engine, and decide which levels are good enough."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.experiment import Task
from querylift.index_tools.evaluation.measures import MAIN_MEASURE, evaluate_run
from querylift.index_tools.evaluation.non_inferiority import (
    NonInferiority,
    check_non_inferiority,
    correct_tests,
    count_needed_queries,
)
from querylift.index_tools.searching import SearchedRun, expand_all, search_offline
from querylift.plugin.broker import ExpansionBroker
from querylift.plugin.cache import MemoryCache
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import parse_output
from querylift.plugin.flow import ExpansionRules
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.settings import Settings, enable_index

_CONCURRENT_PASSAGES = 8
_MAX_PASSAGE_S = 600.0
"""Time for one passage. It is long enough for a large reference on a small machine."""
_CACHE_ENTRIES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF file and its name in tables: a level, or the reference that all levels were made from."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class LevelMeasurement:
    """The passages that one model file wrote, and the search results with them.

    `ndcg` holds nDCG@10 from 0 to 1, by "INDEX:QUERY_ID".
    """

    model_file: ModelFile
    file_bytes: int
    peak_bytes: int | None
    """The largest memory use of the worker process. None when the system does not report it."""
    passages: int
    parsed: int
    """Passages that gave an expansion."""
    tokens: int
    elapsed_s: float
    ndcg: Mapping[str, float]

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second, with up to eight passages at once."""
        return self.tokens / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def parse_rate(self) -> float:
        """The share of passages that gave an expansion, from 0 to 1."""
        return self.parsed / self.passages if self.passages else 0.0

    def mean_ndcg(self, index: str | None = None) -> float:
        """Return the mean nDCG@10 of all queries, or of those on one index."""
        values = [value for key, value in self.ndcg.items() if index is None or key.startswith(f"{index}:")]
        return sum(values) / len(values)


@dataclass(frozen=True, slots=True)
class LevelDecision:
    """A level compared with the reference."""

    measurement: LevelMeasurement
    test: NonInferiority
    is_usable_as_often: bool
    """Whether its passages give an expansion as often, within one in a hundred."""

    @property
    def passes(self) -> bool:
        """Whether the level may replace the reference."""
        return self.test.is_non_inferior and self.is_usable_as_often


async def measure_level(
    model_file: ModelFile,
    tasks: Sequence[Task],
    *,
    engine: Engine,
    settings: Settings,
    index_settings: Mapping[str, object],
    threads: int = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> LevelMeasurement:
    """Write an expansion for every query of `tasks` without sampling, and search with it as the proxy would.

    Expansion is enabled on the index of each task. `index_settings` override the settings of the index. Raises SettingsError,
    EngineError.
    """
    generator = CountingGenerator(
        model_file.path, threads=threads, slots=_CONCURRENT_PASSAGES, max_seconds=_MAX_PASSAGE_S
    )
    ndcg: dict[str, float] = {}
    elapsed_s, query_count = 0.0, 0
    await generator.start()
    try:
        for task in tasks:
            cache = MemoryCache(_CACHE_ENTRIES, time.monotonic)
            broker = ExpansionBroker(generator, cache, clock=time.monotonic, pin_s=0)
            rules = ExpansionRules(enable_index(settings, task.index, **index_settings), clock=time.monotonic)
            start_s, earlier_count = time.perf_counter(), query_count
            results = await expand_all(
                task.queries,
                index=task.index,
                rules=rules,
                broker=broker,
                concurrency=_CONCURRENT_PASSAGES,
                progress=lambda count, earlier_count=earlier_count: progress(earlier_count + count),  # type: ignore[misc]
            )
            elapsed_s += time.perf_counter() - start_s
            if not any(result.expansion for result in results.values()):
                reason = next(iter(results.values())).outcome.format_header()
                raise SettingsError(
                    f"{model_file.name} expanded no search on {task.index} ({reason}), so nothing was measured; "
                    "check the settings of this index"
                )
            query_count += len(task.queries)
            ndcg |= compute_ndcg(task, search_offline(engine, task.queries, index=task.index, results=results))
        peak_bytes = _read_peak_bytes(generator.pid)
        tokens = generator.written_tokens
    finally:
        await generator.close()
    return LevelMeasurement(
        model_file=model_file,
        file_bytes=model_file.path.stat().st_size,
        peak_bytes=peak_bytes,
        passages=generator.passages,
        parsed=generator.parsed,
        tokens=tokens,
        elapsed_s=elapsed_s,
        ndcg=ndcg,
    )


def compute_ndcg(task: Task, searched: SearchedRun) -> dict[str, float]:
    """Return the nDCG@10 of each query, by "INDEX:QUERY_ID"."""
    evaluation = evaluate_run(searched.run, task.qrels, relevant_from=task.relevant_from)
    return {f"{task.index}:{query_id}": value for query_id, value in evaluation.per_query[MAIN_MEASURE].items()}


def check_query_count(query_count: int, *, level_count: int, bound: float) -> None:
    """Raise SettingsError when so few queries cannot prove anything, however well the levels search."""
    needed = count_needed_queries(bound, test_count=level_count)
    if query_count < needed:
        levels = f"{level_count} levels" if level_count > 1 else "1 level"
        raise SettingsError(
            f"--on names {query_count} judged queries, and to prove a loss below {100 * bound:g} points for {levels} takes "
            f"{needed}; add collections, raise --bound, or name fewer levels with --levels"
        )


def decide_levels(
    reference: LevelMeasurement, levels: Sequence[LevelMeasurement], *, bound: float
) -> list[LevelDecision]:
    """Compare each level with `reference`. `bound` is the largest acceptable loss of nDCG@10, from 0 to 1.

    The p-values are corrected for the number of levels.
    """
    tests = correct_tests([check_non_inferiority(reference.ndcg, level.ndcg, bound=bound) for level in levels])
    return [
        LevelDecision(level, test, is_usable_as_often=level.parse_rate >= reference.parse_rate - 0.01)
        for level, test in zip(levels, tests, strict=True)
    ]


def choose_smallest(decisions: Sequence[LevelDecision]) -> LevelDecision | None:
    """Return the passing level with the smallest file, or None when no level passes."""
    passing = [decision for decision in decisions if decision.passes]
    return min(passing, key=lambda decision: decision.measurement.file_bytes, default=None)


class CountingGenerator(LlamaGenerator):
    """The generator `llama`, which also counts its passages and those that gave an expansion."""

    passages = 0
    parsed = 0

    async def write_passage(self, request: ExpansionRequest) -> str:
        text = await super().write_passage(request)
        self.passages += 1
        self.parsed += parse_output(text, query=request.text) is not None
        return text


def _read_peak_bytes(pid: int | None) -> int | None:
    """Return the largest memory use of a process so far, or None when Linux does not report it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
    return int(match[1]) * 1024 if match else None
