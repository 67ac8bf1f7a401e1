"""Read the searches of an experiment from the log of `querylift serve`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from querylift.index_tools.clicks.log_values import read_object, read_text, read_time_s
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.experiments import Variant
from querylift.plugin.text_files import parse_json_object, read_lines

_EXPANDED_OUTCOMES = ("expanded", "cached")
_TEAMS = frozenset("oe=")


@dataclass(frozen=True, slots=True)
class LoggedSearch:
    """One search of an experiment. `unit` is the user. `user_query` is the query's text, or its hash.

    `teams` has a letter for each of `hit_ids`, when two lists were interleaved. `time_s` counts from 1970.
    """

    query_id: str
    unit: str
    experiment: str
    variant: Variant
    traffic: float
    is_expanded: bool
    client_id: str = ""
    user_query: str = ""
    time_s: float | None = None
    teams: str = ""
    hit_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchLog:
    """The searches of one experiment, and how many searches of the log belong to none."""

    path: Path
    searches: tuple[LoggedSearch, ...]
    outside_count: int


def read_search_log(path: Path, *, experiment: str | None = None, traffic: float | None = None) -> SearchLog:
    """Read the searches of one experiment with one share of traffic. Lines of JSON that are no search are left out.

    Raises DataError for a line that cannot be read. Raises SettingsError when the log has no such search, or when it has
    several experiments or shares and none was named.
    """
    searches = []
    outside_count = 0
    for line, text in read_lines(path):
        if not text.lstrip().startswith("{"):
            remedy = f'set format = "json" in [log], or keep the records alone: grep "^{{" {path} > NEW_FILE'
            raise DataError(path, line, f"this line is no JSON object; {remedy}")
        row = parse_json_object(text, path, line)
        if "query_attributes" not in row:
            continue
        attributes = read_object(row, "query_attributes", path, line)
        if attributes.get("variant") is None:
            outside_count += 1
            continue
        searches.append(_read_search(row, attributes, path, line))
    if not searches:
        remedy = "set traffic below 1, or interleave = true, and [log] searches = true"
        raise SettingsError(f"{path} has no search with a variant; {remedy}")
    selected = _select(searches, "experiment", experiment, path)
    selected = _select(selected, "traffic", traffic, path)
    return SearchLog(path, tuple(selected), outside_count)


def _read_search(row: Mapping[str, Any], attributes: Mapping[str, Any], path: Path, line: int) -> LoggedSearch:
    variant = attributes["variant"]
    if variant not in get_args(Variant):
        raise DataError(path, line, f"variant is {variant!r}; it is one of {', '.join(get_args(Variant))}")
    query_id = read_text(row, "query_id", path, line)
    unit = read_text(attributes, "unit", path, line) or read_text(row, "client_id", path, line)
    if not query_id or not unit:
        missing_key = "query_id" if not query_id else "unit"
        raise DataError(path, line, f"{missing_key} is missing; use the log as `querylift serve` writes it")
    traffic = attributes.get("traffic", 1)
    if isinstance(traffic, bool) or not isinstance(traffic, int | float) or not 0 < traffic <= 1:
        raise DataError(path, line, f"traffic is {traffic!r}; it is the share of users, above 0 and up to 1")
    teams, hit_ids = _read_teams(row, attributes, path, line)
    return LoggedSearch(
        query_id=query_id,
        unit=unit,
        experiment=read_text(attributes, "experiment", path, line),
        variant=variant,
        traffic=traffic,
        is_expanded=attributes.get("outcome") in _EXPANDED_OUTCOMES,
        client_id=read_text(row, "client_id", path, line),
        user_query=read_text(row, "user_query", path, line),
        time_s=read_time_s(row, path, line),
        teams=teams,
        hit_ids=hit_ids,
    )


def _read_teams(
    row: Mapping[str, Any], attributes: Mapping[str, Any], path: Path, line: int
) -> tuple[str, tuple[str, ...]]:
    teams = read_text(attributes, "teams", path, line)
    hit_ids = row.get("query_response_hit_ids") or []
    if not teams:
        return "", ()
    if not _TEAMS.issuperset(teams) or not isinstance(hit_ids, list) or len(hit_ids) != len(teams):
        raise DataError(path, line, f"teams is {teams!r}; it has o, e or = for each of query_response_hit_ids")
    return teams, tuple(map(str, hit_ids))


def _select(
    searches: Sequence[LoggedSearch], key: Literal["experiment", "traffic"], wanted: object, path: Path
) -> list[LoggedSearch]:
    """Return the searches with the wanted value of `key`. Raises SettingsError when it is not clear which are meant."""
    values = sorted({getattr(search, key) for search in searches})
    if wanted is None and len(values) == 1:
        return list(searches)
    names = " and ".join(f"{value:g}" if isinstance(value, float | int) else repr(value) for value in values)
    if wanted is None:
        raise SettingsError(f"{path} has searches with {key} {names}; name one of them with --{key}")
    if wanted not in values:
        raise SettingsError(f"{path} has no search with {key} {wanted!r}; it has {names}")
    return [search for search in searches if getattr(search, key) == wanted]


def iterate_distinct_searches(searches: Sequence[LoggedSearch]) -> Iterator[LoggedSearch]:
    """Yield one search for each id. The pages of a search may share its id, and then the interleaved page counts."""
    by_id: dict[str, LoggedSearch] = {}
    for search in searches:
        earlier_search = by_id.get(search.query_id)
        if earlier_search is None or (search.teams and not earlier_search.teams):
            by_id[search.query_id] = search
    yield from by_id.values()
