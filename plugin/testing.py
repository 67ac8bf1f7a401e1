"""Public fakes and checks for the tests of code that builds on Querylift."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from querylift.plugin.dsl import UserQuery
from querylift.plugin.dsl.clauses import ClausePath
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest


class ManualClock:
    """A clock in seconds that moves only when a test advances it."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now_s += seconds


class ScriptedGenerator:
    """A generator that takes its expansions from a mapping by query, after `delay_s`.

    It raises a value that is an exception. A query that is not in the mapping has no expansion. `queries` records every
    query that it was asked for, and `closed` whether it was closed.
    """

    identity = "scripted"
    reads_index = False
    uses_account = False

    def __init__(self, answers: Mapping[str, Expansion | Exception], *, delay_s: float = 0) -> None:
        self.answers = dict(answers)
        self.delay_s = delay_s
        self.queries: list[str] = []
        self.closed = False

    async def start(self) -> None:
        """Do nothing: there is nothing to load."""

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the scripted expansion, or raise the scripted exception."""
        self.queries.append(request.text)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        answer = self.answers.get(request.text)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Record that the generator was closed."""
        self.closed = True


def remove_expansion(
    rewritten: dict[str, Any],
    user_query: UserQuery,
    *,
    document_path: ClausePath = (),
    keep_highlight_query: bool = False,
) -> dict[str, Any]:
    """Return the original body of a rewrite: take away exactly what was added.

    `document_path` is that of the `Rewrite`. Set `keep_highlight_query` when the original search already had a
    highlight_query, which a rewrite leaves as it is.
    """
    original: Any = rewritten
    leaf_paths = [leaf.path for leaf in user_query.leaves]
    if document_path and document_path not in leaf_paths:
        original = _restore_clause(original, document_path)
    for path in leaf_paths:
        original = _restore_clause(original, path)
    highlight = original.get("highlight")
    if isinstance(highlight, dict) and not keep_highlight_query:
        original = original | {
            "highlight": {key: value for key, value in highlight.items() if key != "highlight_query"}
        }
    return dict(original)


def _restore_clause(value: Any, path: ClausePath) -> Any:
    """Return a copy of `value` with the original clause at `path`, when an expansion stands beside it."""
    if not path:
        match value:
            case {"bool": {"must": [clause], "should": [_] | [_, _], **other_keys}} if not other_keys:
                return clause
            case {"bool": {"should": [clause, _] | [clause, _, _], "minimum_should_match": 1, **other_keys}} if (
                not other_keys
            ):
                return clause
        return value
    copy = value.copy()
    copy[path[0]] = _restore_clause(copy[path[0]], path[1:])
    return copy
