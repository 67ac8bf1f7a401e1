"""The URL parameters of a search that decide whether it may be expanded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UrlParameters:
    """The values of `q`, `size`, `sort`, `scroll`, `explain` and `from` in the URL. An absent parameter is None."""

    q: str | None = None
    size: str | None = None
    sort: str | None = None
    scroll: str | None = None
    explain: str | None = None
    from_: str | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> UrlParameters:
        """Pick these parameters out of all parameters of a URL."""
        names = ("q", "size", "sort", "scroll", "explain", "from")
        return cls(*(values.get(name) for name in names))
