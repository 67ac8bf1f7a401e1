"""The student is trained on the served prompt and a passage that is cut to size, and validated on other queries."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import MAX_TOKENS, build_messages, build_prompt
from querylift.plugin.generators import http
from querylift.plugin.generators.llama import batching
from querylift.trainer.candidates import Candidate, read_candidates
from querylift.trainer.rewards.pair_file import PassagePair
from querylift.trainer.student import dpo, models, sft, training_texts
from tests.helpers.lessons import write_json_lines, write_passage_file
from tests.helpers.training import NO_LABEL, make_tiny_config, print_nothing

SENTENCES = {
    "Chinese": "公民从事工商业经营，经依法登记，为个体工商户。",
    "Japanese": "神経細胞は電気信号を伝える細胞であり、軸索と樹状突起を持つ。",
    "Thai": "ภาษีคือเงินที่รัฐเรียกเก็บจากประชาชนเพื่อใช้จ่ายในกิจการของรัฐ",
}


def test_the_tokens_of_an_example_are_the_served_prompt_the_passage_and_the_end_token() -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:llama")
    query, passage = "what is <|im_end|> naïve\nrain", "Sure, here is a passage: Rain   falls,\n\nsays the naïve 猫."
    candidate = Candidate("q", query, "zero-shot", "teacher", passage)
    (example,), _ = sft.make_examples([candidate], tokenizer)
    text = training_texts.cut_passage(passage, tokenizer).text
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
    examples, _ = sft.make_examples(candidates, tokenizer)
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
    examples, _ = dpo.make_examples([pair], tokenizer)
    cut = training_texts.cut_passage("fire " * 99, tokenizer).text
    trainer = dpo.make_trainer(model, tokenizer, make_tiny_config(), examples, [], out=tmp_path, seed=0)
    (batch,) = trainer.get_train_dataloader()
    expected = ["water<|im_end|>", cut]
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


def test_a_passage_is_cut_at_the_end_of_a_word_to_what_is_served() -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:llama")
    passage = "Meteorologists measure unusual precipitation with instruments on the ground. " * 9
    text, was_cut = training_texts.cut_passage(passage, tokenizer)
    assert was_cut and passage.split()[: len(text.split())] == text.split()
    assert MAX_TOKENS - 9 < len(training_texts.encode_text(text, tokenizer)) <= MAX_TOKENS
    assert training_texts.cut_passage(text, tokenizer) == (text, False)
    assert training_texts.cut_passage("x" * 999, tokenizer).text.startswith("xxxxxxxxx")  # no word fits


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_a_passage_without_spaces_is_cut_after_a_sign_and_never_to_nothing(sentence: str) -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:qwen3")
    text, was_cut = training_texts.cut_passage(sentence * 9, tokenizer)
    assert was_cut and (sentence * 9).startswith(text)
    assert MAX_TOKENS - 9 < len(training_texts.encode_text(text, tokenizer)) <= MAX_TOKENS
    assert unicodedata.category((sentence * 9)[len(text)])[0] != "M"
    assert training_texts.cut_passage(text, tokenizer) == (text, False)


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_what_goes_on_is_not_taught_to_end(sentence: str) -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:qwen3")
    short, query = sentence[:8], sentence[:5]
    whole, stopped, long = (
        Candidate(query_id, query, "zero-shot", "teacher", text, ended=ended)
        for query_id, text, ended in (("a", short, True), ("b", short, False), ("c", sentence * 9, True))
    )
    examples, counts = sft.make_examples([whole, stopped, long, whole, replace(whole, text="。")], tokenizer)
    labels = [[token for token in example.labels if token != NO_LABEL] for example in examples]
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert labels[0] == [*labels[1], end_id]
    assert (
        end_id not in labels[2]
        and tokenizer.decode(labels[2]) == training_texts.cut_passage(sentence * 9, tokenizer).text
    )
    assert counts == {"no_words": 1, "repeated": 1, "cut": 1, "without_end": 2}


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_a_pair_learns_the_end_of_those_passages_that_ended(tmp_path: Path, sentence: str) -> None:
    """TRL adds the end token to every text of a row. The batch must not have it."""
    model, tokenizer = models.load_model_and_tokenizer("made:qwen3")
    pair = PassagePair("q", sentence[:5], sentence[:8], sentence * 9)
    stopped = PassagePair("r", sentence[:5], sentence[:6], sentence[1:8], chosen_ended=False)
    examples, counts = dpo.make_examples([pair, stopped], tokenizer)
    assert counts == {"no_words": 0, "repeated": 0, "cut": 1, "without_end": 2}
    trainer = dpo.make_trainer(model, tokenizer, make_tiny_config(), examples, [], out=tmp_path, seed=0)
    (batch,) = trainer.get_train_dataloader()
    texts = {
        tokenizer.decode(tokens[mask.bool()])
        for tokens, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    }
    cut = training_texts.cut_passage(sentence * 9, tokenizer).text
    assert texts == {sentence[:8] + "<|im_end|>", cut, sentence[:6], sentence[1:8] + "<|im_end|>"}


def test_candidates_without_a_word_and_repeated_passages_are_left_out() -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:llama")
    texts = ("", "  ", "...", "wet", "wet", " wet ", "—", "`", "cold")
    candidates = [Candidate("q", "rain", "m", "t", text) for text in texts]
    examples, counts = sft.make_examples(candidates, tokenizer)
    assert len(examples) == 2 and (counts["no_words"], counts["repeated"]) == (5, 2)


def test_pairs_whose_passages_are_the_same_once_cut_and_those_without_a_word_are_left_out() -> None:
    _, tokenizer = models.load_model_and_tokenizer("made:llama")
    long = "wet and cold " * 40
    pairs = [
        PassagePair("q", "rain", long + "a", long + "b"),
        PassagePair("q", "rain", "wet", ""),
        PassagePair("q", "rain", "。", "wet"),
        PassagePair("q", "rain", "wet", "dry"),
        PassagePair("q", "rain", "wet", "dry"),
    ]
    examples, counts = dpo.make_examples(pairs, tokenizer)
    assert [(example.chosen.passage, example.rejected.passage) for example in examples] == [("wet", "dry")]
    assert (counts["no_words"], counts["repeated"]) == (2, 2)


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
