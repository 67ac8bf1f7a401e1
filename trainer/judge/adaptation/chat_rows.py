"""What the adapted teacher reads and writes: the prompt of `querylift judge annotate`, and an answer as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.annotations import CRITERIA, MAX_CRITERION_GRADE, Annotation
from querylift.trainer.judge.prompts import UMBRELA, build_judge_messages
from querylift.trainer.student.models import END_TOKEN
from querylift.trainer.student.training_texts import Completion, encode_text


@dataclass(frozen=True, slots=True)
class AnswerFields:
    """The valid fields of an answer.

    A grade that is not valid is None, such a criterion is left out, and such a reasoning is empty.
    """

    grade: int | None = None
    criteria: Mapping[str, int] = field(default_factory=dict)
    reasoning: str = ""


def raise_on_unsupported_scale(scale: GradeScale) -> None:
    """Raise SettingsError for a scale whose prompt asks for grades that an annotation does not hold."""
    if scale.name == UMBRELA:
        raise SettingsError(
            "--scale is 'umbrela', whose prompt asks for two grades that annotations do not hold; use graded, which has the "
            "same four grades"
        )


def format_answer(annotation: Annotation) -> str:
    """Return the answer that the prompt asks for: the reasoning, the four criteria and the grade as one JSON object."""
    values = {
        "reasoning": annotation.reasoning,
        **{name: annotation.criteria[name] for name in CRITERIA},
        "grade": annotation.grade,
    }
    return json.dumps(values, ensure_ascii=False)


def has_whole_answer(annotation: Annotation) -> bool:
    """Return whether the annotation has a reasoning and all four criteria, which an answer holds."""
    return bool(annotation.reasoning.strip()) and all(name in annotation.criteria for name in CRITERIA)


def read_answer_fields(text: str, scale: GradeScale) -> AnswerFields:
    """Return the valid fields of an answer. It has none when the text is no JSON object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return AnswerFields()
    if not isinstance(values, Mapping):
        return AnswerFields()
    grade, reasoning = values.get("grade"), values.get("reasoning")
    return AnswerFields(
        grade=grade if scale.contains(grade) else None,
        criteria={name: values[name] for name in CRITERIA if _is_criterion_grade(values.get(name))},
        reasoning=reasoning.strip() if isinstance(reasoning, str) else "",
    )


def _is_criterion_grade(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_CRITERION_GRADE


def make_prompt(annotation: Annotation, scale: GradeScale, tokenizer: Any, *, max_tokens: int) -> str:
    """Return the prompt of a pair. The document is cut until the prompt has at most `max_tokens`.

    Raises SettingsError when the prompt is longer without any document.
    """
    document = annotation.document
    prompt = _render_prompt(annotation.query, document, scale, tokenizer)
    excess = len(encode_text(prompt, tokenizer)) - max_tokens
    while excess > 0 and document:
        remaining = len(encode_text(document, tokenizer)) - excess
        document = _cut_to_tokens(document, tokenizer, remaining)
        prompt = _render_prompt(annotation.query, document, scale, tokenizer)
        excess = len(encode_text(prompt, tokenizer)) - max_tokens
    if excess > 0:
        raise SettingsError(
            f"max_prompt_tokens is {max_tokens}, and the prompt of query {annotation.query_id!r} has "
            f"{max_tokens + excess} without its document; set it higher"
        )
    return prompt


def make_answer_completion(prompt: str, answer: str, tokenizer: Any) -> Completion:
    """Return the prompt and the answer after it, which ends with the end token. They are tokenized apart."""
    text = hide_special_tokens(answer) + END_TOKEN
    return Completion(prompt, text, encode_text(prompt, tokenizer), encode_text(text, tokenizer))


def hide_special_tokens(text: str) -> str:
    """Return the text with a space in each "<|", so that no text of a document becomes a special token of the model."""
    return text.replace("<|", "< |")


def _cut_to_tokens(text: str, tokenizer: Any, count: int) -> str:
    """Return the whole characters that the first `count` tokens of `text` make. It has more tokens than `count`."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[max(count, 0)][0]]  # where the first token that is left out begins


def _render_prompt(query: str, document: str, scale: GradeScale, tokenizer: Any) -> str:
    messages = build_judge_messages(query, document, scale)  # it hides special tokens
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
