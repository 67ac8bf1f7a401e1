"""Users who search and click by chance, as a log of searches and a file of clicks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querylift.index_tools.clicks.click_events import Click
from querylift.index_tools.clicks.search_log import LoggedSearch
from querylift.plugin.experiments import Experiment, Variant
from querylift.plugin.interleave import draft_teams

START_S = 1_796_000_000
"""2026-11-29."""


def simulate_groups(
    seed: int, *, users: int, lift: float = 0.0, traffic: float = 0.5
) -> tuple[list[LoggedSearch], list[Click]]:
    """Return searches and clicks of a control group and an expanded group.

    Each user has a click rate of his own, around 0.4, and makes 1 to 12 searches. `lift` is added to the rate of the
    expanded group.
    """
    chance = random.Random(seed)
    experiment = Experiment("shop", traffic, b"x-opaque-id")
    searches, clicks = [], []
    for i in range(users):
        assignment = experiment.assign([(b"x-opaque-id", f"{seed}-{i}".encode())], "")
        rate = chance.betavariate(2, 3) + (lift if assignment.variant == "expanded" else 0)
        for j in range(min(12, 1 + int(chance.expovariate(0.5)))):
            search = _make_search(f"{i}-{j}", f"user {i}", assignment.variant, traffic)
            searches.append(search)
            while chance.random() < rate:
                position = 1 + min(9, int(chance.expovariate(0.5)))
                clicks.append(Click(search.query_id, f"d{position}", position))
                if chance.random() < 0.7:
                    break
    return searches, clicks


def simulate_teams(seed: int, *, users: int, preference: float = 0.5) -> tuple[list[LoggedSearch], list[Click]]:
    """Return interleaved searches, and clicks that fall on a hit of the expanded list with the chance `preference`."""
    chance = random.Random(seed)
    searches, clicks = [], []
    original, expanded = [f"d{i}" for i in range(8)], [f"d{i}" for i in (0, 5, 3, 9, 1, 8, 2, 7)]
    for i in range(users):
        for j in range(2):
            draft = draft_teams(original, expanded, seed=f"{seed}-{i}-{j}")
            hit_ids = tuple((expanded if team == "e" else original)[position] for team, position in draft.picks)
            search = _make_search(f"{i}-{j}", f"user {i}", "interleaved", 1, teams=draft.teams, hit_ids=hit_ids)
            searches.append(search)
            if chance.random() < 0.5:
                team = "e" if chance.random() < preference else "o"
                clicks.append(Click(search.query_id, hit_ids[draft.teams.index(team)]))
    return searches, clicks


def _make_search(query_id: str, unit: str, variant: Variant, traffic: float, **values: Any) -> LoggedSearch:
    return LoggedSearch(query_id, unit, "shop", variant, traffic, variant != "control", time_s=START_S, **values)


def write_search_log(path: Path, searches: Sequence[LoggedSearch]) -> Path:
    """Write the searches as `querylift serve` logs them."""
    with path.open("w", encoding="utf-8") as file:
        for search in searches:
            attributes: dict[str, Any] = {
                "index": "shop",
                "outcome": "expanded" if search.is_expanded else "skipped",
                "experiment": search.experiment,
                "variant": search.variant,
                "traffic": search.traffic,
                "unit": search.unit,
            }
            record: dict[str, Any] = {"query_id": search.query_id, "query_attributes": attributes}
            if search.teams:
                record["query_response_hit_ids"] = list(search.hit_ids)
                attributes["teams"] = search.teams
            for key in ("client_id", "user_query"):
                if value := getattr(search, key):
                    record[key] = value
            record["timestamp"] = search.time_s
            file.write(json.dumps(record) + "\n")
    return path


def write_clicks(path: Path, clicks: Sequence[Click]) -> Path:
    """Write the clicks as UBI events."""
    with path.open("w", encoding="utf-8") as file:
        for click in clicks:
            attributes: dict[str, Any] = {"object": {"object_id": click.object_id}}
            if click.position is not None:
                attributes["position"] = {"ordinal": click.position}
            event = {"action_name": "click", "query_id": click.query_id, "event_attributes": attributes}
            file.write(json.dumps(event) + "\n")
    return path
