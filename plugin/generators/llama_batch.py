"""Continuous batching: several expansions are written in one pass of the model per token, and new ones join any time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from plugin.expansion import MAX_TOKENS, STOP, prompt
from plugin.generators.llama_model import Row

STEP_TOKENS = 64
"""Prompt tokens read per step, over all sequences: what a running sequence may have to wait for."""
LOOP_TOKENS = 4
LOOP_TIMES = 3
_STOP_BYTES = tuple(s.encode() for s in STOP)


class TooLong(Exception):
    """The query has more tokens than a slot holds."""


class Model(Protocol):
    """What batching needs of a model; see `LlamaModel`."""

    @property
    def shares_prefixes(self) -> bool: ...
    def tokenize(self, text: str) -> list[int] | None: ...
    def piece(self, token: int) -> bytes: ...
    def ends(self, token: int) -> bool: ...
    def share(self, source: int, target: int, *, count: int) -> None: ...
    def forget(self, sequence: int) -> None: ...
    def decode(self, rows: Sequence[Row]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Finished:
    """What the model wrote for one request."""

    request: int
    text: str


@dataclass(slots=True)
class _Run:
    """One request: its tokens, how many of them the model has read, and the bytes written so far."""

    request: int
    tokens: list[int]
    prompt_size: int
    sequence: int = -1
    read: int = 0
    output: bytes = b""
    repeats: Counter[tuple[int, ...]] = field(default_factory=Counter)

    def written(self) -> int:
        """Tokens that the model wrote."""
        return len(self.tokens) - self.prompt_size

    def take(self, limit: int) -> list[Row]:
        """The next tokens for the model to read, at most `limit`."""
        start, self.read = self.read, min(len(self.tokens), self.read + limit)
        return [Row(self.tokens[i], i, self.sequence, i + 1 == len(self.tokens)) for i in range(start, self.read)]

    def write(self, token: int, piece: bytes) -> bool:
        """Add `token`; whether the text is complete: stop string, length, or a loop."""
        self.tokens.append(token)
        self.output += piece
        return self._stopped() or self.written() >= MAX_TOKENS or self._loops()

    def _stopped(self) -> bool:
        cut = min((at for stop in _STOP_BYTES if (at := self.output.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.output = self.output[:cut]
        return cut >= 0

    def _loops(self) -> bool:
        if self.written() < LOOP_TOKENS:
            return False
        last = tuple(self.tokens[-LOOP_TOKENS:])
        self.repeats[last] += 1
        return self.repeats[last] >= LOOP_TIMES


class Batcher:
    """Writes for up to `slots` requests at a time; the rest wait in order. Not thread-safe."""

    def __init__(self, model: Model, *, slots: int, prompt_tokens: int) -> None:
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._waiting: deque[_Run] = deque()
        self._running: dict[int, _Run] = {}
        self._free = list(range(slots))
        self._prefix_sequence = slots
        self._prefix = self._read_prefix()

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._running or self._waiting)

    def submit(self, request: int, query: str) -> None:
        """Queue a request. Raises TooLong."""
        tokens = self._model.tokenize(prompt(query))
        if tokens is None or len(tokens) > len(self._prefix) + self._prompt_tokens:
            raise TooLong(f"the query has more than about {self._prompt_tokens} tokens")
        self._waiting.append(_Run(request, tokens, len(tokens)))

    def cancel(self, request: int) -> None:
        """Forget a request, wherever it is; one that is not here is no error."""
        if request in self._running:
            self._leave(self._running[request])
        else:
            self._waiting = deque(run for run in self._waiting if run.request != request)

    def step(self) -> list[Finished]:
        """One pass of the model over all sequences; the requests that it completed."""
        self._admit()
        rows = {run.request: taken for run, taken in self._shares()}
        tokens = self._model.decode([row for taken in rows.values() for row in taken])
        wanting = [self._running[request] for request, taken in rows.items() if taken[-1].wanted]
        return [self._finish(run) for run, token in zip(wanting, tokens, strict=True) if self._complete(run, token)]

    def _read_prefix(self) -> list[int]:
        """Read once what all prompts begin with, so that each request shares it."""
        if not self._model.shares_prefixes:
            return []
        prefix = _common(*(self._model.tokenize(prompt(query)) or [] for query in ("a", "1")))
        rows = [Row(token, i, self._prefix_sequence, False) for i, token in enumerate(prefix)]
        for start in range(0, len(rows), STEP_TOKENS):
            self._model.decode(rows[start : start + STEP_TOKENS])
        return prefix

    def _admit(self) -> None:
        while self._free and self._waiting:
            run = self._waiting.popleft()
            run.sequence = self._free.pop()
            # A tokeniser may join the prefix's last letters to a query's first: then less is shared, nothing is wrong.
            run.read = min(len(_common(self._prefix, run.tokens)), run.prompt_size - 1)
            self._model.share(self._prefix_sequence, run.sequence, count=run.read)
            self._running[run.request] = run

    def _shares(self) -> Iterator[tuple[_Run, list[Row]]]:
        """What each sequence has read in this step: those that write one token, the prompts a part of STEP_TOKENS."""
        budget = STEP_TOKENS
        for run in self._running.values():
            if run.written():
                yield run, run.take(1)
            elif budget:
                taken = run.take(budget)
                budget -= len(taken)
                yield run, taken

    def _complete(self, run: _Run, token: int) -> bool:
        return self._model.ends(token) or run.write(token, self._model.piece(token))

    def _finish(self, run: _Run) -> Finished:
        self._leave(run)
        return Finished(run.request, run.output.decode(errors="replace"))

    def _leave(self, run: _Run) -> None:
        del self._running[run.request]
        self._model.forget(run.sequence)
        self._free.append(run.sequence)


def _common(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The tokens with which both begin."""
    pairs = zip(first, second, strict=False)
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
