"""Ask a large language model for candidates, over an OpenAI-compatible API.

Every answer is appended to a file as it arrives. A run can be stopped and started again: it asks only for what the file lacks.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querylift.plugin.errors import GeneratorError, MissingExtra, SettingsError
from querylift.plugin.expansion import clean_prose
from querylift.plugin.generators.chat_answer import AnswerRefused, read_chat_answer
from querylift.trainer.candidates import Candidate, JsonLinesAppender
from querylift.trainer.teaching.candidate_files import read_request_keys
from querylift.trainer.teaching.plan import TeachingPlan
from querylift.trainer.teaching.prompts import FewShotExample, build_request_messages, estimate_tokens

if TYPE_CHECKING:
    import openai

API_KEY_VARIABLES = ("QUERYLIFT_TEACHER_API_KEY", "OPENAI_API_KEY")
MAX_CONSECUTIVE_FAILURES = 5
"""The run stops after so many failed requests in a row. Each request has been retried before it counts as failed."""
_NO_API_KEY = "none"
"""The client requires a key. A local server ignores it."""
_KEY_REMEDY = f"set {API_KEY_VARIABLES[0]} to one that it takes"
_FATAL_STATUSES = {
    401: "{url} does not take the API key; " + _KEY_REMEDY,
    403: "{url} does not let the API key use {model!r}; " + _KEY_REMEDY,
    404: "{url} knows no model {model!r}, or is no OpenAI-compatible API; name another --model, or an --endpoint with its /v1",
}
"""HTTP statuses that end the run at once, with the error sentence."""


@dataclass(frozen=True, slots=True)
class TeachingResult:
    """The counts of a run. `left` requests were not made because the token budget was spent.

    `refused` answers were refusals of the model or of a filter, and are not written.
    """

    written: int = 0
    empty: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the counts as a JSON object for the manifest."""
        return asdict(self)


def choose_api_key(environment: Mapping[str, str]) -> str:
    """Return the first of `API_KEY_VARIABLES` that is set, or a placeholder, as a local server needs no key."""
    return next((environment[name] for name in API_KEY_VARIABLES if environment.get(name)), _NO_API_KEY)


def find_unanswered_requests(requests: Iterable[Candidate], out: Path) -> list[Candidate]:
    """Return the requests that `out` holds no answer to. Removes an incomplete last line of `out` first."""
    answered = read_request_keys(out)
    return [request for request in requests if request.request_key not in answered]


class RequestPacer:
    """Spreads requests evenly over a minute. Without a limit, no request waits."""

    def __init__(
        self, per_minute: float | None, *, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next_s = 0.0
        self._clock = clock
        self._sleep = sleep

    async def wait_for_turn(self) -> None:
        """Return when the caller may send its request."""
        now_s = self._clock()
        turn_s = max(now_s, self._next_s)
        self._next_s = turn_s + self._gap_s
        if turn_s > now_s:
            await self._sleep(turn_s - now_s)


async def ask_teacher(
    requests: Sequence[Candidate],
    plan: TeachingPlan,
    out: Path,
    *,
    api_key: str,
    examples: Sequence[FewShotExample] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> TeachingResult:
    """Send every request, and append each answer to `out` as it arrives.

    Stops before a request that could exceed the token budget. The `openai` client retries status 429, status 5xx and lost
    connections, and honours Retry-After. Raises SettingsError when the endpoint refuses the key or the model, and
    GeneratorError after `MAX_CONSECUTIVE_FAILURES`. Answers that were written before stay in the file.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtra("openai", "train") from error

    options: dict[str, Any] = {
        "max_retries": plan.max_retries,
        "timeout": plan.timeout_s,
        "http_client": openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=plan.timeout_s),
    }
    async with openai.AsyncOpenAI(base_url=plan.base_url, api_key=api_key, **options) as client:
        with JsonLinesAppender(out) as appender:
            run = _TeachingRun(requests, plan, client, appender, examples, progress)
            await _run_until_first_error([run.answer_requests() for _ in range(min(plan.concurrency, len(requests)))])
            return run.summarise()


async def _run_until_first_error(jobs: Iterable[Awaitable[None]]) -> None:
    """Run `jobs` until all have ended or one has raised. Cancel the others then, and wait for them."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _TeachingRun:
    """One run, in which several workers take requests from one queue."""

    def __init__(
        self,
        requests: Sequence[Candidate],
        plan: TeachingPlan,
        client: openai.AsyncOpenAI,
        appender: JsonLinesAppender,
        examples: Sequence[FewShotExample],
        progress: Callable[[int], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._queue, self._plan, self._client, self._appender = deque(requests), plan, client, appender
        self._examples, self._progress = examples, progress
        self._pacer = RequestPacer(plan.requests_per_minute, clock=loop.time, sleep=asyncio.sleep)
        self._counts: Counter[str] = Counter()
        self._reserved_tokens = 0
        self._consecutive_failures = 0
        self._max_failures = min(MAX_CONSECUTIVE_FAILURES, len(requests))

    async def answer_requests(self) -> None:
        """Take requests from the queue until it is empty or the token budget is spent."""
        while self._queue:
            messages = build_request_messages(self._queue[0], self._examples, shots=self._plan.shots)
            needed_tokens = estimate_tokens(messages) + self._plan.max_tokens
            if not self._fits_token_budget(needed_tokens):
                return
            request = self._queue.popleft()
            self._reserved_tokens += needed_tokens
            try:
                await self._pacer.wait_for_turn()
                await self._send_request(request, messages)
            finally:
                self._reserved_tokens -= needed_tokens
            self._progress(sum(self._counts[name] for name in ("written", "empty", "refused", "failed")))

    def summarise(self) -> TeachingResult:
        """Return the counts of the run."""
        tokens_in, tokens_out = self._counts["tokens_in"], self._counts["tokens_out"]
        cost = self._plan.compute_cost(tokens_in, tokens_out)
        return TeachingResult(**{"tokens_in": 0, "tokens_out": 0, **self._counts}, left=len(self._queue), cost=cost)

    def _fits_token_budget(self, needed_tokens: int) -> bool:
        used_tokens = self._counts["tokens_in"] + self._counts["tokens_out"] + self._reserved_tokens
        return self._plan.token_budget is None or used_tokens + needed_tokens <= self._plan.token_budget

    async def _send_request(self, request: Candidate, messages: Sequence[Mapping[str, str]]) -> None:
        import openai

        untyped_messages: Any = messages
        try:
            answer = await self._client.chat.completions.create(
                model=self._plan.model,
                messages=untyped_messages,
                temperature=request.params["temperature"],
                max_tokens=self._plan.max_tokens,
                seed=_compute_request_seed(request),
            )
        except openai.APIError as error:
            self._record_failure(error)
            return
        if not getattr(answer, "choices", None):  # for example a web page, when the URL is not that of an API
            self._record_failure(None)
            return
        self._record_answer(request, messages, answer.to_dict(warnings=False))

    def _record_answer(
        self, request: Candidate, messages: Sequence[Mapping[str, str]], answer: Mapping[str, Any]
    ) -> None:
        usage = answer.get("usage") or {}
        self._counts["tokens_in"] += usage.get("prompt_tokens") or estimate_tokens(messages)
        try:
            content = read_chat_answer(answer)
        except AnswerRefused:
            self._count_answer("refused", usage)
            return
        except GeneratorError as error:
            self._counts["tokens_out"] += usage.get("completion_tokens") or 0
            self._record_failure(error)
            return
        text = clean_prose(content)
        self._count_answer("written" if text else "empty", usage, content)
        if text:
            self._appender.append(replace(request, text=text).to_json())

    def _count_answer(self, kind: str, usage: Mapping[str, int], content: str = "") -> None:
        self._consecutive_failures = 0
        self._counts[kind] += 1
        self._counts["tokens_out"] += usage.get("completion_tokens") or estimate_tokens([{"content": content}])

    def _record_failure(self, error: openai.APIError | GeneratorError | None) -> None:
        """Count a failure. Raise when its status is fatal, or when too many requests in a row have failed."""
        status = getattr(error, "status_code", None)
        if status in _FATAL_STATUSES:
            sentence = _FATAL_STATUSES[status].format(url=self._plan.public_url, model=self._plan.model)
            raise SettingsError(sentence) from error
        self._counts["failed"] += 1
        self._consecutive_failures += 1
        if self._consecutive_failures >= self._max_failures:
            raise GeneratorError(
                f"the teacher at {self._plan.public_url} failed {self._consecutive_failures} requests in a row "
                f"({_describe_failure(error)}); what it wrote before is kept: run the same command again"
            ) from error


def _compute_request_seed(request: Candidate) -> int:
    """Return a seed that differs between requests. With one fixed seed, a server would repeat the same sample."""
    return int(hashlib.sha256(request.request_key.encode()).hexdigest()[:7], 16)


def _describe_failure(error: openai.APIError | GeneratorError | None) -> str:
    """Return the status and the error message on one line, without the request."""
    if error is None:
        return "an answer without choices"
    status = getattr(error, "status_code", None)
    return f"{f'{status} ' if status else ''}{' '.join(getattr(error, 'message', str(error)).split())[:200]}"
