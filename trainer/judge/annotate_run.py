"""Ask a teacher to grade pairs of a query and a document, over an OpenAI-compatible API.

Every valid answer is appended to a file as it arrives. A run can be stopped and started again: it asks only for pairs that
the file lacks of the same model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE, GradeScale
from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import JsonLinesAppender
from querylift.trainer.chat.chat_run import ChatRun, open_chat_client, run_until_first_error
from querylift.trainer.chat.endpoint_plan import EndpointPlan, Messages, UsageEstimate
from querylift.trainer.chat.throughput import TimedResult
from querylift.trainer.judge.annotations import Annotation, read_annotations
from querylift.trainer.judge.answers import JudgeAnswer, MalformedAnswer, parse_judge_answer, replace_surrogates
from querylift.trainer.judge.pair_choice import UngradedPair
from querylift.trainer.judge.prompts import build_answer_schema, build_judge_messages, build_repair_messages

JSON_FORMATS = ("none", "object", "schema")


@dataclass(frozen=True, slots=True)
class AnnotatePlan(EndpointPlan):
    """Which model grades on which scale, how fast, and at what price. Raises SettingsError when a value is out of range."""

    max_tokens: int = 400
    scale: GradeScale = DEFAULT_SCALE
    json_format: str = "none"
    """What the request says about the form of the answer: `none`, a JSON `object`, or an object with its `schema`."""

    def __post_init__(self) -> None:
        if self.json_format not in JSON_FORMATS:
            raise SettingsError(f"json_format is {self.json_format!r}; choose among {', '.join(JSON_FORMATS)}")
        # `super()` without arguments does not work in a dataclass with slots.
        EndpointPlan.__post_init__(self)

    @property
    def request_options(self) -> dict[str, Any]:
        """What each request holds besides model, messages and length."""
        if self.json_format == "none":
            return {"temperature": 0}
        schema = {"schema": build_answer_schema(self.scale)} if self.json_format == "schema" else {}
        return {"temperature": 0, "response_format": {"type": "json_object", **schema}}


@dataclass(frozen=True, slots=True)
class AnnotateResult(TimedResult):
    """The counts of a run, in pairs: asked = written + dropped + refused + failed + those whose repair was beyond the budget.

    `repaired` pairs are among the written ones. `dropped` pairs had two malformed answers. `refused` ones were refused by the
    model or by a filter. `left` pairs have no answer because the token budget was spent. `last_failure` says why the last
    failed request failed, and is empty when none failed.
    """

    asked: int = 0
    written: int = 0
    repaired: int = 0
    dropped: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None
    last_failure: str = ""


def find_ungraded_pairs(
    pairs: Iterable[UngradedPair], out: Path, *, model: str, scale: GradeScale
) -> list[UngradedPair]:
    """Return the pairs that `out` holds no annotation of by `model`. Removes an incomplete last line of `out` first.

    Raises SettingsError when a query id stands for another query there.
    """
    if not out.exists():
        return list(pairs)
    with JsonLinesAppender(out):  # removes the incomplete line
        annotations = list(read_annotations(out, scale))
    texts = {annotation.query_id: annotation.query for annotation in annotations}
    known_keys = {annotation.pair_key for annotation in annotations if annotation.model == model}
    ungraded_pairs = []
    for pair in pairs:
        if texts.get(pair.query_id, pair.query) != pair.query:
            raise SettingsError(f"query id {pair.query_id!r} stands for another query in {out}; name another --out")
        if (pair.query_id, pair.doc_id) not in known_keys:
            ungraded_pairs.append(pair)
    return ungraded_pairs


def count_grades(out: Path, scale: GradeScale, *, model: str) -> dict[int, int]:
    """Return how many annotations by `model` in `out` have each grade of the scale."""
    rows = read_annotations(out, scale) if out.exists() else ()
    return scale.count_grades(row.grade for row in rows if row.model == model)


def estimate_annotating(pairs: Iterable[UngradedPair], plan: AnnotatePlan) -> UsageEstimate:
    """Estimate the tokens and the cost of one request for each pair. Repairs come on top of it."""
    return plan.estimate_usage(build_judge_messages(pair.query, pair.document, plan.scale) for pair in pairs)


async def annotate_pairs(
    pairs: Sequence[UngradedPair],
    plan: AnnotatePlan,
    out: Path,
    *,
    api_key: str,
    answered_before: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> AnnotateResult:
    """Ask for the grade of every pair, and append each annotation to `out` as it arrives.

    `out` has `answered_before` annotations of the same model already.

    A malformed answer is sent back once with its fault. Stops before a request that could exceed the token budget. Raises
    SettingsError when the endpoint refuses the key or the model, and GeneratorError after several failed requests in a row.
    Annotations that were written before stay in the file.
    """
    async with open_chat_client(plan, api_key=api_key) as client:
        with JsonLinesAppender(out) as appender:
            chat = ChatRun(plan, client, request_count=len(pairs), answered_before=answered_before)
            run = _AnnotateRun(pairs, plan, chat, appender, progress)
            await run_until_first_error([run.grade_pairs() for _ in range(min(plan.concurrency, len(pairs)))])
            return run.summarise()


class _AnnotateRun:
    """One run, in which several workers take pairs from one queue."""

    def __init__(
        self,
        pairs: Sequence[UngradedPair],
        plan: AnnotatePlan,
        chat: ChatRun,
        appender: JsonLinesAppender,
        progress: Callable[[int], None],
    ) -> None:
        self._queue, self._plan, self._chat = deque(pairs), plan, chat
        self._appender, self._progress = appender, progress
        self._done_count = 0

    async def grade_pairs(self) -> None:
        """Take pairs from the queue until it is empty or the token budget is spent."""
        while self._queue:
            pair = self._queue[0]
            messages = build_judge_messages(pair.query, pair.document, self._plan.scale)
            with self._chat.reserve_tokens(messages) as is_within_budget:
                if not is_within_budget:
                    return
                self._queue.popleft()
                self._chat.counts["asked"] += 1
                answer = await self._chat.send_request(messages, **self._plan.request_options)
            if answer is not None:
                await self._record_answer(pair, messages, answer.text)
            self._done_count += 1
            self._progress(self._done_count)

    def summarise(self) -> AnnotateResult:
        """Return the counts of the run."""
        counts = {**self._chat.counts, "left": self._chat.counts["left"] + len(self._queue)}
        throughput = self._chat.measure_throughput(counts.get("written", 0))
        return AnnotateResult(
            **counts, cost=self._chat.cost, last_failure=self._chat.last_failure, throughput=throughput
        )

    async def _record_answer(self, pair: UngradedPair, messages: Messages, text: str) -> None:
        """Write the answer, or ask once more when it is malformed."""
        text = replace_surrogates(text)
        try:
            answer = parse_judge_answer(text, self._plan.scale)
        except MalformedAnswer as error:
            repair_messages = build_repair_messages(messages, text, str(error), self._plan.scale)
            await self._ask_for_repair(pair, repair_messages)
        else:
            self._write_answer(pair, answer)

    async def _ask_for_repair(self, pair: UngradedPair, messages: Messages) -> None:
        with self._chat.reserve_tokens(messages) as is_within_budget:
            if not is_within_budget:
                self._chat.counts["left"] += 1
                return
            repaired = await self._chat.send_request(messages, **self._plan.request_options)
        if repaired is None:
            return
        try:
            answer = parse_judge_answer(repaired.text, self._plan.scale)
        except MalformedAnswer:
            self._chat.counts["dropped"] += 1
        else:
            self._chat.counts["repaired"] += 1
            self._write_answer(pair, answer)

    def _write_answer(self, pair: UngradedPair, answer: JudgeAnswer) -> None:
        annotation = Annotation(
            pair.query_id,
            pair.doc_id,
            pair.query,
            pair.document,
            answer.grade,
            self._plan.model,
            answer.criteria,
            " ".join(answer.reasoning.split()),
        )
        self._appender.append(annotation.to_json())
        self._chat.counts["written"] += 1
