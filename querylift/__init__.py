"""Query expansion in front of an OpenSearch or Elasticsearch cluster.

The names below are the public Python API. Each is imported from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.evaluation.comparison import Comparison, compare_runs
    from querylift.index_tools.evaluation.measures import Evaluation, evaluate_run
    from querylift.plugin.broker import ExpansionBroker, open_broker
    from querylift.plugin.dsl import UserQuery, add_expansion, dump_body, find_user_query, parse_body
    from querylift.plugin.errors import (
        DataError,
        EngineError,
        GeneratorError,
        MissingExtra,
        QueryliftError,
        SettingsError,
    )
    from querylift.plugin.expansion import Expansion, expansion_from_terms, expansion_from_text
    from querylift.plugin.flow import (
        ExpansionRules,
        FlowResult,
        Search,
        explain_result,
        run_flow,
        run_flow_async,
        search_flow,
    )
    from querylift.plugin.generators.base import ExpansionRequest, Generator
    from querylift.plugin.generators.factory import make_generator
    from querylift.plugin.outcome import Outcome
    from querylift.plugin.policy import Policy
    from querylift.plugin.settings import Settings, load_settings, parse_settings
    from querylift.plugin.settings_tables.index import IndexSettings
    from querylift.plugin.weighted_parts import WeightedTerm

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Corpus",
    "DataError",
    "Engine",
    "EngineError",
    "Evaluation",
    "Expansion",
    "ExpansionBroker",
    "ExpansionRequest",
    "ExpansionRules",
    "FlowResult",
    "Generator",
    "GeneratorError",
    "IndexSettings",
    "MissingExtra",
    "Outcome",
    "Policy",
    "QueryliftError",
    "Search",
    "Settings",
    "SettingsError",
    "UserQuery",
    "WeightedTerm",
    "add_expansion",
    "compare_runs",
    "dump_body",
    "evaluate_run",
    "expansion_from_terms",
    "expansion_from_text",
    "explain_result",
    "find_user_query",
    "load_corpus",
    "load_settings",
    "make_generator",
    "open_broker",
    "parse_body",
    "parse_settings",
    "run_flow",
    "run_flow_async",
    "search_flow",
]

_MODULES = {
    "querylift.index_tools.corpora.corpus": ("Corpus",),
    "querylift.index_tools.corpora.corpus_names": ("load_corpus",),
    "querylift.index_tools.engine": ("Engine",),
    "querylift.index_tools.evaluation.comparison": ("Comparison", "compare_runs"),
    "querylift.index_tools.evaluation.measures": ("Evaluation", "evaluate_run"),
    "querylift.plugin.broker": ("ExpansionBroker", "open_broker"),
    "querylift.plugin.dsl": ("UserQuery", "add_expansion", "dump_body", "find_user_query", "parse_body"),
    "querylift.plugin.errors": (
        "DataError",
        "EngineError",
        "GeneratorError",
        "MissingExtra",
        "QueryliftError",
        "SettingsError",
    ),
    "querylift.plugin.expansion": ("Expansion", "expansion_from_terms", "expansion_from_text"),
    "querylift.plugin.flow": (
        "ExpansionRules",
        "FlowResult",
        "Search",
        "explain_result",
        "run_flow",
        "run_flow_async",
        "search_flow",
    ),
    "querylift.plugin.generators.base": ("ExpansionRequest", "Generator"),
    "querylift.plugin.generators.factory": ("make_generator",),
    "querylift.plugin.outcome": ("Outcome",),
    "querylift.plugin.policy": ("Policy",),
    "querylift.plugin.settings": ("Settings", "load_settings", "parse_settings"),
    "querylift.plugin.settings_tables.index": ("IndexSettings",),
    "querylift.plugin.weighted_parts": ("WeightedTerm",),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562). So `import querylift` alone loads nothing else."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'querylift' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return ["__version__", *__all__]
