"""A large model writes candidate expansions behind an OpenAI-compatible endpoint; or others wrote them, or judges chose them.

Every way ends in one append-only file of candidates, and each can be stopped and begun again: what stands in the file is not
asked for a second time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querylift.plugin.errors import GeneratorError, MissingExtra, SettingsError
from querylift.plugin.expansion import clean_prose, clean_query
from querylift.plugin.generators.table import value_at
from querylift.trainer.candidates import Appender, Candidate, read
from querylift.trainer.teaching.prompts import Example, Plan, messages_for, requests, tokens

if TYPE_CHECKING:
    import openai

KEY_VARIABLES = ("QUERYLIFT_TEACHER_API_KEY", "OPENAI_API_KEY")
GIVE_UP_AFTER = 5
"""Requests that fail in a row, each after its retries, before the run stops; fewer where there are no more."""
_NO_KEY = "none"  # The client wants one; a local server reads none.


@dataclass(frozen=True, slots=True)
class Taught:
    """What a run gave. `left` requests were not made because the token budget was spent."""

    written: int = 0
    empty: int = 0
    failed: int = 0
    left: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def api_key(environment: Mapping[str, str]) -> str:
    """The endpoint's key: the first of `KEY_VARIABLES` that is set; a local server needs none."""
    return next((environment[name] for name in KEY_VARIABLES if environment.get(name)), _NO_KEY)


def missing(queries: Mapping[str, str], plan: Plan, out: Path) -> list[Candidate]:
    """The requests of `plan` that `out` holds no answer to; a line that a kill tore off is cut away first."""
    written = known_keys(out)
    return [asked for asked in requests(queries, plan) if asked.key not in written]


def known_keys(out: Path) -> frozenset[str]:
    """The keys of the candidates that a file holds: none where there is no file."""
    if not out.exists():
        return frozenset()
    with Appender(out):  # mends the end of the file
        return frozenset(candidate.key for candidate in read(out))


def _seed(asked: Candidate) -> int:
    """A seed of its own for every request, or a server whose seed is fixed gives the same sample again and again."""
    return int(hashlib.sha256(asked.key.encode()).hexdigest()[:7], 16)


# --- asking


class Pacer:
    """Lets callers through one after the other, evenly spread over the minute; all at once where there is no limit."""

    def __init__(
        self, per_minute: float | None, *, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next_s = 0.0
        self._clock = clock
        self._sleep = sleep

    async def turn(self) -> None:
        """Return when it is the caller's turn."""
        now_s = self._clock()
        at_s = max(now_s, self._next_s)
        self._next_s = at_s + self._gap_s
        if at_s > now_s:
            await self._sleep(at_s - now_s)


async def teach(
    todo: Sequence[Candidate],
    plan: Plan,
    out: Path,
    *,
    key: str,
    drawn: Sequence[Example] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Taught:
    """Ask for each of `todo`, and append every answer to `out` as it comes.

    Stops before a request that could exceed the token budget. Retries what may pass (429, 5xx, no connection), as the
    `openai` client does: with back-off, or after what Retry-After says. Raises SettingsError where the endpoint takes neither
    key nor model, GeneratorError where `GIVE_UP_AFTER` requests in a row failed; what was written stays.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtra("openai", "train") from error

    options: dict[str, Any] = {"max_retries": plan.max_retries, "timeout": plan.timeout_s}
    async with openai.AsyncOpenAI(base_url=plan.base_url, api_key=key, **options) as client:
        with Appender(out) as appender:
            lesson = _Lesson(todo, plan, client, appender, drawn, progress)
            await _together([lesson.work() for _ in range(min(plan.concurrency, len(todo)))])
            return lesson.result()


async def _together(jobs: Iterable[Awaitable[None]]) -> None:
    """Run `jobs` until all have ended or one has raised; none is left behind."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Lesson:
    """One run: several workers take requests from one queue."""

    def __init__(
        self,
        todo: Sequence[Candidate],
        plan: Plan,
        client: openai.AsyncOpenAI,
        appender: Appender,
        drawn: Sequence[Example],
        progress: Callable[[int], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._queue, self._plan, self._client, self._appender = deque(todo), plan, client, appender
        self._drawn, self._progress = drawn, progress
        self._pacer = Pacer(plan.requests_per_minute, clock=loop.time, sleep=asyncio.sleep)
        self._count: Counter[str] = Counter()
        self._reserved = 0
        self._failed_in_a_row, self._give_up_after = 0, min(GIVE_UP_AFTER, len(todo))

    async def work(self) -> None:
        """Answer requests until there are none or the budget is spent."""
        while self._queue:
            messages = messages_for(self._queue[0], self._drawn, shots=self._plan.shots)
            may_use = tokens(messages) + self._plan.max_tokens
            if not self._affordable(may_use):
                return
            asked = self._queue.popleft()
            self._reserved += may_use
            try:
                await self._pacer.turn()
                await self._answer(asked, messages)
            finally:
                self._reserved -= may_use
            self._progress(self._count["written"] + self._count["empty"] + self._count["failed"])

    def result(self) -> Taught:
        """The counts."""
        tokens_in, tokens_out = self._count["tokens_in"], self._count["tokens_out"]
        cost = self._plan.cost(tokens_in, tokens_out)
        return Taught(**{"tokens_in": 0, "tokens_out": 0, **self._count}, left=len(self._queue), cost=cost)

    def _affordable(self, may_use: int) -> bool:
        used = self._count["tokens_in"] + self._count["tokens_out"] + self._reserved
        return self._plan.token_budget is None or used + may_use <= self._plan.token_budget

    async def _answer(self, asked: Candidate, messages: Sequence[Mapping[str, str]]) -> None:
        import openai

        turns: Any = messages
        try:
            answer = await self._client.chat.completions.create(
                model=self._plan.model,
                messages=turns,
                temperature=asked.params["temperature"],
                max_tokens=self._plan.max_tokens,
                seed=_seed(asked),
            )
        except openai.APIError as error:
            self._failed(error)
            return
        if not getattr(answer, "choices", None):  # a web page, say, from a URL that is no API's
            self._failed(None)
            return
        self._failed_in_a_row = 0
        self._keep(asked, messages, answer)

    def _keep(self, asked: Candidate, messages: Sequence[Mapping[str, str]], answer: Any) -> None:
        written, usage = answer.choices[0].message.content or "", answer.usage
        self._count["tokens_in"] += usage.prompt_tokens if usage else tokens(messages)
        self._count["tokens_out"] += usage.completion_tokens if usage else tokens([{"content": written}])
        text = clean_prose(written)
        self._count["written" if text else "empty"] += 1
        if text:
            self._appender.write(replace(asked, text=text).to_json())

    def _failed(self, error: openai.APIError | None) -> None:
        status = getattr(error, "status_code", None)
        if status in _REFUSED:
            raise SettingsError(_REFUSED[status].format(place=self._plan.place, model=self._plan.model)) from error
        self._count["failed"] += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._give_up_after:
            raise GeneratorError(
                f"the teacher at {self._plan.place} failed {self._failed_in_a_row} requests in a row "
                f"({_what(error)}); what it wrote before is kept: run the same command again"
            ) from error


_KEY_REMEDY = f"set {KEY_VARIABLES[0]} to one that it takes"
_REFUSED = {
    401: "{place} does not take the API key; " + _KEY_REMEDY,
    403: "{place} does not let the API key use {model!r}; " + _KEY_REMEDY,
    404: "{place} knows no model {model!r}, or is no OpenAI-compatible API; name another --model, or an --endpoint with its /v1",
}


def _what(error: openai.APIError | None) -> str:
    """What went wrong, on one line and without the request."""
    if error is None:
        return "an answer without choices"
    status = getattr(error, "status_code", None)
    return f"{f'{status} ' if status else ''}{' '.join(error.message.split())[:200]}"


# --- what others wrote, or judges chose


@dataclass(frozen=True, slots=True)
class Added:
    """How many candidates were written, were there before, and had no words left."""

    written: int = 0
    known: int = 0
    empty: int = 0


def imported(path: Path, where: Mapping[str, str | Collection[str]], *, prefix: str = "") -> Iterator[Candidate]:
    """The candidates of a file, `.gz` or not, whose keys have one of the values of `where`, query ids after `prefix`.

    A key may lead inwards: `params.mode`. Rows that answer the same request with other words are numbered in
    `params["sample"]`. Raises DataError with path and line for a broken one, SettingsError where no row is chosen.
    """
    wanted = {key: {value} if isinstance(value, str) else set(value) for key, value in where.items()}
    seen: dict[str, list[str]] = {}
    met: Counter[str] = Counter()
    for candidate in read(path):
        row = candidate.to_json()
        meets = [key for key, values in wanted.items() if str(value_at(row, key)) in values]
        met.update(["", *meets])
        if len(meets) < len(wanted):
            continue
        texts = seen.setdefault(candidate.key, [])
        if candidate.text not in texts:
            params = dict(candidate.params) | ({"sample": len(texts)} if texts else {})
            texts.append(candidate.text)
            query = clean_query(candidate.query)
            yield replace(candidate, query_id=prefix + candidate.query_id, query=query, params=params)
    if not seen:
        raise SettingsError(_nothing_chosen(path, wanted, met))


def _nothing_chosen(path: Path, wanted: Mapping[str, Collection[str]], met: Mapping[str, int]) -> str:
    """Why: `met` counts the rows that meet each key, and all of them under ""."""
    if not met:
        return f"{path} holds no expansions; name another file"
    to_blame = [key for key in wanted if key not in met][:1] or list(wanted)
    named = " and ".join(f"{key}={' or '.join(sorted(wanted[key]))}" for key in to_blame)
    return f"no row of {path} has {named}; choose rows that it has"


def append(found: Iterable[Candidate], out: Path) -> Added:
    """Append those of `found` that `out` lacks, cleaned. Raises SettingsError where an id stands for two queries."""
    found, known = list(found), set(known_keys(out))
    _check_ids([*(read(out) if out.exists() else ()), *found])
    count: Counter[str] = Counter()
    with Appender(out) as appender:
        for candidate in found:
            text = clean_prose(candidate.text)
            what = "known" if candidate.key in known else "written" if text else "empty"
            count[what] += 1
            if what == "written":
                known.add(candidate.key)
                appender.write(replace(candidate, text=text).to_json())
    return Added(**count)


def _check_ids(found: Iterable[Candidate]) -> None:
    queries: dict[str, str] = {}
    for candidate in found:
        before = queries.setdefault(candidate.query_id, candidate.query)
        if before.casefold() != candidate.query.casefold():
            raise SettingsError(
                f"query id {candidate.query_id!r} stands for two queries; give one file a prefix: --import NAME=FILE"
            )
