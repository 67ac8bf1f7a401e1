"""Continuous batching: several expansions are written in one pass of the model per token, and new ones join any time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from querylift.plugin.expansion import MAX_TOKENS, STOP, prompt

STEP_TOKENS = 64
"""Prompt tokens read per step, over all sequences: what a running sequence may have to wait for."""
_STOP_BYTES = tuple(s.encode() for s in STOP)


class TooLong(Exception):
    """The query has more tokens than a slot holds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One token of one sequence in a decoding step; `wanted` rows get a next token."""

    token: int
    position: int
    sequence: int
    wanted: bool


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
    """What the model wrote for one request, and in how many tokens."""

    request: int
    text: str
    tokens: int


@dataclass(slots=True)
class _Run:
    """One request: its tokens, how many of them the model has read, and the bytes written so far."""

    request: int
    tokens: list[int]
    prompt_size: int
    sequence: int = -1
    read: int = 0
    output: bytes = b""

    def written(self) -> int:
        """Tokens that the model wrote."""
        return len(self.tokens) - self.prompt_size

    def take(self, limit: int) -> list[Row]:
        """The next tokens for the model to read, at most `limit`."""
        start, self.read = self.read, min(len(self.tokens), self.read + limit)
        return [Row(self.tokens[i], i, self.sequence, i + 1 == len(self.tokens)) for i in range(start, self.read)]

    def write(self, token: int, piece: bytes) -> bool:
        """Add `token`; whether the text is complete: a stop string, or the length."""
        self.tokens.append(token)
        self.output += piece
        return self._stopped() or self.written() >= MAX_TOKENS

    def _stopped(self) -> bool:
        cut = min((at for stop in _STOP_BYTES if (at := self.output.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.output = self.output[:cut]
        return cut >= 0


class Batcher:
    """Writes for up to `slots` requests at a time; the rest wait in order. Not thread-safe."""

    def __init__(self, model: Model, *, slots: int, slot_tokens: int) -> None:
        self._model = model
        self._prompt_tokens = slot_tokens - MAX_TOKENS
        self._waiting: deque[_Run] = deque()
        self._slots: list[_Run | None] = [None] * slots
        self._prefix_sequence = slots
        self._prefix = self._read_prefix()

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting) or any(self._slots)

    def submit(self, request: int, query: str) -> None:
        """Queue a request. Raises TooLong."""
        tokens = self._model.tokenize(prompt(query))
        if tokens is None or len(tokens) > self._prompt_tokens:
            raise TooLong(f"the query is longer than {self._prompt_tokens - len(self._prefix)} tokens of the model")
        self._waiting.append(_Run(request, tokens, len(tokens)))

    def cancel(self, request: int) -> None:
        """Forget a request, wherever it is; one that is not here is no error."""
        self._waiting = deque(run for run in self._waiting if run.request != request)
        for run in self._running():
            if run.request == request:
                self._leave(run)

    def step(self) -> list[Finished]:
        """One pass of the model over all sequences; the requests that it completed."""
        self._admit()
        shares = list(self._shares())
        tokens = self._model.decode([row for _, rows in shares for row in rows])
        wanting = [run for run, rows in shares if rows[-1].wanted]
        return [self._finish(run) for run, token in zip(wanting, tokens, strict=True) if self._complete(run, token)]

    def _running(self) -> list[_Run]:
        """In the order of their sequences: llama.cpp puts only consecutive ones into one pass."""
        return [run for run in self._slots if run]

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
        for sequence, taken in enumerate(self._slots):
            if taken is None and self._waiting:
                self._slots[sequence] = self._begin(self._waiting.popleft(), sequence)

    def _begin(self, run: _Run, sequence: int) -> _Run:
        run.sequence = sequence
        # A tokeniser may join the prefix's last letters to a query's first: then less is shared, and nothing is wrong.
        run.read = min(len(_common(self._prefix, run.tokens)), run.prompt_size - 1)
        if run.read:
            self._model.share(self._prefix_sequence, sequence, count=run.read)
        return run

    def _shares(self) -> Iterator[tuple[_Run, list[Row]]]:
        """What each sequence has read in this step: those that write one token, the prompts a part of STEP_TOKENS."""
        budget = STEP_TOKENS
        for run in self._running():
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
        return Finished(run.request, run.output.decode(errors="replace"), run.written())

    def _leave(self, run: _Run) -> None:
        self._model.forget(run.sequence)
        self._slots[run.sequence] = None


def _common(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The tokens with which both begin."""
    pairs = zip(first, second, strict=False)
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
