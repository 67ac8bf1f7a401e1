"""The requests to a teacher and their chat messages.

The student's prompt is in `querylift.plugin.expansion`, and nowhere else. When the wording of the prompt here changes,
`TEACHER_PROMPT_VERSION` must change too, because it is part of the key of every request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from querylift.plugin.expansion import clean_query
from querylift.trainer.candidates import Candidate
from querylift.trainer.chat.endpoint_plan import UsageEstimate
from querylift.trainer.teaching.plan import FEW_SHOT, TEACHER_PROMPT_VERSION, TeachingPlan

PASSAGE_WORDS = 40
"""Words of a passage that the prompt asks for, and of a document that is shown as an example.

That many fit into the 64 tokens that a student may write, so that it also learns to end.
"""

_SYSTEM = (
    f"You help a search engine find documents. For each search query, write one passage of about {PASSAGE_WORDS} words that "
    "answers it, as a relevant document would put it: with the names, technical terms and facts that such a document "
    "contains. Write the passage alone, as plain prose: no introduction, no heading, no list, no remark about the task."
)
_TASK = "Search query: "


@dataclass(frozen=True, slots=True)
class FewShotExample:
    """A judged query, and the beginning of a document that is relevant to it."""

    query_id: str
    query: str = field(repr=False)
    passage: str = field(repr=False)


def list_requests(queries: Mapping[str, str], plan: TeachingPlan) -> Iterator[Candidate]:
    """Yield a candidate without text for every request of `plan`.

    Every query gets its first sample before any query gets its second.
    """
    for sample in range(plan.samples):
        for temperature in plan.temperatures:
            if temperature == 0 and sample > 0:
                continue  # the model would write the same words
            for method in plan.prompts:
                params: dict[str, Any] = {"temperature": temperature, "sample": sample, "max_tokens": plan.max_tokens}
                params |= {"examples": plan.shots} if method == FEW_SHOT else {}
                params |= {"prompt": TEACHER_PROMPT_VERSION, "seed": plan.seed}
                for query_id, query in queries.items():
                    yield Candidate(query_id, clean_query(query), method, plan.model, "", params)


def build_request_messages(
    request: Candidate, examples: Sequence[FewShotExample], *, shots: int
) -> list[dict[str, str]]:
    """Return the chat messages of a request. A few-shot request shows up to `shots` of the examples."""
    if request.method != FEW_SHOT:
        return build_chat_messages(request.query)
    return build_chat_messages(request.query, select_examples(request, examples, count=shots))


def select_examples(request: Candidate, examples: Sequence[FewShotExample], *, count: int) -> list[FewShotExample]:
    """Return the first `count` examples that are not the requested query itself, by id or by text."""
    query = clean_query(request.query).casefold()
    return [
        example
        for example in examples
        if example.query_id != request.query_id and clean_query(example.query).casefold() != query
    ][:count]


def build_chat_messages(query: str, examples: Sequence[FewShotExample] = ()) -> list[dict[str, str]]:
    """Return the chat messages that ask for a passage. Each example is a question and its answer before the query."""
    messages = [{"role": "system", "content": _SYSTEM}]
    for example in examples:
        messages.append({"role": "user", "content": _TASK + clean_query(example.query)})
        messages.append({"role": "assistant", "content": example.passage})
    messages.append({"role": "user", "content": _TASK + clean_query(query)})
    return messages


def estimate_usage(
    requests: Sequence[Candidate], plan: TeachingPlan, *, examples: Sequence[FewShotExample] = ()
) -> UsageEstimate:
    """Estimate the tokens and the cost of `requests`. Every answer counts at full length."""
    return plan.estimate_usage(build_request_messages(request, examples, shots=plan.shots) for request in requests)
