"""Public fakes and checks for code that builds on Querylift: a clock, a generator."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from querylift.plugin.dsl import Found
from querylift.plugin.dsl.clauses import Path
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import Ask


class ManualClock:
    """A clock that moves when told to. Seconds."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now_s += seconds


class ScriptedGenerator:
    """A generator that answers from a mapping of text to expansion, after `delay_s`, and counts what it is asked.

    A value that is an exception is raised. A text that is not in the mapping has no expansion.
    """

    identity = "scripted"
    reads_index = False

    def __init__(self, answers: Mapping[str, Expansion | Exception], *, delay_s: float = 0) -> None:
        self.answers = dict(answers)
        self.delay_s = delay_s
        self.asked: list[str] = []
        self.closed = False

    async def start(self) -> None:
        """Nothing to load."""

    async def expand(self, ask: Ask) -> Expansion | None:
        """The scripted answer."""
        self.asked.append(ask.text)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        answer = self.answers.get(ask.text)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


def undo(rewritten: dict[str, Any], found: Found, *, keep_highlight_query: bool = False) -> dict[str, Any]:
    """What `querylift.plugin.dsl.rewrite` was given: its result less exactly what it added beside the clauses of `found`.

    `keep_highlight_query` is for a request that came with a highlight_query of its own, which a rewrite leaves alone.
    """
    out: Any = rewritten
    for leaf in found.leaves:
        out = _unwrapped(out, leaf.path)
    highlight = out.get("highlight")
    if isinstance(highlight, dict) and not keep_highlight_query:
        out = out | {"highlight": {key: value for key, value in highlight.items() if key != "highlight_query"}}
    return dict(out)


def _unwrapped(value: Any, path: Path) -> Any:
    """A copy of `value` in which the clause at `path` stands alone again, if an expansion stood beside it."""
    if not path:
        match value:
            case {"bool": {"must": [clause], "should": [_], **rest}} if not rest:
                return clause
            case {"bool": {"should": [clause, _], "minimum_should_match": 1, **rest}} if not rest:
                return clause
        return value
    copy = value.copy()
    copy[path[0]] = _unwrapped(copy[path[0]], path[1:])
    return copy
