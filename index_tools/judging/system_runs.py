"""Runs of several systems on one index, to be pooled: no expansion, an expander, feedback, and the nearest documents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from querylift.index_tools.corpora.records import Run, normalize_id
from querylift.index_tools.engine import Engine
from querylift.index_tools.searching import BodyFormatter, expand_with_generators, search_offline
from querylift.plugin.errors import SettingsError
from querylift.plugin.flow import FlowResult
from querylift.plugin.outcome import REASONS
from querylift.plugin.settings import Settings, enable_index, replace_generator

PLAIN, FEEDBACK, EXPANDER, DENSE = "plain", "feedback", "expander", "dense"
_EXPANDER_PREFIX = "expander:"


@dataclass(frozen=True, slots=True)
class SystemRuns:
    """The run of each system by its name. `notes` says in sentences which systems gave nothing, and why."""

    runs: Mapping[str, Run]
    notes: tuple[str, ...] = ()


def choose_systems(settings: Settings, index: str, names: Sequence[str]) -> dict[str, str]:
    """Return the generator of each system, "" for `plain`. Without names these are all systems that the settings have.

    `expander` and `dense` use the fast expander that is among `names`, or else that of the settings. Any other name is
    that of a generator. Raises SettingsError when there is no fast expander.
    """
    expander = next((name for name in names if name.startswith(_EXPANDER_PREFIX)), "")
    expander = expander or _find_configured_expander(settings, index)
    systems = names or (PLAIN, FEEDBACK, *((EXPANDER, DENSE) if expander else ()))
    generators: dict[str, str] = {}
    for name in systems:
        if name in (EXPANDER, DENSE) and not expander:
            raise SettingsError(
                f"--system is {name}, but the settings name no fast expander for {index}; "
                "add --system expander:FOLDER, or leave it out"
            )
        generators[name] = "" if name == PLAIN else expander if name in (EXPANDER, DENSE) else name
    return generators


def search_systems(
    engine: Engine,
    settings: Settings,
    queries: Mapping[str, str],
    *,
    index: str,
    systems: Mapping[str, str],
    depth: int,
    format_body: BodyFormatter,
) -> SystemRuns:
    """Return the run of each system. `systems` are the generators by system, as `choose_systems` returns them.

    Each generator expands the queries once. The run of `dense` has the documents of the expansions, nearest first.
    """
    runs: dict[str, Run] = {}
    notes: list[str] = []
    results_by_generator: dict[str, dict[str, FlowResult]] = {}
    for system, generator in systems.items():
        if not generator:
            searched = search_offline(engine, queries, index=index, depth=depth, format_body=format_body)
            runs[system] = searched.run
            continue
        if generator not in results_by_generator:
            generator_settings = enable_index(replace_generator(settings, generator), index)
            results_by_generator[generator] = asyncio.run(
                expand_with_generators(generator_settings, queries, index=index, depth=depth, format_body=format_body)
            )
        results = results_by_generator[generator]
        if system == DENSE:
            runs[system] = _collect_documents(results)
            if not any(runs[system].values()):
                notes.append(f"{system}: {generator} gives no ids of documents, so its nearest documents are left out")
            continue
        searched = search_offline(engine, queries, index=index, results=results, depth=depth, format_body=format_body)
        runs[system] = searched.run
        if not searched.expansions:
            notes.append(f"{system}: {generator} expanded no query: {_describe_outcome(results)}")
    return SystemRuns({name: run for name, run in runs.items() if any(run.values())}, tuple(notes))


def _find_configured_expander(settings: Settings, index: str) -> str:
    names = settings.find_generator_names(index)
    return next((name for name in names if name.startswith(_EXPANDER_PREFIX)), "")


def _collect_documents(results: Mapping[str, FlowResult]) -> Run:
    return {
        query_id: list(dict.fromkeys(normalize_id(document.doc_id) for document in result.expansion.documents))
        for query_id, result in results.items()
        if result.expansion is not None
    }


def _describe_outcome(results: Mapping[str, FlowResult]) -> str:
    """Return the reason of the first query in words."""
    outcome = next(iter(results.values())).outcome
    return REASONS.get(outcome.reason, outcome.format_header())
