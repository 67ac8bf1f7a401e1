"""A small student really learns, first what a teacher wrote, then what was preferred, and can be stopped on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install 'querylift[train]'")

import torch
from safetensors.torch import load_file
from transformers import TrainerState
from trl.trainer.utils import add_fused_lm_head

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import messages, prompt
from querylift.plugin.generators import http
from querylift.plugin.generators.llama import batching
from querylift.trainer import candidates
from querylift.trainer.rewards.preference_file import Preference
from querylift.trainer.settings import DpoSettings, Settings, SftSettings, check, load
from querylift.trainer.student import dpo, loss_curves, merge, models, sft, shared_training, training_texts
from querylift.trainer.student.cpu_head import use_cpu_head
from querylift.trainer.student.shared_training import Trained
from tests.helpers.lessons import TOPICS, pairs_file, rows_file, write_lines
from tests.helpers.paths import ROOT

NO_LABEL = -100


def _tiny(base: str = "made:llama", **tables: dict[str, object]) -> Settings:
    few: dict[str, object] = {"epochs": 2, "batch_size": 4, "logging_steps": 1, "validation_steps": 2, "save_steps": 0}
    shared = {"validation_share": 0.2, **few}
    return check(
        {
            "model": {"base": base, "compute": "float32"},
            "lora": {"rank": 4} | tables.get("lora", {}),
            "sft": shared | tables.get("sft", {}),
            "dpo": shared | tables.get("dpo", {}),
        }
    )


def _silent(line: str) -> None:
    del line


class Chain(NamedTuple):
    """What the smoke configuration makes of ten passages and ten pairs."""

    folder: Path
    sft: Trained
    dpo: Trained
    said: tuple[str, ...]

    def logged(self, stage: str, key: str) -> list[float]:
        return [row[key] for row in loss_curves.read(self.folder / stage / "curves.jsonl") if key in row]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder, said = tmp_path_factory.mktemp("chain"), list[str]()
    settings = load(Path("smoke"))
    rows, pairs = rows_file(folder / "rows.jsonl"), pairs_file(folder / "pairs.jsonl")
    taught = sft.train([rows], settings, out=folder / "sft", say=said.append)
    preferred = dpo.train([pairs], settings, model=folder / "sft", out=folder / "dpo", say=said.append)
    merge.merge(folder / "dpo", out=folder / "merged", dtype="float32", say=said.append)
    return Chain(folder, taught, preferred, tuple(said))


# --- it learns


def test_supervised_fine_tuning_cuts_the_loss_to_a_fifth(chain: Chain) -> None:
    losses = chain.logged("sft", "loss")
    assert losses[-1] < losses[0] / 5
    assert chain.sft.validation["loss"] < losses[0] / 2
    assert chain.sft.steps == 40 and chain.sft.resumed_at == 0


def test_preferences_raise_the_chosen_over_the_rejected(chain: Chain) -> None:
    chosen, rejected = chain.logged("dpo", "rewards/chosen"), chain.logged("dpo", "rewards/rejected")
    assert chosen[-1] > rejected[-1] and chosen[-1] > chosen[0] and rejected[-1] < rejected[0]
    assert chain.logged("dpo", "rewards/accuracies")[-1] > 0.9
    assert chain.logged("dpo", "rewards/margins")[-1] > 0
    assert chain.dpo.validation["rewards/margins"] > 0


def test_the_merged_chain_answers_as_the_adapters_do(chain: Chain) -> None:
    merged, tokenizer = models.load(chain.folder / "merged")
    stacked, _ = models.load_adapter(chain.folder / "dpo")
    before, _ = models.load(chain.folder / "sft")
    tokens = torch.tensor([tokenizer(prompt("what is rain"))["input_ids"]])
    torch.testing.assert_close(merged(tokens).logits, stacked(tokens).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(tokens).logits, before(tokens).logits, atol=1e-2)


def test_a_merged_folder_says_what_it_is_made_of_and_serves_the_same_prompt(chain: Chain) -> None:
    made_of = json.loads((chain.folder / "merged" / "manifest.json").read_text(encoding="utf-8"))["results"]["made_of"]
    assert made_of == [str(chain.folder / name) for name in ("dpo", "sft", "sft/base")]
    _, tokenizer = models.load(chain.folder / "merged")
    rendered = tokenizer.apply_chat_template(messages("naïve"), add_generation_prompt=True, tokenize=False)
    assert rendered == prompt("naïve")


def test_adapters_can_be_moved_together(chain: Chain, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    chain.folder.rename(moved)
    try:
        assert models.chain(moved / "dpo") == [str(moved / name) for name in ("dpo", "sft", "sft/base")]
    finally:
        moved.rename(chain.folder)


def test_every_stage_leaves_weights_curves_and_a_manifest_and_no_checkpoints(chain: Chain) -> None:
    for stage in ("sft", "dpo"):
        names = {path.name for path in (chain.folder / stage).iterdir()}
        assert {"adapter_model.safetensors", "tokenizer.json", "curves.jsonl", "curves.png", "manifest.json"} <= names
        assert "checkpoints" not in names
        assert (chain.folder / stage / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_have_no_value_that_is_not_a_number(chain: Chain) -> None:
    for stage in ("sft", "dpo"):
        text = (chain.folder / stage / "curves.jsonl").read_text(encoding="utf-8")
        assert "NaN" not in text and "entropy" not in text


def test_progress_fits_a_terminal_of_80_columns(chain: Chain) -> None:
    steps = [line for line in chain.said if line.startswith("step")]
    assert len(steps) > 8 and max(map(len, steps)) <= 80
    assert chain.said[0] == "7 passages to learn, 3 of other queries to check, on " + models.device()


def test_a_stage_that_is_done_is_not_run_again(chain: Chain) -> None:
    said: list[str] = []
    again = sft.train([chain.folder / "rows.jsonl"], load(Path("smoke")), out=chain.folder / "sft", say=said.append)
    assert again == chain.sft and said == [f"{chain.folder / 'sft'} is done"]


def test_weights_that_are_gone_are_made_again(tmp_path: Path) -> None:
    rows, settings, out, said = rows_file(tmp_path / "rows.jsonl"), _tiny(), tmp_path / "sft-1.5", list[str]()
    first = sft.train([rows], settings, out=out, say=_silent)
    before = (out / "adapter_model.safetensors").read_bytes()
    (out / "adapter_model.safetensors").unlink()
    again = sft.train([rows], settings, out=out, say=said.append)
    assert (
        said[0] == f"{out} was done, and its adapter_model.safetensors is no longer what was written: it is made again"
    )
    assert (out / "adapter_model.safetensors").read_bytes() == before and again == first
    assert (out / "manifest.json").is_file() and not (tmp_path / "sft-1.5.manifest.json").exists()


def test_a_model_that_was_mistyped_leaves_the_folder_free(tmp_path: Path) -> None:
    pairs, out = pairs_file(tmp_path / "pairs.jsonl"), tmp_path / "dpo"
    for name in ("k9", "k8"):
        with pytest.raises(SettingsError, match=f"no model '{name}'"):
            dpo.train([pairs], _tiny(), model=name, out=out, say=_silent)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "base/model.safetensors"])
def test_torn_weights_are_refused_in_one_sentence(chain: Chain, tmp_path: Path, weights: str) -> None:
    student = shutil.copytree(chain.folder / "sft", tmp_path / "student")
    os.truncate(student / weights, 2000)
    with pytest.raises(SettingsError, match=r"cannot be read as a model \(.*\); make it anew, or name another"):
        dpo.train([chain.folder / "pairs.jsonl"], _tiny(), model=student, out=tmp_path / "out", say=_silent)


def test_a_manifest_names_all_that_the_student_lies_on(chain: Chain) -> None:
    made = {name: json.loads((chain.folder / name / "manifest.json").read_text()) for name in ("sft", "dpo", "merged")}
    assert {name: list(one["inputs"]) for name, one in made.items()} == {
        "sft": ["rows 1"],
        "dpo": ["rows 1", "base", "base 1"],
        "merged": ["adapter", "base 1", "base 2"],
    }


def test_adapters_are_readable_for_whom_the_files_beside_them_are(chain: Chain) -> None:
    for stage in ("sft", "dpo", "merged"):
        files = [file for file in (chain.folder / stage).rglob("*") if file.is_file()]
        assert len({file.stat().st_mode for file in files}) == 1


def test_a_folder_that_was_begun_with_another_seed_is_refused(chain: Chain) -> None:
    with pytest.raises(SettingsError, match=r"was begun with another seed \(0, now 1\)"):
        sft.train([chain.folder / "rows.jsonl"], load(Path("smoke")), out=chain.folder / "sft", seed=1, say=_silent)


def test_the_qwen_architecture_goes_the_whole_way(tmp_path: Path) -> None:
    settings = _tiny("made:qwen3")
    sft.train([rows_file(tmp_path / "rows.jsonl")], settings, out=tmp_path / "sft", say=_silent)
    dpo.train(
        [pairs_file(tmp_path / "pairs.jsonl")], settings, model=tmp_path / "sft", out=tmp_path / "dpo", say=_silent
    )
    merge.merge(tmp_path / "dpo", out=tmp_path / "merged", dtype="float32", say=_silent)
    merged, tokenizer = models.load(tmp_path / "merged")
    stacked, _ = models.load_adapter(tmp_path / "dpo")
    assert merged.config.model_type == "qwen3" and "q_norm" in "".join(merged.state_dict())
    rendered = tokenizer.apply_chat_template(messages("rain"), add_generation_prompt=True, tokenize=False)
    assert rendered == prompt("rain") and "think" not in rendered
    tokens = torch.tensor([tokenizer(rendered)["input_ids"]])
    torch.testing.assert_close(merged(tokens).logits, stacked(tokens).logits, atol=1e-4, rtol=1e-4)


def test_rank_0_trains_every_weight_and_writes_whole_models(tmp_path: Path) -> None:
    settings = _tiny(lora={"rank": 0}, dpo={"sft_weight": 0.2, "epochs": 20, "learning_rate": 1e-3})
    sft.train([rows_file(tmp_path / "rows.jsonl")], settings, out=tmp_path / "sft", say=_silent)
    out = tmp_path / "dpo"
    trained = dpo.train([pairs_file(tmp_path / "pairs.jsonl")], settings, model=tmp_path / "sft", out=out, say=_silent)
    assert not models.is_adapter(out)
    assert models.load(out)[0].config.model_type == "llama"
    assert trained.validation["rewards/margins"] > 0


@pytest.mark.model
def test_the_packaged_base_is_trained_checkpointed_and_merged(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"query_id": t, "query": t, "text": f"wet {t}"} for t in TOPICS[:2]])
    few: dict[str, object] = {"epochs": 2, "batch_size": 2, "save_steps": 1, "validation_share": 0.0}
    trained = sft.train([rows], _tiny("smollm2-135m", sft=few), out=tmp_path / "sft", say=_silent)
    assert trained.steps == 2 and models.base_of(tmp_path / "sft") == "smollm2-135m"
    merge.merge(tmp_path / "sft", out=tmp_path / "merged", say=_silent)
    weights = (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert 260e6 < weights < 280e6  # 134.5 million in bfloat16, input and output embeddings shared


# --- what is trained on


def test_the_tokens_trained_on_are_the_served_prompt_the_passage_and_the_end() -> None:
    _, tokenizer = models.load("made:llama")
    query, passage = "what is <|im_end|> naïve\nrain", "Sure, here is a passage: Rain   falls,\n\nsays the naïve 猫."
    row = candidates.Candidate("q", query, "zero-shot", "teacher", passage)
    (example,) = sft.examples([row], tokenizer, SftSettings())
    cut = training_texts.cut(passage, tokenizer, max_words=128, max_tokens=64)
    assert cut == "Rain falls, says the naïve 猫."
    assert tokenizer.decode(example.input_ids).encode() == (prompt(query) + cut + "<|im_end|>").encode()
    labelled = [token for token in example.labels if token != NO_LABEL]
    assert tokenizer.decode(labelled) == cut + "<|im_end|>"
    served = tokenizer(prompt(query))["input_ids"]
    assert example.labels[: len(served)] == [NO_LABEL] * len(served) and example.input_ids[: len(served)] == served


def test_what_reaches_the_loss_is_labelled_on_the_passage_alone(tmp_path: Path) -> None:
    model, tokenizer = models.load("made:llama")
    rows = list(candidates.read(rows_file(tmp_path / "rows.jsonl")))
    examples = sft.examples(rows, tokenizer, SftSettings())
    trainer = sft.trainer_for(model, tokenizer, _tiny(), examples, [], out=tmp_path / "out", seed=0)
    seen = set()
    for batch in trainer.get_train_dataloader():
        for tokens, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            passage = tokenizer.decode(labels[labels != NO_LABEL])
            seen.add(passage)
            topic = passage.split()[0]
            assert tokenizer.decode(tokens[mask.bool()]) == prompt(f"what is {topic}") + passage
    assert seen == {f"{row.text}<|im_end|>" for row in rows}


def test_the_serving_generators_ask_with_the_prompt_that_is_trained_on() -> None:
    assert batching.prompt is training_texts.prompt is prompt
    assert http.messages is messages  # test_models renders them to the same bytes


def test_both_passages_of_a_pair_follow_the_served_prompt(tmp_path: Path) -> None:
    model, tokenizer = models.load("made:llama")
    examples = dpo.examples(
        [Preference("q", "what is rain", "water", "fire " * 99)], tokenizer, DpoSettings(max_words=3)
    )
    trainer = dpo.trainer_for(model, tokenizer, _tiny(), examples, [], out=tmp_path, seed=0)
    (batch,) = trainer.get_train_dataloader()
    texts_seen = [
        tokenizer.decode(tokens[mask.bool()])
        for tokens, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert texts_seen == [
        prompt("what is rain") + passage for passage in ("water<|im_end|>", "fire fire fire<|im_end|>")
    ]
    completions = [
        tokenizer.decode(t[m.bool()]) for t, m in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert completions == ["water<|im_end|>", "fire fire fire<|im_end|>"]


@pytest.mark.parametrize(("max_words", "max_tokens"), [(5, 64), (128, 7), (128, 8), (128, 9), (128, 1)])
def test_a_passage_is_cut_at_the_end_of_a_word(max_words: int, max_tokens: int) -> None:
    _, tokenizer = models.load("made:llama")
    passage = "Meteorologists measure unusual precipitation with instruments on the ground"
    cut = training_texts.cut(passage, tokenizer, max_words=max_words, max_tokens=max_tokens)
    assert passage.split()[: len(cut.split())] == cut.split()
    assert len(cut.split()) <= max_words and len(training_texts.ids(cut, tokenizer)) <= max_tokens


def test_rows_without_a_word_and_repeated_rows_are_left_out() -> None:
    _, tokenizer = models.load("made:llama")
    said = ("", "  ", "...", "wet", "wet", " wet ", "—", "`", "cold")
    rows = [candidates.Candidate("q", "rain", "m", "t", text) for text in said]
    assert len(sft.examples(rows, tokenizer, SftSettings())) == 2


def test_pairs_that_are_alike_once_they_are_cut_are_left_out() -> None:
    _, tokenizer = models.load("made:llama")
    pairs = [Preference("q", "rain", "wet and cold", "wet and hot"), Preference("q", "rain", "wet", "")]
    assert len(dpo.examples(pairs, tokenizer, DpoSettings(max_words=2))) == 1


def test_the_same_queries_are_held_out_whatever_the_others_are() -> None:
    many = [f"q{number}" for number in range(1000)]
    held = training_texts.held_out(many, 0.1)
    assert 70 < len(held) < 130
    assert training_texts.held_out(many[:500], 0.1) == held & set(many[:500])
    assert training_texts.held_out(many, 0) == frozenset()
    assert len(training_texts.held_out(["a", "b"], 0.001)) == 1 and len(training_texts.held_out(["a", "b"], 0.999)) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "2: not JSON"),
        ('{"query_id": "q", "query": "rain", "chosen": "a"}', "2: 'rejected' is None; write it as a text"),
        ('{"query_id": "q", "query": " ", "chosen": "a", "rejected": "b"}', "2: 'query' is ' '"),
    ],
)
def test_a_broken_line_of_pairs_is_named_with_its_place(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"query_id": "q", "query": "rain", "chosen": "a", "rejected": "b"}\n' + line + "\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=f"pairs.jsonl:{problem}"):
        dpo.train([file], _tiny(), model="made:llama", out=tmp_path / "out", say=_silent)


@pytest.mark.parametrize("text", ["  ", "..."])
def test_a_file_without_a_usable_row_is_refused(tmp_path: Path, text: str) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"query_id": "q", "query": "rain", "text": text}])
    with pytest.raises(SettingsError, match=r"rows\.jsonl has no candidate with a word in it"):
        sft.train([file], _tiny(), out=tmp_path / "out", say=_silent)


# --- stopped and begun again

SLOW = {"epochs": 60, "batch_size": 4, "save_steps": 10, "logging_steps": 7, "validation_steps": 30}
_RUN = """
import json, sys
from pathlib import Path
from querylift.trainer.student import sft
from querylift.trainer.settings import check
if __name__ == "__main__":
    out, rows, settings = sys.argv[1:]
    sft.train([Path(rows)], check(json.loads(settings)), out=Path(out), say=print)
"""


def test_a_killed_run_ends_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Up to rounding: the held-out loss, the mean loss and every point of the curves to 1e-3, the weights to 1e-3."""
    rows, settings = rows_file(tmp_path / "rows.jsonl"), _tiny(sft=SLOW)
    out, whole = tmp_path / "out", tmp_path / "whole"
    unbroken = sft.train([rows], settings, out=whole, say=_silent)
    _kill_after_a_checkpoint([str(out), str(rows), settings.model_dump_json()])
    last = shared_training.last_checkpoint(out)
    assert last is not None
    torn = shared_training.checkpoints(out) / "checkpoint-9999"  # what a kill leaves while a checkpoint is written
    torn.mkdir()
    said: list[str] = []
    trained = sft.train([rows], settings, out=out, say=said.append)
    assert trained.resumed_at == int(last.name.removeprefix("checkpoint-")) >= 10
    assert f"resumed at step {trained.resumed_at}, from {last}" in said
    assert trained.steps == 120  # 7 rows by fours, 60 times: as many as without the kill
    assert trained.loss == pytest.approx(unbroken.loss, abs=1e-3)
    assert trained.validation["loss"] == pytest.approx(unbroken.validation["loss"], abs=1e-3)
    (steps, losses), (same_steps, same_losses) = _losses(out), _losses(whole)
    assert steps == same_steps == [s for s in range(1, 121) if s % 7 == 0 or s % 10 == 0]
    assert losses == pytest.approx(same_losses, abs=1e-3)
    _same_weights(out, whole)
    assert not shared_training.checkpoints(out).exists() and models.is_adapter(out)


def _losses(folder: Path) -> tuple[list[int], list[float]]:
    rows = [row for row in loss_curves.read(folder / "curves.jsonl") if "loss" in row]
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def _same_weights(folder: Path, other: Path) -> None:
    one, same = (load_file(where / "adapter_model.safetensors") for where in (folder, other))
    assert one.keys() == same.keys()
    for name, weights in one.items():
        torch.testing.assert_close(weights, same[name], atol=1e-3, rtol=1e-3)


def test_the_mean_loss_weighs_windows_and_leaves_out_one_that_a_resume_cut() -> None:
    history = [{"step": 4, "loss": 8.0}, {"step": 4, "eval_loss": 1.0}, {"step": 8, "loss": 4.0}]
    assert loss_curves.mean_loss([*history, {"step": 10, "loss": 1.0}], resumed_at=0) == (4 * 8 + 4 * 4 + 2 * 1) / 10
    assert loss_curves.mean_loss(history, resumed_at=4) == 6.0
    assert loss_curves.mean_loss(history, resumed_at=6) == 8.0
    assert loss_curves.mean_loss([{"step": 9, "train_loss": 1.0}], resumed_at=0) is None


def test_a_point_whose_window_was_cut_by_a_resume_is_left_out_of_the_curves(tmp_path: Path) -> None:
    """A checkpoint of an earlier release may lie within a window; those of this one end it."""
    log: list[dict[str, float]] = [{"step": 5, "loss": 9.0}]
    state = TrainerState(global_step=7, max_steps=20, log_history=log)
    recorded = loss_curves.Curves(tmp_path, say=_silent)
    recorded.on_train_begin(None, state, None)
    for step, loss in ((10, 1.0), (15, 2.0)):
        state.global_step = step
        recorded.on_log(None, state, None, {"loss": loss})
    assert loss_curves.read(tmp_path / "curves.jsonl") == [{"step": 15, "loss": 2.0}]


def _kill_after_a_checkpoint(arguments: list[str]) -> None:
    root = str(ROOT)
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while shared_training.last_checkpoint(Path(arguments[0])) is None:
            assert run.poll() is None and time.monotonic() < deadline, "the run ended before it was killed"
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == -signal.SIGKILL


# --- the head for CPUs


@pytest.mark.parametrize("base", ["made:llama", "made:qwen3"])
@pytest.mark.parametrize("shared", [0, 9])
def test_our_head_gives_the_log_probabilities_and_gradients_of_trls(base: str, shared: int) -> None:
    ids = torch.randint(3, 900, (4, 24), generator=torch.Generator().manual_seed(1))
    ids[:, :shared] = ids[:1, :shared]
    mask = torch.ones_like(ids)
    mask[1, 15:] = mask[2, 20:] = 0
    labels = ids.masked_fill(mask == 0, NO_LABEL)
    labels[:, :12] = NO_LABEL
    found = []
    for ours in (False, True):
        model, _ = models.load(base)
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        if ours:
            use_cpu_head(model)
        output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        output.log_probs.sum().backward()
        grads = [weights.grad for weights in model.parameters()]
        found.append((output.log_probs.detach(), output.mean_logits, output.is_top1, output.label_mask, grads))
    (log_probs, mean_logits, is_top1, label_mask, grads), (log_probs2, mean_logits2, is_top1_2, label_mask2, grads2) = (
        found
    )
    torch.testing.assert_close(log_probs, log_probs2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean_logits, mean_logits2, atol=1e-5, rtol=1e-5)
    assert torch.equal(is_top1, is_top1_2) and torch.equal(label_mask, label_mask2)
    for one, other in zip(grads, grads2, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_reference_is_computed_once_and_is_the_student_that_came_in(chain: Chain, tmp_path: Path) -> None:
    model, tokenizer = models.load(chain.folder / "sft")
    pairs = [
        Preference("q", "what is rain", "wet and cold", "fire"),
        Preference("r", "what is snow", "white", "a page"),
    ]
    examples = dpo.examples(pairs, tokenizer, DpoSettings())
    trainer = dpo.trainer_for(model, tokenizer, _tiny(), examples, [], out=tmp_path, seed=0)
    reference, _ = models.load(chain.folder / "sft")
    for example, chosen, rejected in zip(
        examples, trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"], strict=True
    ):
        for completion, found in ((example.chosen, chosen), (example.rejected, rejected)):
            tokens = torch.tensor([completion.prompt_ids + completion.ids])
            log_probs = reference(tokens).logits[0, len(completion.prompt_ids) - 1 : -1].log_softmax(-1)
            expected = log_probs.gather(1, torch.tensor(completion.ids)[:, None]).sum().item()
            assert found == pytest.approx(expected, rel=1e-4)
