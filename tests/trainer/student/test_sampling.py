"""A sampled passage depends on the weights, the query and the seed, and not on the rest of its batch."""

from __future__ import annotations

import asyncio
import fcntl
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import MAX_TOKENS, build_prompt, clean_prose, expansion_from_text
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.table import TableGenerator
from querylift.trainer.candidates import Candidate, read_candidates
from querylift.trainer.commands.sample import read_queries
from querylift.trainer.commands.sample import sample as sample_command
from querylift.trainer.student import libraries, models
from querylift.trainer.student.batch_generation import WrittenToken
from querylift.trainer.student.sampling import (
    Sample,
    SampleRequest,
    count_passages,
    find_missing_samples,
    find_stop_ids,
    make_sample,
    sample_passages,
    write_samples,
)
from querylift.trainer.training_config import SamplingOptions

QUERIES = {
    "1": "rain",
    "2": "what is snow and why does it fall on the mountains",
    "3": "naïve 猫",
    "4": "read a file line by line",
    "5": "rain in spring",
}
GREEDY = SamplingOptions(temperature=0)


class Student(NamedTuple):
    model: Any
    tokenizer: Any

    def sample_queries(self, options: SamplingOptions, *, seed: int = 1) -> list[Sample]:
        return sorted(sample_passages(self.model, self.tokenizer, QUERIES, options, seed=seed))


@pytest.fixture(scope="module", params=["made:llama", "made:qwen3"])
def student(request: pytest.FixtureRequest) -> Student:
    return Student(*models.load_model_and_tokenizer(request.param, attention="eager"))


def test_greedy_passages_do_not_depend_on_the_batch(student: Student) -> None:
    unbatched = student.sample_queries(GREEDY.model_copy(update={"batch_size": 1}))
    batched = student.sample_queries(GREEDY.model_copy(update={"batch_size": 8}))
    assert [sample.text for sample in unbatched] == [sample.text for sample in batched]
    assert [sample.query_id for sample in unbatched] == list(QUERIES)
    assert all(len(sample.tokens) > 1 for sample in unbatched)


def test_greedy_passages_equal_those_of_transformers_generate(student: Student) -> None:
    stop_ids = find_stop_ids(student.tokenizer).tolist()
    for sample in student.sample_queries(GREEDY):
        prompt_ids = torch.tensor([student.tokenizer(build_prompt(sample.query))["input_ids"]])
        with torch.no_grad():
            generated = student.model.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                do_sample=False,
                max_new_tokens=MAX_TOKENS,
                eos_token_id=stop_ids,
            )[0, prompt_ids.size(1) :].tolist()
        assert sample.ended == (generated[-1] in stop_ids)
        text = student.tokenizer.decode([token_id for token_id in generated if token_id not in stop_ids])
        assert sample.text == (text if sample.ended else text.rstrip("\ufffd"))


def test_random_passages_depend_on_the_seed_and_not_on_the_batch(student: Student) -> None:
    options = SamplingOptions(samples=3)
    unbatched = student.sample_queries(options.model_copy(update={"batch_size": 1}))
    batched = student.sample_queries(options.model_copy(update={"batch_size": 16}))
    assert [sample.text for sample in unbatched] == [sample.text for sample in batched]
    assert [(sample.query_id, sample.number) for sample in unbatched] == [(q, n) for q in QUERIES for n in range(3)]
    reseeded = student.sample_queries(options, seed=2)
    assert sum(before.text != after.text for before, after in zip(unbatched, reseeded, strict=True)) > 12
    assert len({sample.text for sample in unbatched}) > 12


def test_the_log_probability_of_a_passage_is_the_mean_over_its_tokens_and_the_end_token(student: Student) -> None:
    for sample in student.sample_queries(SamplingOptions(samples=2, temperature=0.5)):
        prompt_ids = student.tokenizer(build_prompt(sample.query))["input_ids"]
        with torch.no_grad():
            logits = student.model(torch.tensor([[*prompt_ids, *sample.tokens]])).logits[0, len(prompt_ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(sample.tokens)[:, None]).mean().item()
        assert sample.logprob == pytest.approx(expected, abs=1e-4)


def test_only_the_likeliest_tokens_are_sampled(student: Student) -> None:
    greedy_texts = [sample.text for sample in student.sample_queries(GREEDY)]
    top_1 = SamplingOptions(samples=1, top_k=1)
    assert [sample.text for sample in student.sample_queries(top_1)] == greedy_texts
    tiny_top_p = SamplingOptions(samples=1, top_p=1e-9)
    assert [sample.text for sample in student.sample_queries(tiny_top_p)] == greedy_texts


def test_a_passage_ends_where_the_served_model_would_stop(student: Student) -> None:
    stop_ids = set(find_stop_ids(student.tokenizer).tolist())
    texts = {student.tokenizer.decode([token_id]) for token_id in stop_ids}
    assert {"<|im_end|>", "<|endoftext|>", "\n"} <= texts
    assert all("\n" in text or text.startswith("<|") for text in texts)
    finished = 0
    for sample in student.sample_queries(SamplingOptions(samples=8, temperature=2, top_k=2000)):
        assert not set(sample.tokens[:-1]) & stop_ids and "\n" not in sample.text and "<|im_end|>" not in sample.text
        assert len(sample.tokens) <= 64
        assert sample.ended == (sample.tokens[-1] in stop_ids)
        finished += sample.ended
    assert finished  # with random weights some end by chance


def _write_samples(student: Student, out: Path, options: SamplingOptions) -> list[Candidate]:
    requests = find_missing_samples(QUERIES, options, out=out, name="tiny", seed=3)
    write_samples(student.model, student.tokenizer, requests, options, out=out, seed=3)
    return list(read_candidates(out))


def test_a_killed_run_is_completed_as_if_it_had_never_stopped(student: Student, tmp_path: Path) -> None:
    options = SamplingOptions(samples=2, batch_size=4)
    unbroken = _write_samples(student, tmp_path / "unbroken.jsonl", options)
    out = tmp_path / "killed.jsonl"
    out.write_bytes((tmp_path / "unbroken.jsonl").read_bytes()[:-150])
    completed = _write_samples(student, out, options)
    assert len(completed) == 10
    assert [candidate.ended for candidate in unbroken].count(False) == count_passages(out)[1]
    texts = {(candidate.request_key, candidate.text) for candidate in completed}
    assert texts == {(candidate.request_key, candidate.text) for candidate in unbroken}
    assert find_missing_samples(QUERIES, options, out=out, name="tiny", seed=3) == {}


def test_more_samples_are_added_to_the_ones_in_the_file(student: Student, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    first_two = _write_samples(student, out, SamplingOptions(samples=2))
    all_three = _write_samples(student, out, SamplingOptions(samples=3))
    assert all_three[:10] == first_two and len(all_three) == 15
    assert all_three[0].method == "student" and all_three[0].model == "tiny"
    assert {key: all_three[0].params[key] for key in ("temperature", "seed")} == {"temperature": 1.0, "seed": 3}
    assert sorted(candidate.params["sample"] for candidate in all_three) == [0] * 5 + [1] * 5 + [2] * 5
    assert all(candidate.params["logprob"] < 0 for candidate in all_three)


# --- the command


def _save_student(student: Student, folder: Path) -> Path:
    models.save_model(student.model, student.tokenizer, folder)
    return folder


def test_the_greedy_file_can_be_served_as_a_table(student: Student, tmp_path: Path) -> None:
    topics = tmp_path / "queries.jsonl"
    lines = [json.dumps({"_id": key, "text": text}) for key, text in QUERIES.items()]
    topics.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "table.jsonl"
    arguments = [str(_save_student(student, tmp_path / "tiny")), str(topics), "--out", str(out), "--greedy"]
    output = CliRunner().invoke(sample_command, arguments, catch_exceptions=False).output
    endless = [candidate.ended for candidate in read_candidates(out)].count(False)
    lines = output.splitlines()
    assert lines[0] == f"5 passages for 5 queries written to {out}"
    assert lines[1] == f"{endless} of the 5 passages there did not end within 64 tokens"
    table = TableGenerator(out)
    asyncio.run(table.start())
    expansion = asyncio.run(table.expand(ExpansionRequest("RAIN in  spring")))
    (text,) = [candidate.text for candidate in read_candidates(out) if candidate.query == "rain in spring"]
    assert expansion is not None and expansion == expansion_from_text(clean_prose(text))
    second_output = CliRunner().invoke(sample_command, arguments, catch_exceptions=False).output
    assert second_output.startswith(f"0 passages for 5 queries written to {out}\n")


def _save_neutral_adapter(folder: Path, base: Path) -> Path:
    """Save an adapter on `base` that changes nothing."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = models.load_model_and_tokenizer(base)
    config = LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with libraries.hide_harmless_warnings():
        models.save_adapter(get_peft_model(model, config), tokenizer, folder, base=base)
    return folder


def test_a_change_to_the_base_of_an_adapter_makes_its_samples_stale(student: Student, tmp_path: Path) -> None:
    topics = tmp_path / "topics.tsv"
    topics.write_text("7\train\n", encoding="utf-8")
    base = _save_student(student, tmp_path / "base")
    adapter = _save_neutral_adapter(tmp_path / "dpo", _save_neutral_adapter(tmp_path / "sft", base))
    arguments = [str(adapter), str(topics), "--out", str(tmp_path / "samples"), "--greedy"]
    assert CliRunner().invoke(sample_command, arguments, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "samples.manifest.json").is_file()
    (base / "config.json").write_text((base / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"was begun with another input \(base 2: .*base\)"):
        CliRunner().invoke(sample_command, arguments, catch_exceptions=False, standalone_mode=False)


def test_an_incomplete_student_is_refused_and_the_restored_one_is_sampled(student: Student, tmp_path: Path) -> None:
    topics = tmp_path / "topics.tsv"
    topics.write_text("7\train\n", encoding="utf-8")
    folder = _save_student(student, tmp_path / "tiny")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-99])
    arguments = [str(folder), str(topics), "--out", str(tmp_path / "out.jsonl"), "--greedy"]
    with pytest.raises(SettingsError, match=r"tiny cannot be read as a model \("):
        CliRunner().invoke(sample_command, arguments, catch_exceptions=False, standalone_mode=False)
    (folder / "model.safetensors").write_bytes(weights)
    assert CliRunner().invoke(sample_command, arguments, catch_exceptions=False).exit_code == 0


def test_a_file_that_another_process_writes_is_left_unchanged(student: Student, tmp_path: Path) -> None:
    topics, out = tmp_path / "topics.tsv", tmp_path / "out.jsonl"
    topics.write_text("7\train\n", encoding="utf-8")
    arguments = [str(_save_student(student, tmp_path / "tiny")), str(topics), "--out", str(out), "--greedy"]
    CliRunner().invoke(sample_command, arguments, catch_exceptions=False)
    out.write_text('{"query_id": "7", "half of a li', encoding="utf-8")
    with (tmp_path / "out.jsonl.manifest.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="is being written by another process"):
            CliRunner().invoke(sample_command, arguments, catch_exceptions=False, standalone_mode=False)
    assert out.read_text(encoding="utf-8").endswith("half of a li")


def test_queries_come_from_files_and_from_splits_of_corpora(tmp_path: Path) -> None:
    topics = tmp_path / "topics.tsv"
    topics.write_text("7\train\n", encoding="utf-8")
    assert read_queries((str(topics),)) == {"7": "rain"}
    assert read_queries(("builtin:all",)) == read_queries(("builtin",))
    assert len(read_queries(("builtin", str(topics)))) == len(read_queries(("builtin",))) + 1


def test_an_id_of_two_different_queries_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.tsv", "rain"), ("b.tsv", "snow")):
        (tmp_path / name).write_text(f"7\t{text}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="query id '7' stands for two queries"):
        read_queries((str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv")))


def test_a_passage_that_did_not_end_says_so_and_keeps_no_part_of_a_sign(student: Student) -> None:
    """A model may be stopped inside the three bytes of a Chinese sign."""
    whole_ids = student.tokenizer("雪" * 40)["input_ids"]
    request = SampleRequest("q", "雪", 0, [])
    tokens = [WrittenToken(token_id, -1.0) for token_id in whole_ids]
    end_id = student.tokenizer.convert_tokens_to_ids("<|im_end|>")
    cut_inside_a_sign = next(
        count for count in range(len(tokens), 0, -1) if "\ufffd" in student.tokenizer.decode(whole_ids[:count])
    )
    cut = make_sample(request, tokens[:cut_inside_a_sign], student.tokenizer, stop_ids={end_id})
    assert not cut.ended and cut.text and set(cut.text) == {"雪"}
    whole = make_sample(request, [*tokens, WrittenToken(end_id, -1.0)], student.tokenizer, stop_ids={end_id})
    assert whole.ended and whole.text == "雪" * 40
