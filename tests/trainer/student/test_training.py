"""A small student learns what a teacher wrote, then what was preferred, and is merged into one model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import build_messages, build_prompt
from querylift.trainer.rewards.pair_file import PassagePair
from querylift.trainer.student import dpo, libraries, loss_curves, model_bases, models, sft
from querylift.trainer.student.merge import merge_adapter
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.training_config import ModelOptions, load_training_config
from tests.helpers.lessons import TOPICS, write_json_lines, write_pair_file, write_passage_file
from tests.helpers.training import make_tiny_config, print_nothing


class Chain(NamedTuple):
    """The folders and results of `sft`, `dpo` and `merge` with the configuration `smoke`, on ten passages and ten pairs."""

    folder: Path
    sft: TrainingResult
    dpo: TrainingResult
    lines: tuple[str, ...]

    def read_curve(self, stage: str, key: str) -> list[float]:
        return [row[key] for row in loss_curves.read_curves(self.folder / stage / "curves.jsonl") if key in row]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder, lines = tmp_path_factory.mktemp("chain"), list[str]()
    config = load_training_config(Path("smoke"))
    passages, pairs = write_passage_file(folder / "rows.jsonl"), write_pair_file(folder / "pairs.jsonl")
    sft_result = sft.train_on_passages([passages], config, out=folder / "sft", say=lines.append)
    dpo_result = dpo.train_on_pairs([pairs], config, model=folder / "sft", out=folder / "dpo", say=lines.append)
    merge_adapter(folder / "dpo", out=folder / "merged", dtype="float32", say=lines.append)
    return Chain(folder, sft_result, dpo_result, tuple(lines))


def test_supervised_fine_tuning_cuts_the_loss_to_a_fifth(chain: Chain) -> None:
    losses = chain.read_curve("sft", "loss")
    assert losses[-1] < losses[0] / 5
    assert chain.sft.validation["loss"] < losses[0] / 2
    assert chain.sft.steps == 40 and chain.sft.resumed_at == 0


def test_dpo_raises_the_chosen_passages_over_the_rejected(chain: Chain) -> None:
    chosen, rejected = chain.read_curve("dpo", "rewards/chosen"), chain.read_curve("dpo", "rewards/rejected")
    assert chosen[-1] > rejected[-1] and chosen[-1] > chosen[0] and rejected[-1] < rejected[0]
    assert chain.read_curve("dpo", "rewards/accuracies")[-1] > 0.9
    assert chain.read_curve("dpo", "rewards/margins")[-1] > 0
    assert chain.dpo.validation["rewards/margins"] > 0


def test_the_merged_model_answers_as_the_adapters_do(chain: Chain) -> None:
    merged, tokenizer = models.load_model_and_tokenizer(chain.folder / "merged")
    stacked, _ = models.load_adapter(chain.folder / "dpo")
    sft_model, _ = models.load_model_and_tokenizer(chain.folder / "sft")
    tokens = torch.tensor([tokenizer(build_prompt("what is rain"))["input_ids"]])
    torch.testing.assert_close(merged(tokens).logits, stacked(tokens).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(tokens).logits, sft_model(tokens).logits, atol=1e-2)


def test_a_merged_folder_names_its_adapters_and_serves_the_same_prompt(chain: Chain) -> None:
    made_of = json.loads((chain.folder / "merged" / "manifest.json").read_text(encoding="utf-8"))["results"]["made_of"]
    assert made_of == [str(chain.folder / name) for name in ("dpo", "sft", "sft/base")]
    _, tokenizer = models.load_model_and_tokenizer(chain.folder / "merged")
    prompt = tokenizer.apply_chat_template(build_messages("naïve"), add_generation_prompt=True, tokenize=False)
    assert prompt == build_prompt("naïve")


def test_adapters_can_be_moved_together(chain: Chain, tmp_path: Path) -> None:
    new_folder = tmp_path / "elsewhere"
    chain.folder.rename(new_folder)
    try:
        expected = [str(new_folder / name) for name in ("dpo", "sft", "sft/base")]
        assert model_bases.list_base_chain(new_folder / "dpo") == expected
    finally:
        new_folder.rename(chain.folder)


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
    steps = [line for line in chain.lines if line.startswith("step")]
    assert len(steps) > 8 and max(map(len, steps)) <= 80
    device = libraries.choose_device()
    assert chain.lines[0] == f"7 training passages, 3 validation passages of other queries, on {device}"


def test_a_stage_that_is_done_is_not_run_again(chain: Chain) -> None:
    lines: list[str] = []
    passages, config = chain.folder / "rows.jsonl", load_training_config(Path("smoke"))
    result = sft.train_on_passages([passages], config, out=chain.folder / "sft", say=lines.append)
    assert result == chain.sft and lines == [f"{chain.folder / 'sft'} is done"]


def test_weights_that_are_gone_are_made_again(tmp_path: Path) -> None:
    passages, config, out = write_passage_file(tmp_path / "rows.jsonl"), make_tiny_config(), tmp_path / "sft-1.5"
    lines: list[str] = []
    result = sft.train_on_passages([passages], config, out=out, say=print_nothing)
    weights = (out / "adapter_model.safetensors").read_bytes()
    (out / "adapter_model.safetensors").unlink()
    second_result = sft.train_on_passages([passages], config, out=out, say=lines.append)
    assert lines[0] == f"{out} was done, but its adapter_model.safetensors is missing or has changed; it is made again"
    assert (out / "adapter_model.safetensors").read_bytes() == weights and second_result == result
    assert (out / "manifest.json").is_file() and not (tmp_path / "sft-1.5.manifest.json").exists()


def test_a_mistyped_model_leaves_the_output_folder_free(tmp_path: Path) -> None:
    pairs, out = write_pair_file(tmp_path / "pairs.jsonl"), tmp_path / "dpo"
    for name in ("k9", "k8"):
        with pytest.raises(SettingsError, match=f"no model '{name}'"):
            dpo.train_on_pairs([pairs], make_tiny_config(), model=name, out=out, say=print_nothing)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "base/model.safetensors"])
def test_incomplete_weights_are_refused_in_one_sentence(chain: Chain, tmp_path: Path, weights: str) -> None:
    student = shutil.copytree(chain.folder / "sft", tmp_path / "student")
    os.truncate(student / weights, 2000)
    pairs = chain.folder / "pairs.jsonl"
    with pytest.raises(SettingsError, match=r"cannot be read as a model \(.*\); make it anew, or name another"):
        dpo.train_on_pairs([pairs], make_tiny_config(), model=student, out=tmp_path / "out", say=print_nothing)


def test_a_manifest_names_the_whole_chain_of_the_student(chain: Chain) -> None:
    manifests = {
        name: json.loads((chain.folder / name / "manifest.json").read_text()) for name in ("sft", "dpo", "merged")
    }
    assert {name: list(manifest["inputs"]) for name, manifest in manifests.items()} == {
        "sft": ["rows 1"],
        "dpo": ["rows 1", "base", "base 1"],
        "merged": ["adapter", "base 1", "base 2"],
    }


def test_all_files_of_a_model_have_the_same_permissions(chain: Chain) -> None:
    for stage in ("sft", "dpo", "merged"):
        files = [path for path in (chain.folder / stage).rglob("*") if path.is_file()]
        assert len({path.stat().st_mode for path in files}) == 1


def test_a_folder_that_was_begun_with_another_seed_is_refused(chain: Chain) -> None:
    passages, config = chain.folder / "rows.jsonl", load_training_config(Path("smoke"))
    with pytest.raises(SettingsError, match=r"was begun with another seed \(0, now 1\)"):
        sft.train_on_passages([passages], config, out=chain.folder / "sft", seed=1, say=print_nothing)


def test_the_qwen_architecture_goes_through_all_stages(tmp_path: Path) -> None:
    config = make_tiny_config("made:qwen3")
    passages, pairs = write_passage_file(tmp_path / "rows.jsonl"), write_pair_file(tmp_path / "pairs.jsonl")
    sft.train_on_passages([passages], config, out=tmp_path / "sft", say=print_nothing)
    dpo.train_on_pairs([pairs], config, model=tmp_path / "sft", out=tmp_path / "dpo", say=print_nothing)
    merge_adapter(tmp_path / "dpo", out=tmp_path / "merged", dtype="float32", say=print_nothing)
    merged, tokenizer = models.load_model_and_tokenizer(tmp_path / "merged")
    stacked, _ = models.load_adapter(tmp_path / "dpo")
    assert merged.config.model_type == "qwen3" and "q_norm" in "".join(merged.state_dict())
    prompt = tokenizer.apply_chat_template(build_messages("rain"), add_generation_prompt=True, tokenize=False)
    assert prompt == build_prompt("rain") and "think" not in prompt
    tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
    torch.testing.assert_close(merged(tokens).logits, stacked(tokens).logits, atol=1e-4, rtol=1e-4)


def test_rank_0_trains_every_weight_and_writes_whole_models(tmp_path: Path) -> None:
    config = make_tiny_config(lora={"rank": 0}, dpo={"sft_weight": 0.2, "epochs": 20, "learning_rate": 1e-3})
    passages, pairs = write_passage_file(tmp_path / "rows.jsonl"), write_pair_file(tmp_path / "pairs.jsonl")
    sft.train_on_passages([passages], config, out=tmp_path / "sft", say=print_nothing)
    out = tmp_path / "dpo"
    result = dpo.train_on_pairs([pairs], config, model=tmp_path / "sft", out=out, say=print_nothing)
    assert not model_bases.is_adapter(out)
    assert models.load_model_and_tokenizer(out)[0].config.model_type == "llama"
    assert result.validation["rewards/margins"] > 0


@pytest.mark.model
def test_the_packaged_base_is_trained_checkpointed_and_merged(tmp_path: Path) -> None:
    rows = [{"query_id": t, "query": t, "text": f"wet {t}"} for t in TOPICS[:2]]
    passages = write_json_lines(tmp_path / "rows.jsonl", rows)
    config = make_tiny_config(
        "smollm2-135m", sft={"epochs": 2, "batch_size": 2, "save_steps": 1, "validation_share": 0.0}
    )
    result = sft.train_on_passages([passages], config, out=tmp_path / "sft", say=print_nothing)
    assert result.steps == 2 and model_bases.read_base_name(tmp_path / "sft") == "smollm2-135m"
    merge_adapter(tmp_path / "sft", out=tmp_path / "merged", say=print_nothing)
    size_bytes = (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert 260e6 < size_bytes < 280e6  # 134.5 million weights in bfloat16; input and output embeddings are shared


def test_the_reference_is_computed_once_from_the_student_before_training(chain: Chain, tmp_path: Path) -> None:
    model, tokenizer = models.load_model_and_tokenizer(chain.folder / "sft")
    pairs = [
        PassagePair("q", "what is rain", "wet and cold", "fire"),
        PassagePair("r", "what is snow", "white", "a page"),
    ]
    examples, _ = dpo.make_examples(pairs, tokenizer)
    trainer = dpo.make_trainer(model, tokenizer, make_tiny_config(), examples, [], out=tmp_path, seed=0)
    reference, _ = models.load_model_and_tokenizer(chain.folder / "sft")
    for example, chosen, rejected in zip(
        examples, trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"], strict=True
    ):
        for completion, log_prob in ((example.chosen, chosen), (example.rejected, rejected)):
            tokens = torch.tensor([completion.prompt_ids + completion.ids])
            log_probs = reference(tokens).logits[0, len(completion.prompt_ids) - 1 : -1].log_softmax(-1)
            expected = log_probs.gather(1, torch.tensor(completion.ids)[:, None]).sum().item()
            assert log_prob == pytest.approx(expected, rel=1e-4)


def test_a_margin_offset_asks_more_of_pairs_whose_rewards_differ_more(chain: Chain, tmp_path: Path) -> None:
    pairs = [
        PassagePair("q", "what is rain", "wet and cold", "fire", margin=0.5),
        PassagePair("r", "what is snow", "white", "a page", margin=0.1),
    ]
    references = {}
    for offset in (0.0, 2.0):
        model, tokenizer = models.load_model_and_tokenizer(chain.folder / "sft")
        examples, _ = dpo.make_examples(pairs, tokenizer)
        config = make_tiny_config(dpo={"margin_offset": offset, "beta": 0.2})
        trainer = dpo.make_trainer(model, tokenizer, config, examples, [], out=tmp_path, seed=0)
        references[offset] = (trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"])
    shifts = [after - before for before, after in zip(references[0.0][0], references[2.0][0], strict=True)]
    assert shifts == pytest.approx([2.0 * 0.5 / 0.2, 2.0 * 0.1 / 0.2], rel=1e-4)
    assert references[0.0][1] == pytest.approx(references[2.0][1])


def test_a_training_that_hardly_moves_the_student_says_so(chain: Chain, tmp_path: Path) -> None:
    lines: list[str] = []
    pairs = write_pair_file(tmp_path / "pairs.jsonl")
    config = make_tiny_config(dpo={"learning_rate": 1e-7})
    dpo.train_on_pairs([pairs], config, model=chain.folder / "sft", out=tmp_path / "dpo", say=lines.append)
    assert lines[-1].startswith("the margin of chosen over rejected passages rose by only 0.000 (below 0.1): 4 updates")
    assert not any("hardly moved" in line for line in chain.lines)


def test_an_adapter_on_a_base_in_bfloat16_is_trained_in_float32(chain: Chain, tmp_path: Path) -> None:
    config = make_tiny_config().model_copy(update={"model": ModelOptions(base="made:llama", dtype="bfloat16")})
    model, tokenizer = models.load_model_and_tokenizer("made:llama", dtype="bfloat16")
    examples, _ = dpo.make_examples([PassagePair("q", "what is rain", "wet and cold", "fire")], tokenizer)
    trainer = dpo.make_trainer(model, tokenizer, config, examples, [], out=tmp_path, seed=0)
    dtypes = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}


def test_a_margin_offset_without_margins_is_refused(chain: Chain, tmp_path: Path) -> None:
    pairs = write_pair_file(tmp_path / "pairs.jsonl")
    config = make_tiny_config(dpo={"margin_offset": 1.0})
    with pytest.raises(
        SettingsError, match=r"dpo.margin_offset is 1, and no pair of .* has a margin; write the pairs with"
    ):
        dpo.train_on_pairs([pairs], config, model=chain.folder / "sft", out=tmp_path / "dpo", say=print_nothing)
