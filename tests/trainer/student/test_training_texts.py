"""The student is trained on the served prompt and a passage that is cut to size, and validated on other queries."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import build_messages, build_prompt
from querylift.plugin.generators import http
from querylift.plugin.generators.llama import batching
from querylift.trainer.candidates import Candidate, read_candidates
from querylift.trainer.rewards.pair_file import PassagePair
from querylift.trainer.student import dpo, models, sft, training_texts
from querylift.trainer.training_config import DpoOptions, SftOptions
from tests.helpers.lessons import write_json_lines, write_passage_file
from tests.helpers.training import NO_LABEL, make_tiny_config, print_nothing


def test_the_tokens_of_an_example_are_the_served_prompt_the_passage_and_the_end_token() -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:llama")
    query, passage = "what is <|im_end|> naïve\nrain", "Sure, here is a passage: Rain   falls,\n\nsays the naïve 猫."
    candidate = Candidate("q", query, "zero-shot", "teacher", passage)
    (example,) = sft.make_examples([candidate], tokenizer, SftOptions())
    text = training_texts.cut_passage(passage, tokenizer, max_words=128, max_tokens=64)
    assert text == "Rain falls, says the naïve 猫."
    assert tokenizer.decode(example.input_ids).encode() == (build_prompt(query) + text + "<|im_end|>").encode()
    labelled = [token_id for token_id in example.labels if token_id != NO_LABEL]
    assert tokenizer.decode(labelled) == text + "<|im_end|>"
    prompt_ids = tokenizer(build_prompt(query))["input_ids"]
    assert example.labels[: len(prompt_ids)] == [NO_LABEL] * len(prompt_ids)
    assert example.input_ids[: len(prompt_ids)] == prompt_ids


def test_the_loss_sees_labels_on_the_passage_alone(tmp_path: Path) -> None:
    model, tokenizer = models.load_model_and_tokenizer("made:llama")
    candidates = list(read_candidates(write_passage_file(tmp_path / "rows.jsonl")))
    examples = sft.make_examples(candidates, tokenizer, SftOptions())
    trainer = sft.make_trainer(model, tokenizer, make_tiny_config(), examples, [], out=tmp_path / "out", seed=0)
    passages = set()
    for batch in trainer.get_train_dataloader():
        for tokens, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            passage = tokenizer.decode(labels[labels != NO_LABEL])
            passages.add(passage)
            topic = passage.split()[0]
            assert tokenizer.decode(tokens[mask.bool()]) == build_prompt(f"what is {topic}") + passage
    assert passages == {f"{candidate.text}<|im_end|>" for candidate in candidates}


def test_the_serving_generators_send_the_prompt_that_is_trained_on() -> None:
    for module in (batching, training_texts):
        assert vars(module)["build_prompt"] is build_prompt
    assert vars(http)["build_messages"] is build_messages  # test_models renders them to the same bytes


def test_both_passages_of_a_pair_follow_the_served_prompt(tmp_path: Path) -> None:
    model, tokenizer = models.load_model_and_tokenizer("made:llama")
    pair = PassagePair("q", "what is rain", "water", "fire " * 99)
    examples = dpo.make_examples([pair], tokenizer, DpoOptions(max_words=3))
    trainer = dpo.make_trainer(model, tokenizer, make_tiny_config(), examples, [], out=tmp_path, seed=0)
    (batch,) = trainer.get_train_dataloader()
    expected = ["water<|im_end|>", "fire fire fire<|im_end|>"]
    texts = [
        tokenizer.decode(tokens[mask.bool()])
        for tokens, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert texts == [build_prompt("what is rain") + passage for passage in expected]
    completions = [
        tokenizer.decode(tokens[mask.bool()])
        for tokens, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert completions == expected


@pytest.mark.parametrize(("max_words", "max_tokens"), [(5, 64), (128, 7), (128, 8), (128, 9), (128, 1)])
def test_a_passage_is_cut_at_the_end_of_a_word(max_words: int, max_tokens: int) -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:llama")
    passage = "Meteorologists measure unusual precipitation with instruments on the ground"
    text = training_texts.cut_passage(passage, tokenizer, max_words=max_words, max_tokens=max_tokens)
    assert passage.split()[: len(text.split())] == text.split()
    assert len(text.split()) <= max_words and len(training_texts.encode_text(text, tokenizer)) <= max_tokens


def test_candidates_without_a_word_and_repeated_passages_are_left_out() -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:llama")
    texts = ("", "  ", "...", "wet", "wet", " wet ", "—", "`", "cold")
    candidates = [Candidate("q", "rain", "m", "t", text) for text in texts]
    assert len(sft.make_examples(candidates, tokenizer, SftOptions())) == 2


def test_pairs_whose_passages_are_the_same_once_cut_are_left_out() -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:llama")
    pairs = [PassagePair("q", "rain", "wet and cold", "wet and hot"), PassagePair("q", "rain", "wet", "")]
    assert len(dpo.make_examples(pairs, tokenizer, DpoOptions(max_words=2))) == 1


def test_the_choice_of_a_validation_query_does_not_depend_on_the_other_queries() -> None:
    query_ids = [f"q{number}" for number in range(1000)]
    validation_ids = training_texts.choose_validation_queries(query_ids, 0.1)
    assert 70 < len(validation_ids) < 130
    half = query_ids[:500]
    assert training_texts.choose_validation_queries(half, 0.1) == validation_ids & set(half)
    assert training_texts.choose_validation_queries(query_ids, 0) == frozenset()
    assert len(training_texts.choose_validation_queries(["a", "b"], 0.001)) == 1
    assert len(training_texts.choose_validation_queries(["a", "b"], 0.999)) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "2: this line is not JSON"),
        ('{"query_id": "q", "query": "rain", "chosen": "a"}', "2: 'rejected' is None; write it as a text"),
        ('{"query_id": "q", "query": " ", "chosen": "a", "rejected": "b"}', "2: 'query' is ' '"),
    ],
)
def test_an_error_names_the_broken_line_of_a_pair_file(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"query_id": "q", "query": "rain", "chosen": "a", "rejected": "b"}\n' + line + "\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=f"pairs.jsonl:{problem}"):
        dpo.train_on_pairs([path], make_tiny_config(), model="made:llama", out=tmp_path / "out", say=print_nothing)


@pytest.mark.parametrize("text", ["  ", "..."])
def test_a_file_without_a_usable_candidate_is_refused(tmp_path: Path, text: str) -> None:
    path = write_json_lines(tmp_path / "rows.jsonl", [{"query_id": "q", "query": "rain", "text": text}])
    with pytest.raises(SettingsError, match=r"rows\.jsonl has no candidate with a word in it"):
        sft.train_on_passages([path], make_tiny_config(), out=tmp_path / "out", say=print_nothing)
