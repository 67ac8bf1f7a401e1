"""Find out which expansions serving will ask for.

`plan_warming` sends every query of a log through the same flow as a served search. The flow's question holds the request
that the generator would get. A query that the flow skips needs no expansion.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from querylift.plugin.errors import SettingsError
from querylift.plugin.flow import ExpansionRules, Search, make_match_body, search_flow
from querylift.plugin.generators.base import ExpansionRequest, Generator
from querylift.plugin.outcome import REASONS
from querylift.plugin.settings import Settings
from querylift.plugin.settings_tables.index import IndexSettings
from querylift.plugin.warming.query_log import QueryLog


@dataclass(frozen=True, slots=True)
class WarmingPlan:
    """The requests that serving will make, in the log's order, and the number of skipped queries by reason."""

    requests: tuple[ExpansionRequest, ...]
    skip_counts: Mapping[str, int]


class RequestPlanner:
    """Finds the request that serving makes to its generator for a query in a plain search on one index."""

    def __init__(self, settings: Settings, index: str, table: IndexSettings) -> None:
        self._rules = ExpansionRules(settings, clock=time.monotonic)
        self._index = index
        self._field = table.fields[0] if table.fields else "text"

    @classmethod
    def for_index(cls, settings: Settings, index: str) -> RequestPlanner:
        """Plan for searches on `index`. Raises SettingsError when they are not expanded."""
        reason = ExpansionRules(settings, clock=time.monotonic).find_skip_reason(index)
        table = settings.find_index_settings(index)
        if reason is not None or table is None:
            raise SettingsError(
                f"searches on {index!r} are not expanded ({REASONS[reason or 'index']}); change the settings, "
                "or name another --index"
            )
        return cls(settings, index, table)

    @classmethod
    def for_any_index(cls, tables: Iterable[IndexSettings]) -> RequestPlanner:
        """Plan for searches on every index that `tables` govern. The generator must not read the index."""
        # The only part of a table that decides about the text of a plain search is max_query_words.
        widest = max(tables, key=lambda table: table.max_query_words, default=IndexSettings())
        table = widest.model_copy(update={"enabled": True})
        return cls(Settings(index={"any": table}), "any", table)

    def find_request(self, query: str) -> ExpansionRequest | str:
        """Return the request for `query`, or the reason why serving skips it."""
        flow = search_flow(Search(self._index, make_match_body(query, self._field)), self._rules)
        try:
            return next(flow).request
        except StopIteration as stop:
            return str(stop.value.outcome.reason)
        finally:
            flow.close()


def choose_generator_name(settings: Settings, index: str | None = None, *, option: str | None = None) -> str:
    """Return the generator whose expansions are to be made: `option`, or else the only one for searches on `index`.

    `index` None means every index in the settings. Raises SettingsError when they name no generator, or several.
    """
    if option is not None:
        return option
    names = settings.list_generator_names() if index is None else settings.find_generator_names(index)
    names = tuple(name for name in names if name != "none")
    if not names:
        raise SettingsError("generator is 'none', so there is no expansion to make; set generator in querylift.toml")
    if len(names) > 1:
        raise SettingsError(f"the settings name several generators ({', '.join(names)}); name one with --generator")
    return names[0]


def make_request_planner(settings: Settings, name: str, generator: Generator, index: str | None) -> RequestPlanner:
    """Return the planner for the requests that serving makes to `generator`, which the settings call `name`.

    `index` None means every index in the settings that has this generator. Raises SettingsError when serving would expand
    nothing with it, or when the index must be known and is not.
    """
    if generator.reads_index:
        return _make_index_planner(settings, name, index)
    if index is not None:
        return RequestPlanner.for_index(settings, index)
    if not settings.enabled:
        raise SettingsError("enabled is false, so no search is expanded; for this run, set QUERYLIFT_ENABLED=true")
    enabled_tables = [table for table in settings.index.values() if table.enabled]
    if not enabled_tables:
        raise SettingsError("the settings expand searches on no index; add a table like [index.products]")
    tables = [table for table in enabled_tables if name in settings.get_generator_names(table)]
    if not tables:
        raise SettingsError(f"no enabled index has the generator {name!r}; name another with --generator")
    return RequestPlanner.for_any_index(tables)


def _make_index_planner(settings: Settings, name: str, index: str | None) -> RequestPlanner:
    """Return the planner for a generator that reads the index."""
    if index is None:
        raise SettingsError(f"generator is {name!r}, which reads the index; name it with --index")
    planner = RequestPlanner.for_index(settings, index)
    table = settings.find_index_settings(index)
    if table is None or not table.fields:
        raise SettingsError(
            f"generator is {name!r}, which reads the searched fields; list them as fields in the "
            f"settings' table of {index!r}"
        )
    return planner


def plan_warming(log: QueryLog, planner: RequestPlanner, *, make_key: Callable[[ExpansionRequest], str]) -> WarmingPlan:
    """Return the requests for the queries of `log`. Of requests with the same key, the most frequent one is planned."""
    requests: dict[str, ExpansionRequest] = {}
    skip_counts: Counter[str] = Counter()
    for query in log.queries:
        request = planner.find_request(query)
        if isinstance(request, str):
            skip_counts[request] += 1
        else:
            requests.setdefault(make_key(request), request)
    return WarmingPlan(tuple(requests.values()), skip_counts)
