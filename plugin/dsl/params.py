"""The URL parameters of a search that decide whether it may be expanded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Params:
    """`q`, `size`, `sort` and `scroll` as they stand in the URL; None where absent."""

    q: str | None = None
    size: str | None = None
    sort: str | None = None
    scroll: str | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> Params:
        """The four parameters out of all those of a URL."""
        return cls(values.get("q"), values.get("size"), values.get("sort"), values.get("scroll"))
