"""Public fakes and checks for code that builds on Querylift: a clock, a generator."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from plugin.expansion import Expansion
from plugin.generators.base import Ask


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
