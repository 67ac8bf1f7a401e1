"""Read a teacher's answer: one JSON object, alone, in a fenced block, or among other words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.plugin.expansion import remove_thinking
from querylift.trainer.judge.annotations import CRITERIA, MAX_CRITERION_GRADE
from querylift.trainer.judge.prompts import MIN_REASONING_CHARS, UMBRELA

_SHOWN_CHARS = 40
"""How much of a wrong value a message shows."""


def _refuse_boolean(value: Any) -> Any:
    """Return the value. Raises ValueError for true and false, which would count as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("no boolean is a grade")
    return value


# Some models write 2 as "2" or as 2.0, which pydantic reads as the same whole number.
_CriterionGrade = Annotated[int, BeforeValidator(_refuse_boolean), Field(ge=0, le=MAX_CRITERION_GRADE)]


class JudgeAnswer(BaseModel):
    """A teacher's answer. A criterion is None when the answer does not grade it."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True)

    reasoning: Annotated[str, Field(min_length=MIN_REASONING_CHARS)]
    grade: Annotated[int, BeforeValidator(_refuse_boolean)]
    exactness: _CriterionGrade | None = None
    topicality: _CriterionGrade | None = None
    coverage: _CriterionGrade | None = None
    contextual_fit: _CriterionGrade | None = None

    @property
    def criteria(self) -> dict[str, int]:
        """The criteria that the answer grades, by name."""
        return {name: grade for name in CRITERIA if (grade := getattr(self, name)) is not None}


class MalformedAnswer(ValueError):
    """An answer that holds no valid object. The message is the fault as one clause, which the teacher is shown."""


def parse_judge_answer(text: str, scale: GradeScale) -> JudgeAnswer:
    """Return the answer that `text` holds. Thinking before it is left out. Raises MalformedAnswer.

    Of several JSON objects, the last one with a grade counts. All four criteria are needed, except on the scale `umbrela`.
    """
    values = {
        name: replace_surrogates(value) if isinstance(value, str) else value
        for name, value in _find_answer_object(remove_thinking(replace_surrogates(text))).items()
    }
    try:
        answer = JudgeAnswer.model_validate(values)
    except ValidationError as error:
        raise MalformedAnswer(_describe_fault(error, scale)) from None
    if not scale.contains(answer.grade):
        raise MalformedAnswer(
            f'"grade" is {str(answer.grade)[:_SHOWN_CHARS]}; it must be a whole number from 0 to {scale.highest}'
        )
    missing_names = [name for name in CRITERIA if name not in answer.criteria]
    if missing_names and scale.name != UMBRELA:
        raise MalformedAnswer(f'"{missing_names[0]}" is missing')
    return answer


def replace_surrogates(text: str) -> str:
    """Return the text with "?" for every half of a surrogate pair, which no file and no request can hold."""
    return text.encode("utf-8", "replace").decode()


def _find_answer_object(text: str) -> dict[str, Any]:
    """Return the last JSON object of the text that has a grade, or else the last object. Raises MalformedAnswer."""
    objects = list(_iter_objects(text))
    if not objects:
        raise MalformedAnswer("it holds no complete JSON object" if "{" in text else "it holds no JSON object")
    return next((values for values in reversed(objects) if "grade" in values), objects[-1])


def _iter_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a text. An object inside another one is part of it."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            values, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield values
        start = text.find("{", end)


def _describe_fault(error: ValidationError, scale: GradeScale) -> str:
    """Return the first fault in words that a model can act on."""
    fault = error.errors()[0]
    name = str(fault["loc"][0])
    if fault["type"] == "missing":
        return f'"{name}" is missing'
    if name == "reasoning":
        return f'"reasoning" must be a text of at least {MIN_REASONING_CHARS} characters'
    highest = scale.highest if name == "grade" else MAX_CRITERION_GRADE
    value = replace_surrogates(json.dumps(fault["input"], ensure_ascii=False))[:_SHOWN_CHARS]
    return f'"{name}" is {value}; it must be a whole number from 0 to {highest}'
