"""One run of requests to a chat endpoint: their pace, their token budget, their failures and their counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from querylift.plugin.errors import GeneratorError, MissingExtra, SettingsError
from querylift.plugin.generators.chat_answer import AnswerRefused, has_answer_ended, read_chat_answer
from querylift.trainer.chat.endpoint_plan import API_KEY_VARIABLES, EndpointPlan, Messages, estimate_tokens

if TYPE_CHECKING:
    import openai

MAX_CONSECUTIVE_FAILURES = 5
"""The run stops after so many failed requests in a row. Each request has been retried before it counts as failed."""
_KEY_REMEDY = f"set {API_KEY_VARIABLES[0]} to one that it takes"
_FATAL_STATUSES = {
    401: "{url} does not take the API key; " + _KEY_REMEDY,
    403: "{url} does not let the API key use {model!r}; " + _KEY_REMEDY,
    404: "{url} knows no model {model!r}, or is no OpenAI-compatible API; name another --model, or an --endpoint with its /v1",
}
"""HTTP statuses that end the run at once, with the error sentence."""


class ChatAnswer(NamedTuple):
    """The text of an answer. `ended` is False when the model stopped at its token limit."""

    text: str
    ended: bool


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


class ChatRun:
    """The requests of one run to one endpoint.

    `counts` holds "refused" and "failed" requests, "tokens_in" and "tokens_out". Callers add counts of their own.
    """

    def __init__(self, plan: EndpointPlan, client: openai.AsyncOpenAI, *, request_count: int) -> None:
        loop = asyncio.get_running_loop()
        self._plan, self._client = plan, client
        self._pacer = RequestPacer(plan.requests_per_minute, clock=loop.time, sleep=asyncio.sleep)
        self._reserved_tokens = 0
        self._consecutive_failures = 0
        self._max_failures = min(MAX_CONSECUTIVE_FAILURES, request_count)
        self.counts: Counter[str] = Counter(tokens_in=0, tokens_out=0)
        self.last_failure = ""
        """Why the last failed request failed, in a few words."""

    @property
    def cost(self) -> float | None:
        """The price of the tokens so far, or None when no price is known."""
        return self._plan.compute_cost(self.counts["tokens_in"], self.counts["tokens_out"])

    @contextmanager
    def reserve_tokens(self, messages: Messages) -> Iterator[bool]:
        """Reserve the tokens of a request during the block. Give False when the token budget has no room for them."""
        needed_tokens = estimate_tokens(messages) + self._plan.max_tokens
        used_tokens = self.counts["tokens_in"] + self.counts["tokens_out"] + self._reserved_tokens
        if self._plan.token_budget is not None and used_tokens + needed_tokens > self._plan.token_budget:
            yield False
            return
        self._reserved_tokens += needed_tokens
        try:
            yield True
        finally:
            self._reserved_tokens -= needed_tokens

    async def send_request(self, messages: Messages, **options: Any) -> ChatAnswer | None:
        """Wait for the turn, send the messages, and return the answer. `options` go into the request.

        Return None when the request failed or was refused, and count it. Raises SettingsError when the endpoint refuses the
        key or the model, and GeneratorError after `MAX_CONSECUTIVE_FAILURES`.
        """
        import openai

        await self._pacer.wait_for_turn()
        untyped_messages: Any = messages
        try:
            answer = await self._client.chat.completions.create(
                model=self._plan.model, messages=untyped_messages, max_tokens=self._plan.max_tokens, **options
            )
        except openai.APIError as error:
            self._record_failure(error)
            return None
        if not getattr(answer, "choices", None):  # for example a web page, when the URL is not that of an API
            self._record_failure(None)
            return None
        return self._read_answer(messages, answer.to_dict(warnings=False))

    def _read_answer(self, messages: Messages, answer: Mapping[str, Any]) -> ChatAnswer | None:
        usage = answer.get("usage") or {}
        self.counts["tokens_in"] += usage.get("prompt_tokens") or estimate_tokens(messages)
        try:
            content = read_chat_answer(answer)
        except AnswerRefused:
            self.counts["refused"] += 1
            self._record_success(usage, "")
            return None
        except GeneratorError as error:
            self.counts["tokens_out"] += usage.get("completion_tokens") or 0
            self._record_failure(error)
            return None
        self._record_success(usage, content)
        return ChatAnswer(content, has_answer_ended(answer))

    def _record_success(self, usage: Mapping[str, int], content: str) -> None:
        self._consecutive_failures = 0
        self.counts["tokens_out"] += usage.get("completion_tokens") or estimate_tokens([{"content": content}])

    def _record_failure(self, error: openai.APIError | GeneratorError | None) -> None:
        """Count a failure. Raise when its status is fatal, or when too many requests in a row have failed."""
        status = getattr(error, "status_code", None)
        if status in _FATAL_STATUSES:
            sentence = _FATAL_STATUSES[status].format(url=self._plan.public_url, model=self._plan.model)
            raise SettingsError(sentence) from error
        self.counts["failed"] += 1
        self.last_failure = _describe_failure(error)
        self._consecutive_failures += 1
        if self._consecutive_failures >= self._max_failures:
            raise GeneratorError(
                f"the teacher at {self._plan.public_url} failed {self._consecutive_failures} requests in a row "
                f"({self.last_failure}); what it wrote before is kept: run the same command again"
            ) from error


@asynccontextmanager
async def open_chat_client(plan: EndpointPlan, *, api_key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """Open a client for the endpoint. It retries status 429, status 5xx and lost connections, and honours Retry-After."""
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
        yield client


async def run_until_first_error(jobs: Iterable[Awaitable[None]]) -> None:
    """Run `jobs` until all have ended or one has raised. Cancel the others then, and wait for them."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _describe_failure(error: openai.APIError | GeneratorError | None) -> str:
    """Return the status and the error message on one line, without the request."""
    if error is None:
        return "an answer without choices"
    status = getattr(error, "status_code", None)
    return f"{f'{status} ' if status else ''}{' '.join(getattr(error, 'message', str(error)).split())[:200]}"
