"""A small model is pre-trained, learns annotations, and is corrected by the reward of its own answers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.index_tools.commands.options import show_progress
from querylift.index_tools.corpora.records import Document
from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE, SCALES
from querylift.plugin.errors import DataError, SettingsError
from querylift.trainer.judge.adaptation import dpo, pretrain, sft
from querylift.trainer.judge.adaptation.adaptation_config import (
    CONFIG_FOLDER,
    AdaptationConfig,
    parse_adaptation_config,
)
from querylift.trainer.judge.adaptation.domain_texts import sample_documents
from querylift.trainer.judge.adaptation.pretrain import DomainSource
from querylift.trainer.student import loss_curves, model_bases, models
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.training_config import read_config_file
from tests.helpers.judge_lessons import make_annotation, make_annotations, write_annotation_file
from tests.helpers.training import print_nothing

TEXTS = [Document(f"d{number}", "Weather", f"Stations measure rain and wind. Day {number}.") for number in range(30)]
SOURCE = DomainSource("index weather", {"index": "weather"}, lambda: iter(TEXTS))
FEW_STEPS: dict[str, dict[str, object]] = {
    "pretrain": {"epochs": 3, "block_tokens": 64},
    "sft": {"epochs": 6},
    "sample": {"max_tokens": 8},
    "dpo": {"epochs": 2},
}


def read_config(name: str, overrides: dict[str, dict[str, object]]) -> AdaptationConfig:
    """Return a packaged configuration with other values in some sections."""
    values = read_config_file(Path(name), folder=CONFIG_FOLDER)
    merged = {
        key: value | overrides.get(key, {}) if isinstance(value, dict) else value for key, value in values.items()
    }
    return parse_adaptation_config(merged)


class Chain(NamedTuple):
    """The folders and results of the three steps with the configuration `judge-smoke`, on eight annotations."""

    folder: Path
    annotations: Path
    config: AdaptationConfig
    results: dict[str, TrainingResult]
    lines: list[str]

    def read_losses(self, stage: str) -> list[float]:
        return [row["loss"] for row in loss_curves.read_curves(self.folder / stage / "curves.jsonl") if "loss" in row]

    def run_dpo(self, out: Path, config: AdaptationConfig | None = None, **options: Any) -> TrainingResult:
        """Run DPO on the model that learned the annotations."""
        arguments: dict[str, Any] = {
            "model": self.folder / "sft",
            "scale": DEFAULT_SCALE,
            "seed": 0,
            "say": print_nothing,
            "show_progress": show_progress,
        }
        file = options.pop("file", self.annotations)
        return dpo.train_on_own_answers(file, config or self.config, out=out, **(arguments | options))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder, lines = tmp_path_factory.mktemp("chain"), list[str]()
    config = read_config("judge-smoke", FEW_STEPS)
    annotations = write_annotation_file(
        folder / "annotations.jsonl", [*make_annotations(), make_annotation("thunder", 1, reasoning=" ")]
    )
    results = {
        "pretrain": pretrain.pretrain_on_documents(
            SOURCE, config, model="made:llama", out=folder / "pretrain", seed=0, say=lines.append
        ),
        "sft": sft.train_on_annotations(
            annotations,
            config,
            model=folder / "pretrain",
            out=folder / "sft",
            scale=DEFAULT_SCALE,
            seed=0,
            say=lines.append,
        ),
    }
    chain = Chain(folder, annotations, config, results, lines)
    results["dpo"] = chain.run_dpo(folder / "dpo", say=lines.append)
    return chain


def test_pre_training_lowers_the_loss(chain: Chain) -> None:
    losses = chain.read_losses("pretrain")
    assert losses[-1] < losses[0] - 1
    assert chain.results["pretrain"].validation["loss"] < losses[0]


def test_fine_tuning_on_eight_annotations_lowers_the_loss(chain: Chain) -> None:
    losses = chain.read_losses("sft")
    assert losses[-1] < losses[0] / 1.5
    assert (chain.results["sft"].examples, chain.results["sft"].left_out) == (8, 1)


def test_dpo_makes_pairs_and_prefers_the_better_answers(chain: Chain) -> None:
    rows = [json.loads(line) for line in (chain.folder / "dpo" / "pairs.jsonl").read_text().splitlines()]
    assert [row["doc_id"] for row in rows][:2] == ["d-rain", "d-snow"] and len(rows) == 8
    assert all(row["chosen"]["reward"] - row["rejected"]["reward"] >= 0.1 for row in rows)
    assert json.loads(rows[3]["chosen"]["text"])["grade"] == 3
    assert (chain.results["dpo"].examples, chain.results["dpo"].left_out) == (8, 1)  # the ninth has no reasoning
    losses = chain.read_losses("dpo")
    assert losses[-1] < losses[0]


def test_every_step_says_first_what_it_will_do(chain: Chain) -> None:
    plans = [line for line in chain.lines if line.startswith("plan: ")]
    assert plans == [
        "plan: pre-train made:llama on up to 200 documents of index weather, in blocks of 64 tokens, 3 epochs",
        f"plan: fine-tune {chain.folder}/pretrain on 8 annotated pairs of {chain.annotations}, 6 epochs; 1 annotations "
        "without reasoning or without all criteria are left out, and 0 pairs had different grades",
        f"plan: {chain.folder}/sft writes 2 answers to each of 9 annotated pairs of {chain.annotations}, 8 tokens or "
        "fewer; the best and the worst of each train it, 2 epochs; 0 pairs had different grades",
    ]


def test_every_step_leaves_weights_and_a_manifest_and_no_copies_of_documents(chain: Chain) -> None:
    for stage in ("pretrain", "sft", "dpo"):
        names = {path.name for path in (chain.folder / stage).iterdir()}
        assert {"adapter_model.safetensors", "tokenizer.json", "curves.jsonl", "manifest.json"} <= names
        assert not names & {"checkpoints", "documents.jsonl"}
    manifests = {name: json.loads((chain.folder / name / "manifest.json").read_text()) for name in ("pretrain", "dpo")}
    assert manifests["pretrain"]["settings"]["index"] == "weather"
    assert manifests["dpo"]["settings"]["prompt_version"] == "judge-1"
    assert list(manifests["dpo"]["inputs"]) == ["annotations", "base", "base 1", "base 2"]


def test_the_steps_are_one_chain_of_adapters(chain: Chain) -> None:
    expected = [str(chain.folder / name) for name in ("dpo", "sft", "pretrain", "pretrain/base")]
    assert model_bases.list_base_chain(chain.folder / "dpo") == expected


def test_a_step_that_is_done_is_not_run_again(chain: Chain) -> None:
    lines: list[str] = []
    assert chain.run_dpo(chain.folder / "dpo", say=lines.append) == chain.results["dpo"]
    assert lines == [f"{chain.folder / 'dpo'} is done"]


def test_answers_of_another_model_are_refused(chain: Chain, tmp_path: Path) -> None:
    answers = shutil.copy(chain.folder / "dpo-answers.jsonl", tmp_path / "answers.jsonl")
    shutil.copy(chain.folder / "dpo-answers.jsonl.manifest.json", tmp_path / "answers.jsonl.manifest.json")
    with pytest.raises(SettingsError, match=r"answers\.jsonl was begun with another input \(model: "):
        chain.run_dpo(tmp_path / "out", model=chain.folder / "pretrain", answers_path=answers)


def test_a_stopped_pre_training_goes_on_with_the_documents_that_it_had_read(tmp_path: Path) -> None:
    path = tmp_path / "out" / "documents.jsonl"
    documents = pretrain.store_documents(SOURCE, path, count=3, seed=0)
    assert len(documents) == 3 and set(documents) < set(TEXTS)
    changed_source = SOURCE._replace(iter_documents=lambda: iter([Document("x", "", "Other texts.")]))
    assert pretrain.store_documents(changed_source, path, count=3, seed=0) == documents


# --- wrong input


def test_annotations_without_reasoning_cannot_be_learned(tmp_path: Path) -> None:
    rows = [make_annotation("rain", 1, reasoning=""), make_annotation("snow", 2, reasoning="")]
    file = write_annotation_file(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        SettingsError, match=r"none of the 2 annotations in .* has both a reasoning and all criteria; make"
    ):
        _fine_tune(file, tmp_path / "out")


def test_answers_that_are_all_too_long_are_named_with_the_setting(chain: Chain, tmp_path: Path) -> None:
    config = read_config("judge-smoke", {"sft": {"max_answer_tokens": 3}})
    with pytest.raises(SettingsError, match=r"has at most 3 tokens; set sft.max_answer_tokens higher"):
        _fine_tune(chain.annotations, tmp_path / "out", config, model=chain.folder / "pretrain")


def test_a_prompt_that_leaves_no_room_is_named_with_the_setting(chain: Chain, tmp_path: Path) -> None:
    config = read_config("judge-smoke", {"sft": {"max_prompt_tokens": 10}})
    with pytest.raises(
        SettingsError, match=r"max_prompt_tokens is 10, and the prompt of query 'rain' has .* without its"
    ):
        _fine_tune(chain.annotations, tmp_path / "out", config, model=chain.folder / "pretrain")


def test_a_grade_off_the_scale_is_named_with_its_line(tmp_path: Path) -> None:
    file = write_annotation_file(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl:3: grade 2 is off the scale; give a whole number from 0 to 1"):
        sft.train_on_annotations(
            file,
            read_config("judge-smoke", {}),
            model="made:llama",
            out=tmp_path / "out",
            scale=SCALES["binary"],
            seed=0,
            say=print_nothing,
        )


def test_the_scale_of_umbrela_is_refused(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match="--scale is 'umbrela', whose prompt asks for two grades that annotations do not"
    ):
        chain.run_dpo(tmp_path / "out", scale=SCALES["umbrela"])


def test_without_a_pair_that_differs_there_is_one_sentence_and_the_answers_are_used_again(
    chain: Chain, tmp_path: Path
) -> None:
    config, answers = (
        read_config("judge-smoke", FEW_STEPS | {"dpo": {"include_annotation": False}}),
        tmp_path / "a.jsonl",
    )
    with pytest.raises(
        SettingsError, match=r"no pair of answers to .* differs by dpo.min_margin 0.1 in its reward; set it"
    ):
        chain.run_dpo(tmp_path / "out", config, answers_path=answers)
    lines = answers.read_bytes().splitlines(keepends=True)
    assert len(lines) == 18  # two answers to each of nine pairs
    answers.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # as a kill leaves it
    assert chain.run_dpo(tmp_path / "out", answers_path=answers).examples == 8
    assert answers.read_bytes().splitlines(keepends=True) == lines


def test_an_empty_file_of_annotations_is_one_sentence(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(
        SettingsError, match=r"empty\.jsonl has no annotation; make some with `querylift judge annotate`"
    ):
        chain.run_dpo(tmp_path / "out", file=tmp_path / "empty.jsonl")


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_a_truncated_base_is_refused_in_one_sentence(chain: Chain, tmp_path: Path, stage: str) -> None:
    base = shutil.copytree(chain.folder / "pretrain" / "base", tmp_path / "base")
    os.truncate(base / "model.safetensors", 2000)
    with pytest.raises(SettingsError, match=r"cannot be read as a model \(.*\); make it anew, or name another"):
        if stage == "pretrain":
            pretrain.pretrain_on_documents(
                SOURCE, chain.config, model=base, out=tmp_path / "out", seed=0, say=print_nothing
            )
        elif stage == "sft":
            _fine_tune(chain.annotations, tmp_path / "out", chain.config, model=base)
        else:
            chain.run_dpo(tmp_path / "out", model=base)


def test_documents_without_a_text_are_one_sentence() -> None:
    with pytest.raises(
        SettingsError, match="no document of index weather has a text; name other fields or another source"
    ):
        sample_documents([Document("d", " ", "")], 3, seed=0, source="index weather")


def test_a_sample_of_documents_has_each_at_most_once_and_is_the_same_for_a_seed() -> None:
    sample = sample_documents(TEXTS, 10, seed=1, source="x")
    assert len(sample) == 10 == len({document.doc_id for document in sample})
    assert sample_documents(TEXTS, 10, seed=1, source="x") == sample != sample_documents(TEXTS, 10, seed=2, source="x")
    assert sample_documents(TEXTS, 99, seed=1, source="x") == TEXTS


# --- the large configuration, by its shape


def test_the_large_configuration_runs_through_all_steps_on_a_small_qwen(tmp_path: Path) -> None:
    """Sizes and durations are smaller than in the file. Everything else is as it is there."""
    small: dict[str, dict[str, object]] = {
        "lora": {"rank": 4},
        "pretrain": {"block_tokens": 64, "max_documents": 8},
        "sft": {"batch_size": 2, "gradient_accumulation": 1},
        "sample": {"samples": 2, "max_tokens": 6},
        "dpo": {"batch_size": 2, "gradient_accumulation": 2},
    }
    config = read_config("judge-qwen3-4b", small)
    model = _save_model(tmp_path / "Qwen3-4B", "made:qwen3")
    file = write_annotation_file(tmp_path / "a.jsonl", make_annotations()[:3])
    pretrain.pretrain_on_documents(SOURCE, config, model=model, out=tmp_path / "pretrain", seed=0, say=print_nothing)
    _fine_tune(file, tmp_path / "sft", config, model=tmp_path / "pretrain")
    result = dpo.train_on_own_answers(
        file,
        config,
        model=tmp_path / "sft",
        out=tmp_path / "dpo",
        scale=DEFAULT_SCALE,
        seed=0,
        say=print_nothing,
        show_progress=show_progress,
    )
    assert result.steps > 0
    adapted, _ = models.load_model_and_tokenizer(tmp_path / "dpo", dtype=config.model.dtype)
    assert adapted.config.model_type == "qwen3"


def _save_model(folder: Path, name: str) -> Path:
    models.save_model(*models.load_model_and_tokenizer(name), folder)
    return folder


def _fine_tune(
    file: Path, out: Path, config: AdaptationConfig | None = None, *, model: str | Path = "made:llama"
) -> TrainingResult:
    config = config or read_config("judge-smoke", {})
    return sft.train_on_annotations(file, config, model=model, out=out, scale=DEFAULT_SCALE, seed=0, say=print_nothing)
