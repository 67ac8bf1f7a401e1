"""Ask a large language model for candidates, over an OpenAI-compatible API.

Every answer is appended to a file as it arrives. A run can be stopped and started again: it asks only for what the file lacks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from querylift.plugin.expansion import clean_prose
from querylift.trainer.candidates import Candidate, JsonLinesAppender
from querylift.trainer.chat.chat_run import ChatRun, open_chat_client, run_until_first_error
from querylift.trainer.chat.throughput import TimedResult
from querylift.trainer.teaching.candidate_files import read_request_keys
from querylift.trainer.teaching.plan import TeachingPlan
from querylift.trainer.teaching.prompts import FewShotExample, build_request_messages


@dataclass(frozen=True, slots=True)
class TeachingResult(TimedResult):
    """The counts of a run. `left` requests were not made because the token budget was spent.

    `refused` answers were refusals of the model or of a filter, and are not written. `held_out` ones repeat a held-out
    document, and are not written either. `without_end` of the written ones stopped at the token limit.
    """

    written: int = 0
    empty: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None
    without_end: int = 0
    held_out: int = 0


def find_unanswered_requests(requests: Iterable[Candidate], out: Path) -> list[Candidate]:
    """Return the requests that `out` holds no answer to. Removes an incomplete last line of `out` first."""
    answered = read_request_keys(out)
    return [request for request in requests if request.request_key not in answered]


async def ask_teacher(
    requests: Sequence[Candidate],
    plan: TeachingPlan,
    out: Path,
    *,
    api_key: str,
    examples: Sequence[FewShotExample] = (),
    answered_before: int = 0,
    is_held_out: Callable[[Candidate], bool] = lambda candidate: False,
    progress: Callable[[int], None] = lambda count: None,
) -> TeachingResult:
    """Send every request, and append each answer to `out` as it arrives. `out` has `answered_before` answers already.

    An answer that `is_held_out` is counted and not written.

    Stops before a request that could exceed the token budget. Raises as `ChatRun.send_request` does. Answers that were
    written before stay in the file.
    """
    async with open_chat_client(plan, api_key=api_key) as client:
        with JsonLinesAppender(out) as appender:
            chat = ChatRun(plan, client, request_count=len(requests), answered_before=answered_before)
            run = _TeachingRun(requests, plan, chat, appender, examples, is_held_out, progress)
            await run_until_first_error([run.answer_requests() for _ in range(min(plan.concurrency, len(requests)))])
            return run.summarise()


class _TeachingRun:
    """One run, in which several workers take requests from one queue."""

    def __init__(
        self,
        requests: Sequence[Candidate],
        plan: TeachingPlan,
        chat: ChatRun,
        appender: JsonLinesAppender,
        examples: Sequence[FewShotExample],
        is_held_out: Callable[[Candidate], bool],
        progress: Callable[[int], None],
    ) -> None:
        self._queue, self._plan, self._chat, self._appender = deque(requests), plan, chat, appender
        self._examples, self._is_held_out, self._progress = examples, is_held_out, progress

    async def answer_requests(self) -> None:
        """Take requests from the queue until it is empty or the token budget is spent."""
        counts = self._chat.counts
        while self._queue:
            messages = build_request_messages(self._queue[0], self._examples, shots=self._plan.shots)
            with self._chat.reserve_tokens(messages) as is_within_budget:
                if not is_within_budget:
                    return
                await self._answer_request(self._queue.popleft(), messages)
            self._progress(sum(counts[name] for name in ("written", "empty", "refused", "failed", "held_out")))

    def summarise(self) -> TeachingResult:
        """Return the counts of the run."""
        counts = self._chat.counts
        throughput = self._chat.measure_throughput(counts["written"])
        return TeachingResult(**counts, left=len(self._queue), cost=self._chat.cost, throughput=throughput)

    async def _answer_request(self, request: Candidate, messages: Sequence[Mapping[str, str]]) -> None:
        answer = await self._chat.send_request(
            messages, temperature=request.params["temperature"], seed=request.request_seed
        )
        if answer is None:
            return
        candidate = replace(request, text=clean_prose(answer.text), ended=answer.ended)
        if not candidate.text:
            self._chat.counts["empty"] += 1
        elif self._is_held_out(candidate):
            self._chat.counts["held_out"] += 1
        else:
            self._chat.counts["written"] += 1
            self._chat.counts["without_end"] += not answer.ended
            self._appender.append(candidate.to_json())
