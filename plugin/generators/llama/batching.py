"""Continuous batching: one pass of the model adds a token to several expansions, and a new one may join at any pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from querylift.plugin.expansion import MAX_TOKENS, STOP_STRINGS, build_prompt

STEP_TOKENS = 64
"""Prompt tokens that one pass reads, over all sequences. It bounds how long a running sequence waits for a new prompt."""
_STOP_BYTES = tuple(stop.encode() for stop in STOP_STRINGS)


class QueryTooLong(Exception):
    """The query has more tokens than a slot holds."""


@dataclass(frozen=True, slots=True)
class BatchToken:
    """One token of one sequence in a pass. The model predicts the next token where `needs_next` is set."""

    token: int
    position: int
    sequence: int
    needs_next: bool


class BatchedModel(Protocol):
    """The methods that batching needs of a model. `LlamaModel` implements and describes them."""

    @property
    def can_copy_prefix(self) -> bool: ...
    def tokenize(self, text: str) -> list[int] | None: ...
    def get_token_bytes(self, token: int) -> bytes: ...
    def is_end_token(self, token: int) -> bool: ...
    def copy_prefix(self, source: int, target: int, *, count: int) -> None: ...
    def clear_sequence(self, sequence: int) -> None: ...
    def decode_batch(self, batch: Sequence[BatchToken]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class FinishedText:
    """The text that the model wrote for one request, and its number of tokens."""

    request_id: int
    text: str
    token_count: int


@dataclass(slots=True)
class _RequestState:
    """The progress of one request: its tokens, how many of them the model has read, and the bytes of its output."""

    request_id: int
    tokens: list[int]
    prompt_size: int
    sequence: int = -1
    read_count: int = 0
    output: bytes = b""
    has_stopped: bool = False

    @property
    def written_count(self) -> int:
        """Number of tokens that the model wrote."""
        return len(self.tokens) - self.prompt_size

    @property
    def is_complete(self) -> bool:
        """Whether the text has reached a stop string or its maximum length."""
        return self.has_stopped or self.written_count >= MAX_TOKENS

    def take_unread_tokens(self, limit: int) -> list[BatchToken]:
        """Return the next tokens for the model to read, at most `limit`, and mark them as read."""
        start, self.read_count = self.read_count, min(len(self.tokens), self.read_count + limit)
        return [
            BatchToken(self.tokens[position], position, self.sequence, position + 1 == len(self.tokens))
            for position in range(start, self.read_count)
        ]

    def append_token(self, token: int, token_bytes: bytes) -> None:
        """Add a token to the text, and cut the text before the first stop string."""
        self.tokens.append(token)
        self.output += token_bytes
        stops = [position for stop in _STOP_BYTES if (position := self.output.find(stop)) >= 0]
        if stops:
            self.output = self.output[: min(stops)]
            self.has_stopped = True


class Batcher:
    """Writes texts for up to `slots` requests at a time; more requests wait in order. Not thread-safe.

    `write_prompt` returns the prompt of a query.
    """

    def __init__(
        self,
        model: BatchedModel,
        *,
        slots: int,
        slot_tokens: int,
        write_prompt: Callable[[str], str] = build_prompt,
    ) -> None:
        self._model, self._write_prompt = model, write_prompt
        self._max_prompt_tokens = slot_tokens - MAX_TOKENS
        self._waiting: deque[_RequestState] = deque()
        self._slots: list[_RequestState | None] = [None] * slots
        self._prefix_sequence = slots
        self._prefix = self._read_common_prefix()

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting) or any(self._slots)

    def submit(self, request_id: int, query: str) -> None:
        """Queue a request. Raises QueryTooLong."""
        tokens = self._model.tokenize(self._write_prompt(query))
        if tokens is None or len(tokens) > self._max_prompt_tokens:
            max_query_tokens = self._max_prompt_tokens - len(self._prefix)
            raise QueryTooLong(f"the query is longer than {max_query_tokens} tokens of the model")
        self._waiting.append(_RequestState(request_id, tokens, len(tokens)))

    def cancel(self, request_id: int) -> None:
        """Drop a request, whether it waits or runs. An unknown id does nothing."""
        self._waiting = deque(state for state in self._waiting if state.request_id != request_id)
        for state in self._running_states:
            if state.request_id == request_id:
                self._free_slot(state)

    def fill_free_slots(self) -> list[int]:
        """Give the free slots to requests that wait. Return the ids of these requests."""
        started_ids = []
        for sequence, state in enumerate(self._slots):
            if state is None and self._waiting:
                waiting_state = self._waiting.popleft()
                self._slots[sequence] = self._start_request(waiting_state, sequence)
                started_ids.append(waiting_state.request_id)
        return started_ids

    def run_step(self) -> list[FinishedText]:
        """Run one pass of the model over all sequences. Return the texts that this pass finished."""
        self.fill_free_slots()
        reads = list(self._choose_tokens_to_read())
        next_tokens = self._model.decode_batch([token for _, tokens in reads for token in tokens])
        states = [state for state, tokens in reads if tokens[-1].needs_next]
        finished = []
        for state, token in zip(states, next_tokens, strict=True):
            is_end = self._model.is_end_token(token)
            if not is_end:
                state.append_token(token, self._model.get_token_bytes(token))
            if is_end or state.is_complete:
                self._free_slot(state)
                text = state.output.decode(errors="replace")
                finished.append(FinishedText(state.request_id, text, state.written_count))
        return finished

    @property
    def _running_states(self) -> list[_RequestState]:
        """The running requests by sequence number: llama.cpp puts only consecutive sequences into one pass."""
        return [state for state in self._slots if state]

    def _read_common_prefix(self) -> list[int]:
        """Let the model read the beginning that all prompts share, so that each request can copy it."""
        if not self._model.can_copy_prefix:
            return []
        prefix = _find_common_prefix(*(self._model.tokenize(self._write_prompt(query)) or [] for query in ("a", "1")))
        batch = [BatchToken(token, position, self._prefix_sequence, False) for position, token in enumerate(prefix)]
        for start in range(0, len(batch), STEP_TOKENS):
            self._model.decode_batch(batch[start : start + STEP_TOKENS])
        return prefix

    def _start_request(self, state: _RequestState, sequence: int) -> _RequestState:
        state.sequence = sequence
        # A tokenizer may join the prefix's last letters to the query's first ones. Then less is copied, which is correct.
        state.read_count = min(len(_find_common_prefix(self._prefix, state.tokens)), state.prompt_size - 1)
        if state.read_count:
            self._model.copy_prefix(self._prefix_sequence, sequence, count=state.read_count)
        return state

    def _choose_tokens_to_read(self) -> Iterator[tuple[_RequestState, list[BatchToken]]]:
        """Yield each request with the tokens that it reads in this pass.

        A request that is writing reads one token. The prompts share STEP_TOKENS.
        """
        prompt_budget = STEP_TOKENS
        for state in self._running_states:
            if state.written_count:
                yield state, state.take_unread_tokens(1)
            elif prompt_budget:
                tokens = state.take_unread_tokens(prompt_budget)
                prompt_budget -= len(tokens)
                yield state, tokens

    def _free_slot(self, state: _RequestState) -> None:
        self._model.clear_sequence(state.sequence)
        self._slots[state.sequence] = None


def _find_common_prefix(tokens: Sequence[int], other_tokens: Sequence[int]) -> list[int]:
    """Return the tokens with which both lists begin."""
    pairs = zip(tokens, other_tokens, strict=False)
    return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
