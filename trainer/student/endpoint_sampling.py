"""Sampling from a student that a server such as vLLM or llama-server runs, with many requests at the same time.

The server continues the served prompt as it stands (`/v1/completions`), so no chat template changes it. Every sample is a request
of its own with a seed of its own, because some servers give one answer whatever number is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from querylift.plugin.expansion import MAX_TOKENS, STOP_STRINGS, build_prompt
from querylift.trainer.candidates import Candidate, JsonLinesAppender
from querylift.trainer.chat.chat_run import ChatRun, open_chat_client, run_until_first_error
from querylift.trainer.chat.endpoint_plan import EndpointPlan
from querylift.trainer.chat.throughput import TimedResult
from querylift.trainer.training_config import SamplingOptions


@dataclass(frozen=True, slots=True)
class SamplePlan(EndpointPlan):
    """Which served student is asked, and how many requests run at the same time."""

    max_tokens: int = MAX_TOKENS

    @property
    def empty_answer_remedy(self) -> str:
        """Why the answers may be empty, and what to do about it, as the end of a sentence."""
        return (
            "probably because it is no student and does not know the prompt: serve a student, or measure a chat model "
            "with the generator http"
        )


@dataclass(frozen=True, slots=True)
class ServedSamplesResult(TimedResult):
    """The counts of a run."""

    written: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    last_failure: str = ""


def make_sample_plan(model: str, url: str, options: SamplingOptions, *, concurrency: int) -> SamplePlan:
    """Return the plan that asks the served model `model` with `options`. Raises SettingsError when a value is out of range."""
    extra_body = {"top_k": options.top_k} if options.temperature else {}
    return SamplePlan(model, url, concurrency=concurrency, extra_body=extra_body)


async def sample_from_endpoint(
    requests: Iterable[Candidate],
    options: SamplingOptions,
    plan: SamplePlan,
    *,
    out: Path,
    api_key: str,
    answered_before: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> ServedSamplesResult:
    """Ask for the text of every request, and append it to `out` as it arrives. `out` has `answered_before` texts already.

    Raises as `ChatRun.send_request` does. Texts that were written before stay in the file.
    """
    queue = deque(requests)
    async with open_chat_client(plan, api_key=api_key) as client:
        with JsonLinesAppender(out) as appender:
            chat = ChatRun(plan, client, request_count=len(queue), answered_before=answered_before)

            async def sample_until_empty() -> None:
                while queue:
                    request = queue.popleft()
                    answer = await chat.send_prompt(build_prompt(request.query), **_build_options(request, options))
                    if answer is not None:
                        appender.append(replace(request, text=answer.text, ended=answer.ended).to_json())
                        chat.counts["written"] += 1
                    progress(chat.counts["written"] + chat.counts["failed"])

            await run_until_first_error([sample_until_empty() for _ in range(min(plan.concurrency, len(queue)))])
            throughput = chat.measure_throughput(chat.counts["written"])
            return ServedSamplesResult(**chat.counts, last_failure=chat.last_failure, throughput=throughput)


def _build_options(request: Candidate, options: SamplingOptions) -> dict[str, Any]:
    """Return what a request holds besides model, prompt and length."""
    draw_options = {"top_p": options.top_p, "seed": request.request_seed} if options.temperature else {}
    return {"temperature": options.temperature, "stop": list(STOP_STRINGS), **draw_options}
