"""The student's own passages depend on the weights, the query and the seed, and on nothing that happens beside them."""

from __future__ import annotations

import asyncio
import fcntl
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

pytest.importorskip("trl", reason="needs the training stack: pip install 'querylift[train]'")

import torch

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import clean_prose, from_words, prompt
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.table import TableGenerator
from querylift.trainer import candidates
from querylift.trainer.commands.sample import read_queries
from querylift.trainer.commands.sample import sample as command
from querylift.trainer.settings import SampleSettings
from querylift.trainer.student import models
from querylift.trainer.student.sampling import Sample, missing, sample, stop_ids, write_samples

QUERIES = {
    "1": "rain",
    "2": "what is snow and why does it fall on the mountains",
    "3": "naïve 猫",
    "4": "read a file line by line",
    "5": "rain in spring",
}
GREEDY = SampleSettings(temperature=0, max_tokens=24)


class Student(NamedTuple):
    model: Any
    tokenizer: Any

    def writes(self, options: SampleSettings, *, seed: int = 1) -> list[Sample]:
        return sorted(sample(self.model, self.tokenizer, QUERIES, options, seed=seed))


@pytest.fixture(scope="module", params=["made:llama", "made:qwen3"])
def student(request: pytest.FixtureRequest) -> Student:
    return Student(*models.load(request.param, attention="eager"))


def test_greedy_passages_are_the_same_alone_and_in_a_batch(student: Student) -> None:
    alone = student.writes(GREEDY.model_copy(update={"batch_size": 1}))
    together = student.writes(GREEDY.model_copy(update={"batch_size": 8}))
    assert [one.text for one in alone] == [one.text for one in together]
    assert [one.query_id for one in alone] == list(QUERIES) and all(len(one.tokens) > 1 for one in alone)


def test_greedy_passages_are_those_of_transformers_own_loop(student: Student) -> None:
    ends = stop_ids(student.tokenizer).tolist()
    for one in student.writes(GREEDY):
        asked = torch.tensor([student.tokenizer(prompt(one.query))["input_ids"]])
        with torch.no_grad():
            written = student.model.generate(
                asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=24, eos_token_id=ends
            )[0, asked.size(1) :].tolist()
        kept = [token for token in written if token not in ends]
        assert one.text == student.tokenizer.decode(kept)


def test_drawn_passages_depend_on_the_seed_and_not_on_the_batch(student: Student) -> None:
    options = SampleSettings(samples=3, max_tokens=16)
    alone = student.writes(options.model_copy(update={"batch_size": 1}))
    together = student.writes(options.model_copy(update={"batch_size": 16}))
    assert [one.text for one in alone] == [one.text for one in together]
    assert [(one.query_id, one.number) for one in alone] == [(q, n) for q in QUERIES for n in range(3)]
    others = student.writes(options, seed=2)
    assert sum(one.text != other.text for one, other in zip(alone, others, strict=True)) > 12
    assert len({one.text for one in alone}) > 12


def test_the_probability_of_a_passage_is_that_of_its_tokens_and_its_end(student: Student) -> None:
    for one in student.writes(SampleSettings(samples=2, temperature=0.5, max_tokens=16)):
        asked = student.tokenizer(prompt(one.query))["input_ids"]
        with torch.no_grad():
            logits = student.model(torch.tensor([[*asked, *one.tokens]])).logits[0, len(asked) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(one.tokens)[:, None]).mean().item()
        assert one.logprob == pytest.approx(expected, abs=1e-4)


def test_only_the_likeliest_tokens_are_drawn(student: Student) -> None:
    greedy = [one.text for one in student.writes(GREEDY)]
    only_one = SampleSettings(samples=1, top_k=1, max_tokens=24)
    assert [one.text for one in student.writes(only_one)] == greedy
    least_share = SampleSettings(samples=1, top_p=1e-9, max_tokens=24)
    assert [one.text for one in student.writes(least_share)] == greedy


def test_a_passage_ends_where_the_served_one_would(student: Student) -> None:
    ends = set(stop_ids(student.tokenizer).tolist())
    texts = {student.tokenizer.decode([token]) for token in ends}
    assert {"<|im_end|>", "<|endoftext|>", "\n"} <= texts
    assert all("\n" in text or text.startswith("<|") for text in texts)
    ended = 0
    for one in student.writes(SampleSettings(samples=8, temperature=2, top_k=2000)):
        assert not set(one.tokens[:-1]) & ends and "\n" not in one.text and "<|im_end|>" not in one.text
        assert len(one.tokens) <= 64
        ended += one.tokens[-1] in ends
    assert ended  # with random weights some come to an end by chance


def _candidates(student: Student, out: Path, options: SampleSettings) -> list[candidates.Candidate]:
    todo = missing(QUERIES, options, out=out, name="tiny", seed=3)
    write_samples(student.model, student.tokenizer, todo, options, out=out, seed=3)
    return list(candidates.read(out))


def test_what_a_kill_left_is_completed_as_if_nothing_had_happened(student: Student, tmp_path: Path) -> None:
    options = SampleSettings(samples=2, max_tokens=8, batch_size=4)
    whole = _candidates(student, tmp_path / "whole.jsonl", options)
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes((tmp_path / "whole.jsonl").read_bytes()[:-150])
    again = _candidates(student, torn, options)
    assert len(again) == 10
    assert {(one.key, one.text) for one in again} == {(one.key, one.text) for one in whole}
    assert missing(QUERIES, options, out=torn, name="tiny", seed=3) == {}


def test_more_samples_are_added_to_those_that_are_there(student: Student, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    two = _candidates(student, out, SampleSettings(samples=2, max_tokens=8))
    three = _candidates(student, out, SampleSettings(samples=3, max_tokens=8))
    assert three[:10] == two and len(three) == 15
    assert three[0].method == "student" and three[0].model == "tiny"
    assert {key: three[0].params[key] for key in ("temperature", "seed")} == {"temperature": 1.0, "seed": 3}
    assert sorted(one.params["sample"] for one in three) == [0] * 5 + [1] * 5 + [2] * 5
    assert all(one.params["logprob"] < 0 for one in three)


# --- the command


def _folder(student: Student, where: Path) -> Path:
    models.save(student.model, student.tokenizer, where)
    return where


def test_the_greedy_file_is_a_table_to_evaluate(student: Student, tmp_path: Path) -> None:
    topics = tmp_path / "queries.jsonl"
    lines = [json.dumps({"_id": key, "text": text}) for key, text in QUERIES.items()]
    topics.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "table.jsonl"
    arguments = [str(_folder(student, tmp_path / "tiny")), str(topics), "--out", str(out), "--greedy"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.output == f"5 passages for 5 queries written to {out}\n"
    table = TableGenerator(out)
    asyncio.run(table.start())
    found = asyncio.run(table.expand(Ask("RAIN in  spring")))
    (written,) = [one.text for one in candidates.read(out) if one.query == "rain in spring"]
    assert found is not None and found == from_words(clean_prose(written))
    again = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert again.output == f"0 passages for 5 queries written to {out}\n"


def _adapter(folder: Path, base: Path) -> Path:
    """An adapter that changes nothing, on `base`."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = models.load(base)
    config = LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with models.harmless_warnings():
        models.save_adapter(get_peft_model(model, config), tokenizer, folder, base=base)
    return folder


def test_samples_are_stale_once_what_an_adapter_lies_on_has_changed(student: Student, tmp_path: Path) -> None:
    topics = tmp_path / "topics.tsv"
    topics.write_text("7\train\n", encoding="utf-8")
    base = _folder(student, tmp_path / "base")
    adapter = _adapter(tmp_path / "dpo", _adapter(tmp_path / "sft", base))
    arguments = [str(adapter), str(topics), "--out", str(tmp_path / "samples"), "--greedy"]
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "samples.manifest.json").is_file()
    (base / "config.json").write_text((base / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"was begun with another input \(base 2: .*base\)"):
        CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)


def test_a_torn_student_is_refused_and_the_mended_one_is_sampled(student: Student, tmp_path: Path) -> None:
    topics = tmp_path / "topics.tsv"
    topics.write_text("7\train\n", encoding="utf-8")
    folder = _folder(student, tmp_path / "tiny")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-99])
    arguments = [str(folder), str(topics), "--out", str(tmp_path / "out.jsonl"), "--greedy"]
    with pytest.raises(SettingsError, match=r"tiny cannot be read as a model \("):
        CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    (folder / "model.safetensors").write_bytes(weights)
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0


def test_a_file_that_another_process_writes_is_left_alone(student: Student, tmp_path: Path) -> None:
    topics, out = tmp_path / "topics.tsv", tmp_path / "out.jsonl"
    topics.write_text("7\train\n", encoding="utf-8")
    arguments = [str(_folder(student, tmp_path / "tiny")), str(topics), "--out", str(out), "--greedy"]
    CliRunner().invoke(command, arguments, catch_exceptions=False)
    out.write_text('{"query_id": "7", "half of a li', encoding="utf-8")
    with (tmp_path / "out.jsonl.manifest.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="is being written by another process"):
            CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert out.read_text(encoding="utf-8").endswith("half of a li")


def test_queries_come_from_files_and_from_splits_of_corpora(tmp_path: Path) -> None:
    topics = tmp_path / "topics.tsv"
    topics.write_text("7\train\n", encoding="utf-8")
    assert read_queries((str(topics),)) == {"7": "rain"}
    assert read_queries(("builtin:all",)) == read_queries(("builtin",))
    assert len(read_queries(("builtin", str(topics)))) == len(read_queries(("builtin",))) + 1


def test_an_id_that_stands_for_two_queries_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.tsv", "rain"), ("b.tsv", "snow")):
        (tmp_path / name).write_text(f"7\t{text}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="query id '7' stands for two queries"):
        read_queries((str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv")))
