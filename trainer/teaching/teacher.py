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

    `refused` answers were refusals of the model or of a filter, and are not written. `without_end` of the written ones
    stopped at the token limit.
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
    progress: Callable[[int], None] = lambda count: None,
) -> TeachingResult:
    """Send every request, and append each answer to `out` as it arrives. `out` has `answered_before` answers already.

    Stops before a request that could exceed the token budget. Raises as `ChatRun.send_request` does. Answers that were
    written before stay in the file.
    """
    async with open_chat_client(plan, api_key=api_key) as client:
        with JsonLinesAppender(out) as appender:
            chat = ChatRun(plan, client, request_count=len(requests), answered_before=answered_before)
            run = _TeachingRun(requests, plan, chat, appender, examples, progress)
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
        progress: Callable[[int], None],
    ) -> None:
        self._queue, self._plan, self._chat, self._appender = deque(requests), plan, chat, appender
        self._examples, self._progress = examples, progress

    async def answer_requests(self) -> None:
        """Take requests from the queue until it is empty or the token budget is spent."""
        counts = self._chat.counts
        while self._queue:
            messages = build_request_messages(self._queue[0], self._examples, shots=self._plan.shots)
            with self._chat.reserve_tokens(messages) as is_within_budget:
                if not is_within_budget:
                    return
                await self._answer_request(self._queue.popleft(), messages)
            self._progress(sum(counts[name] for name in ("written", "empty", "refused", "failed")))

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
        text = clean_prose(answer.text)
        self._chat.counts["written" if text else "empty"] += 1
        if text:
            self._chat.counts["without_end"] += not answer.ended
            self._appender.append(replace(request, text=text, ended=answer.ended).to_json())
