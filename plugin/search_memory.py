"""Remember what was found in a search, for searches that come again with the same bytes or on the same indices.

Popular queries come again and again, mostly from the same template. Reading such a search and writing its rewrite takes
longer than everything else that the proxy does with it, and gives the same result every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cachetools import LRUCache

from querylift.plugin import dsl
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.policy import Policy

MAX_REMEMBERED_SEARCHES = 256
MAX_REMEMBERED_BYTES = 4096
"""A larger body is not remembered. With its rewrite, a remembered search takes up to about 50 KB."""

MAX_EXPRESSION_CHARS = 1024
"""A longer index expression matches no settings table. Looking it up would cost time and memory."""
MAX_REMEMBERED_EXPRESSIONS = 1024
"""Index expressions that are remembered. Clients choose the expressions, so there may be any number."""

T = TypeVar("T")
SearchKey = tuple[str | None, bytes, dsl.UrlParameters]
"""Index expression, body and URL parameters. Under the same settings they decide how a search is read."""


class ExpressionMemory(Generic[T]):
    """What the settings say about index expressions. It is looked up once for each, because matching patterns takes time.

    `find` looks it up, and `unknown` stands for what it says about a very long expression.
    """

    def __init__(self, find: Callable[[str | None], T], unknown: T) -> None:
        self._find = find
        self._unknown = unknown
        self._values: dict[str | None, T] = {}

    def get(self, index: str | None) -> T:
        """Return what the settings say about an index expression."""
        if index is not None and len(index) > MAX_EXPRESSION_CHARS:
            return self._unknown
        try:
            return self._values[index]
        except KeyError:
            if len(self._values) >= MAX_REMEMBERED_EXPRESSIONS:
                self._values.clear()
            return self._values.setdefault(index, self._find(index))


@dataclass(slots=True)
class ParsedSearch:
    """A search that may be expanded: its body and the user's query in it, and the request to the generator.

    Nothing in it is changed after it was made, except for the rewrite that was made last.
    """

    body: dict[str, Any]
    user_query: dsl.UserQuery
    request: ExpansionRequest
    shows_words: bool
    continues_hits: bool
    _last_rewrite: tuple[Expansion, bytes, str] | None = None

    def rewrite(self, expansion: Expansion, policy: Policy) -> tuple[bytes, str]:
        """Return the body with `expansion` as JSON, and why mode widen was served as boost, or "". Raises Skip.

        The rewrite with the same object `expansion` is made once. The policy must be that of the search.
        """
        last = self._last_rewrite  # read once, because another thread may replace it
        if last is None or last[0] is not expansion:
            rewrite = dsl.rewrite_search(self.body, self.user_query, expansion, policy)
            last = self._last_rewrite = expansion, dsl.dump_body(rewrite.body), rewrite.boost_reason
        return last[1], last[2]


class SearchMemory:
    """The searches that came last. It may be used by several threads."""

    def __init__(self, size: int = MAX_REMEMBERED_SEARCHES) -> None:
        self._searches: LRUCache[SearchKey, ParsedSearch] = LRUCache(size)
        self._lock = threading.Lock()

    def find(self, key: SearchKey) -> ParsedSearch | None:
        """Return what was found in a search with this key, or None."""
        with self._lock:
            return self._searches.get(key)

    def add(self, key: SearchKey, parsed_search: ParsedSearch) -> None:
        """Remember a search, unless its body is large."""
        if len(key[1]) <= MAX_REMEMBERED_BYTES:
            with self._lock:
                self._searches[key] = parsed_search
