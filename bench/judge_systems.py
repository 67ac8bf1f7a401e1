"""The runs of many systems of one index: a teacher's expansions, one method and one weight for each system."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from querylift.index_tools.commands.options import load_settings_with_options
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.measures import evaluate_run
from querylift.index_tools.searching import format_search_body, search_offline
from querylift.plugin.broker import Answer
from querylift.plugin.expansion import expansion_from_text
from querylift.plugin.flow import ExpansionRules, FlowResult, Search, run_flow, search_flow
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import Settings, enable_index
from querylift.trainer.candidates import read_candidates

RunsByName = dict[str, dict[str, list[str]]]
"""The ids of the first documents of each query, by the system's name."""


def search_systems(
    queries: Mapping[str, str], expansions: Path, *, index: str, url: str, weights: Sequence[float]
) -> RunsByName:
    """Return the run of the plain search, and of every teacher's method at every weight."""
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for candidate in read_candidates(expansions):
        key = f"{candidate.method} {candidate.model} {json.dumps(candidate.params, sort_keys=True)}"
        texts[key].setdefault(candidate.query_id, candidate.text)
    runs: RunsByName = {}
    settings = load_settings_with_options(None, engine=url)
    with Engine(settings) as engine:
        runs["plain"] = search_texts(engine, settings, queries, {}, index=index, weight=1.0)
        for weight in weights:
            for name, text_by_query in texts.items():
                runs[f"{name} {weight}"] = search_texts(
                    engine, settings, queries, text_by_query, index=index, weight=weight
                )
    return runs


def search_texts(
    engine: Engine,
    settings: Settings,
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    *,
    index: str,
    weight: float,
) -> dict[str, list[str]]:
    """Return the run of the queries, each expanded by its text. A query without text is searched as it is."""
    settings = enable_index(settings, index, weight=weight)
    rules = ExpansionRules(settings, clock=time.monotonic)
    results: dict[str, FlowResult] = {}
    for query_id, text in queries.items():
        expansion = expansion_from_text(texts.get(query_id, ""))
        answer = Answer(expansion, Outcome("expanded")) if expansion else Answer(None, Outcome("skipped", "empty"))
        flow = search_flow(Search(index, format_search_body(text, 10)), rules)
        results[query_id] = run_flow(flow, lambda question, answer=answer: answer)  # type: ignore[misc]
    return search_offline(engine, queries, index=index, results=results, depth=10).run


def measure_runs(runs: RunsByName, qrels: dict[str, dict[str, int]]) -> dict[str, float]:
    """Return the mean nDCG@10 of each run."""
    return {name: evaluate_run(run, qrels).means["ndcg_at_10"] for name, run in runs.items()}
