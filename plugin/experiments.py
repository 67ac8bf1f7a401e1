"""Which users get expanded searches, and what the record of a search says about it. Nothing here reads or writes.

A search is assigned to a variant after it was found to be one that may be expanded, and before the generator is asked.
So both groups hold the same kinds of searches, and the control group waits for nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

DEFAULT_USER_HEADER = "x-opaque-id"
QUERY_ID_HEADER = "X-Querylift-Query-Id"
"""The response header with the id of a search that takes part in an experiment. Its clicks are logged with this id."""
TEAMS_HEADER = "X-Querylift-Teams"
"""The response header with one letter for each hit of two interleaved lists: see `interleave.Team`."""

Variant = Literal["expanded", "control", "interleaved"]
Headers = Sequence[tuple[bytes, bytes]]
_QUERY_ID = re.compile(r"[\w.:@/+=-]{1,100}\Z", re.ASCII)
"""Ids of clients that can stand in a header. A client with another one gets a new id."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The variant of one search, and what its record needs so that variants can be compared.

    `unit` is a hash of the user, or of the query when no user is known. All searches of one unit are in the control group, or
    none is. `query_id` is the id of this search, empty until it has one. `teams` has one letter for each of `hit_ids`, when
    two lists were interleaved.
    """

    experiment: str
    variant: Variant
    traffic: float
    unit: str
    query_id: str = ""
    teams: str = ""
    hit_ids: tuple[str, ...] = field(default=(), repr=False)

    def name_search(self, make_id: Callable[[], str]) -> Assignment:
        """Return this assignment with an id for its search: the client's own, or else a new one of `make_id()`."""
        return self if self.query_id else replace(self, query_id=make_id())

    def add_teams(self, hit_ids: tuple[str, ...], teams: str) -> Assignment:
        """Return the assignment of a search that was answered with interleaved hits."""
        return replace(self, variant="interleaved", hit_ids=hit_ids, teams=teams)

    def add_to_record(self, record: dict[str, Any]) -> None:
        """Write the variant into the record of a search, which has the shape of a UBI query."""
        record["query_id"] = self.query_id
        attributes: dict[str, Any] = {
            "experiment": self.experiment,
            "variant": self.variant,
            "traffic": self.traffic,
            "unit": self.unit,
        }
        if self.teams:
            record["query_response_hit_ids"] = list(self.hit_ids)
            attributes["teams"] = self.teams
        record["query_attributes"] = record.get("query_attributes", {}) | attributes


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment on one index. `traffic` is the share of users whose searches are expanded, above 0 and up to 1.

    `user_header` is the request header that tells users apart, in lower case. Users are drawn by a hash of `name` and
    user. It is the same in every process. A larger share adds users and takes none away.
    """

    name: str
    traffic: float
    user_header: bytes
    interleaves: bool = False

    def assign(self, headers: Headers, query: str, *, query_id: str = "") -> Assignment:
        """Return the variant of a search. Without the header, all searches for the same query have the same variant."""
        user = next((value.strip() for name, value in headers if name == self.user_header), b"")
        kind, value = ("user", user) if user else ("query", query.encode("utf-8", "surrogatepass"))
        digest = hashlib.sha256(b"\0".join((self.name.encode(), kind.encode(), value))).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        variant: Variant = "expanded" if self.traffic >= 1 or share < self.traffic else "control"
        return Assignment(self.name, variant, self.traffic, f"{kind}:{digest.hex()[:16]}", query_id)


def find_ubi_block(body: Any) -> dict[str, Any]:
    """Return what a search body says for User Behavior Insights, in `ext.ubi`; empty when it says nothing."""
    for key in ("ext", "ubi"):
        body = body.get(key) if isinstance(body, dict) else None
    return body if isinstance(body, dict) else {}


def find_ubi_query_id(body: dict[str, Any]) -> str:
    """Return the id that the client gave the search for User Behavior Insights, or "" when there is no usable one."""
    query_id = find_ubi_block(body).get("query_id")
    return query_id if isinstance(query_id, str) and _QUERY_ID.match(query_id) else ""
