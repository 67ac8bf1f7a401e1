"""The prompt and the answer that an adapted teacher learns are those of `querylift judge annotate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.trainer.judge.adaptation.chat_rows import (
    format_answer,
    has_whole_answer,
    make_answer_completion,
    make_prompt,
    read_answer_fields,
)
from querylift.trainer.judge.adaptation.pretrain import TokenBlock, pack_texts
from querylift.trainer.judge.prompts import build_answer_schema, build_judge_messages
from querylift.trainer.student import models
from tests.helpers.judge_lessons import make_annotation


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.load_model_and_tokenizer("made:llama")[1]


def test_the_prompt_is_that_of_the_command_annotate(tokenizer: Any) -> None:
    annotation = make_annotation("rain")
    prompt = make_prompt(annotation, DEFAULT_SCALE, tokenizer, max_tokens=5000)
    for message in build_judge_messages(annotation.query, annotation.document, DEFAULT_SCALE):
        assert f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>" in prompt
    assert prompt.endswith("<|im_start|>assistant\n")


def test_a_long_document_is_cut_until_the_prompt_fits(tokenizer: Any) -> None:
    annotation = replace(make_annotation(), document="measure " * 2000 + "end")
    short = make_prompt(make_annotation(), DEFAULT_SCALE, tokenizer, max_tokens=5000)
    limit = len(tokenizer(short)["input_ids"]) + 20
    prompt = make_prompt(annotation, DEFAULT_SCALE, tokenizer, max_tokens=limit)
    assert limit - 10 < len(tokenizer(prompt)["input_ids"]) <= limit
    assert "measure measure" in prompt and "\n</document>" in prompt and " end" not in prompt


def test_a_document_without_spaces_is_cut_as_well(tokenizer: Any) -> None:
    annotation = replace(make_annotation(), document="天気" * 3000)
    prompt = make_prompt(annotation, DEFAULT_SCALE, tokenizer, max_tokens=1500)
    assert len(tokenizer(prompt)["input_ids"]) <= 1500 and "天気天気" in prompt


def test_no_text_of_a_pair_becomes_a_special_token(tokenizer: Any) -> None:
    annotation = replace(make_annotation(reasoning="<|im_end|>"), document="<|im_start|>system", query="<|im_end|>")
    prompt = make_prompt(annotation, DEFAULT_SCALE, tokenizer, max_tokens=5000)
    completion = make_answer_completion(prompt, format_answer(annotation), tokenizer)
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert completion.prompt_ids.count(end_id) == 2 and completion.ids.count(end_id) == 1  # two turns, and the answer
    assert completion.ids[-1] == end_id


def test_an_answer_has_the_keys_that_the_prompt_asks_for_in_their_order() -> None:
    schema: dict[str, Any] = dict(build_answer_schema(DEFAULT_SCALE))
    annotation = make_annotation("rain", 2)
    assert format_answer(annotation) == (
        '{"reasoning": "The document says that stations measure rain.", "exactness": 2, "topicality": 2, "coverage": 2, '
        '"contextual_fit": 2, "grade": 2}'
    )
    fields = read_answer_fields(format_answer(annotation), DEFAULT_SCALE)
    assert ["reasoning", *fields.criteria, "grade"] == schema["required"]
    assert (fields.grade, fields.criteria, fields.reasoning) == (2, annotation.criteria, annotation.reasoning)


def test_an_answer_is_whole_with_a_reasoning_and_all_criteria() -> None:
    assert has_whole_answer(make_annotation())
    assert not has_whole_answer(make_annotation(reasoning=" "))
    assert not has_whole_answer(replace(make_annotation(), criteria={"exactness": 1}))


def test_texts_are_packed_into_blocks_with_a_separator(tokenizer: Any) -> None:
    separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    a, b = tokenizer("rain")["input_ids"], tokenizer("the wind blows")["input_ids"]
    token_ids = [*a, separator, *b, separator]
    blocks = pack_texts(["rain", "the wind blows"], tokenizer, block_tokens=3)
    assert blocks == [
        TokenBlock(token_ids[at : at + 3]) for at in range(0, len(token_ids), 3) if len(token_ids) - at > 1
    ]
    assert blocks[0].to_row() == {"input_ids": token_ids[:3], "labels": token_ids[:3], "length": 3}


def test_a_rest_of_one_token_is_no_block_because_nothing_can_be_predicted(tokenizer: Any) -> None:
    length = len(tokenizer("the wind blows")["input_ids"])
    assert len(pack_texts(["the wind blows"], tokenizer, block_tokens=length)) == 1
