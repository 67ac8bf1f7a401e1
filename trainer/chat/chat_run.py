"""One run of requests to a chat endpoint: their pace, their token budget, their failures and their counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from querylift.plugin.errors import GeneratorError, MissingExtra, SettingsError
from querylift.plugin.expansion import clean_prose
from querylift.plugin.generators.chat_answer import AnswerRefused, OnlyThinking, has_answer_ended, read_chat_answer
from querylift.trainer.chat.empty_answers import EmptyAnswerMeter
from querylift.trainer.chat.endpoint_plan import API_KEY_VARIABLES, EndpointPlan, Messages, estimate_tokens
from querylift.trainer.chat.throughput import Throughput

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

    `answered_before` requests of the same command got their answers in earlier runs. `counts` holds "refused" and "failed"
    requests, "tokens_in" and "tokens_out". Callers add counts of their own.
    """

    def __init__(
        self, plan: EndpointPlan, client: openai.AsyncOpenAI, *, request_count: int, answered_before: int = 0
    ) -> None:
        self._clock = asyncio.get_running_loop().time
        self._started_s = self._clock()
        self._plan, self._client = plan, client
        self._extra_body = plan.build_extra_body()
        self._pacer = RequestPacer(plan.requests_per_minute, clock=self._clock, sleep=asyncio.sleep)
        self._empty_answers = EmptyAnswerMeter(answered_before=answered_before)
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

    def measure_throughput(self, text_count: int) -> Throughput:
        """Return the rate of so many texts since the run began."""
        return Throughput(text_count, self._clock() - self._started_s)

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
        key or the model. Raises GeneratorError after `MAX_CONSECUTIVE_FAILURES`, and when too many answers are empty.
        """
        create = partial(self._client.chat.completions.create, messages=cast(Any, messages), **options)
        return await self._send(create, messages, read_chat_answer)

    async def send_prompt(self, prompt: str, **options: Any) -> ChatAnswer | None:
        """Do as `send_request` does, with a prompt that the model continues, and without a chat template."""
        create = partial(self._client.completions.create, prompt=prompt, **options)
        return await self._send(create, [{"content": prompt}], _read_completion)

    async def _send(
        self,
        create: Callable[..., Awaitable[Any]],
        messages: Messages,
        read_text: Callable[[Mapping[str, Any]], str],
    ) -> ChatAnswer | None:
        """Call `create`, and return the text that `read_text` finds and its end. Tokens are estimated by `messages`."""
        import openai

        await self._pacer.wait_for_turn()
        try:
            answer = await create(model=self._plan.model, max_tokens=self._plan.max_tokens, extra_body=self._extra_body)
        except openai.APIError as error:
            self._record_failure(error)
            return None
        if not getattr(answer, "choices", None):  # for example a web page, when the URL is not that of an API
            self._record_failure(None)
            return None
        return self._read_answer(messages, answer.to_dict(warnings=False), read_text)

    def _read_answer(
        self, messages: Messages, answer: Mapping[str, Any], read_text: Callable[[Mapping[str, Any]], str]
    ) -> ChatAnswer | None:
        usage = answer.get("usage") or {}
        self.counts["tokens_in"] += usage.get("prompt_tokens") or estimate_tokens(messages)
        try:
            content = read_text(answer)
        except AnswerRefused:
            self.counts["refused"] += 1
            self._record_success(usage, "")
            return None
        except GeneratorError as error:
            self.counts["tokens_out"] += usage.get("completion_tokens") or 0
            if isinstance(error, OnlyThinking):
                self._count_answer(is_empty=True)
            self._record_failure(error)
            return None
        self._count_answer(is_empty=not clean_prose(content))
        self._record_success(usage, content)
        return ChatAnswer(content, has_answer_ended(answer))

    def _count_answer(self, *, is_empty: bool) -> None:
        """Count an answer. Raise GeneratorError when too many are empty."""
        meter = self._empty_answers
        meter.count_answer(is_empty=is_empty)
        if meter.has_too_many:
            raise GeneratorError(
                f"{meter.empty_count:,} of {meter.answer_count:,} answers of {self._plan.model} at {self._plan.public_url} "
                f"are empty, {self._plan.empty_answer_remedy}"
            )

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
            remedy = "what it wrote before is kept: run the same command again"
            if isinstance(error, OnlyThinking):
                remedy = self._plan.empty_answer_remedy
            raise GeneratorError(
                f"the model at {self._plan.public_url} failed {self._consecutive_failures} requests in a row "
                f"({self.last_failure}); {remedy}"
            ) from error


@asynccontextmanager
async def open_chat_client(plan: EndpointPlan, *, api_key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """Open a client for the endpoint, with a connection for each request that runs at the same time.

    It retries status 429, status 5xx and lost connections, and honours Retry-After.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtra("openai", "train") from error

    make_limits = type(openai.DEFAULT_CONNECTION_LIMITS)  # the HTTP library below differs between versions of openai
    limits = make_limits(max_connections=plan.concurrency, max_keepalive_connections=plan.concurrency)
    options: dict[str, Any] = {
        "max_retries": plan.max_retries,
        "timeout": plan.timeout_s,
        "http_client": openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=plan.timeout_s, limits=limits),
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


def _read_completion(answer: Mapping[str, Any]) -> str:
    """Return the text of a completion. Raises GeneratorError for an answer of another shape."""
    text = answer["choices"][0].get("text")
    if not isinstance(text, str):
        raise GeneratorError("the endpoint's answer is not a completion")
    return text


def _describe_failure(error: openai.APIError | GeneratorError | None) -> str:
    """Return the status and the error message on one line, without the request."""
    if error is None:
        return "an answer without choices"
    status = getattr(error, "status_code", None)
    return f"{f'{status} ' if status else ''}{' '.join(getattr(error, 'message', str(error)).split())[:200]}"
