"""Every student gets a card that says how it was trained, on which data under which licences, and what was held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import yaml
from click.testing import CliRunner

from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.card import card as card_command
from querylift.trainer.manifest import compute_digest
from querylift.trainer.student import dpo, sft
from querylift.trainer.student.merge import merge_adapter
from querylift.trainer.training_config import TrainingConfig
from tests.helpers.lessons import TOPICS, write_json_lines, write_pair_file
from tests.helpers.training import make_tiny_config, print_nothing

RESULTS = {
    "engine": "OpenSearch 3.8.0",
    "date": "2026-11-29",
    "collections": [
        {
            "name": "weather",
            "queries": 40,
            "notes": ["grades are a model's"],
            "rows": [
                {"name": "plain", "weight": None, "ndcg_at_10": 0.4, "recall_at_100": 0.5, "against_plain": None},
                {
                    "name": "student",
                    "weight": 0.2,
                    "ndcg_at_10": 0.45,
                    "recall_at_100": 0.6,
                    "against_plain": {"difference": 0.05, "corrected_p_value": 0.012},
                },
            ],
        }
    ],
}


def make_config() -> TrainingConfig:
    card = {"license": "Apache-2.0", "licenses": {"fiqa": "CC BY-SA 4.0", "made:llama": "none needed"}}
    values = make_tiny_config().model_dump() | {
        "card": card,
        "held_out": ["folder/scifact:dev"],
        "held_out_by": "document",
    }
    return TrainingConfig.model_validate(values)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of SFT, DPO and merging. SFT has passages of two sources and of two writers."""
    folder = tmp_path_factory.mktemp("cards")
    rows: list[dict[str, object]] = [
        {
            "query_id": f"fiqa:{t}",
            "query": f"what is {t}",
            "text": f"{t} is wet",
            "model": "Qwen2.5-72B",
            "method": "mugi",
        }
        for t in TOPICS[:8]
    ]
    document = {"corpus": "scifact", "doc_id": "7"}
    rows.append(
        {"query_id": "9", "query": "what is dew", "text": "dew is cold", "document": document, "method": "judged"}
    )
    passages = write_json_lines(folder / "rows.jsonl", rows)
    sft.train_on_passages([passages], make_config(), out=folder / "sft", say=print_nothing)
    pairs = write_pair_file(folder / "pairs.jsonl")
    dpo.train_on_pairs([pairs], make_tiny_config(), model=folder / "sft", out=folder / "dpo", say=print_nothing)
    merge_adapter(folder / "dpo", out=folder / "merged", dtype="float32", say=print_nothing)
    return folder


def read_card(folder: Path) -> tuple[dict[str, object], str]:
    """Return the front matter and the text."""
    _, front_matter, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front_matter), text


def test_an_adapters_front_matter_is_what_a_hub_reads(chain: Path) -> None:
    front_matter, _ = read_card(chain / "sft")
    assert front_matter == {
        "license": "apache-2.0",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["querylift", "query-expansion", "lora", "sft"],
        "datasets": ["fiqa", "scifact"],
    }


@pytest.mark.parametrize(
    ("base", "base_model", "licence"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0"),
        ("/models/Qwen3-4B", "Qwen3-4B", "unknown: state it"),
    ],
)
def test_the_base_is_named_without_its_folder(tmp_path: Path, base: str, base_model: str, licence: str) -> None:
    manifest = {"stage": "sft", "done": True, "results": {"origin": {"licenses": {"smollm2-135m": "Apache-2.0"}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    CliRunner().invoke(card_command, [str(tmp_path)], catch_exceptions=False)
    front_matter, text = read_card(tmp_path)
    assert (front_matter["base_model"], front_matter["base_model_relation"]) == (base_model, "adapter")
    assert f"- Licence of the base: {licence}\n" in text and "/models" not in text


def test_a_merged_model_tells_of_all_its_stages(chain: Path) -> None:
    front_matter, text = read_card(chain / "merged")
    assert front_matter["library_name"] == "transformers"
    assert front_matter["tags"] == ["querylift", "query-expansion", "sft", "dpo", "merge"]
    rows = [line.split(" | ")[0] for line in text.partition("## Training")[2].splitlines() if line.startswith("| ")]
    assert rows[2:5] == ["| sft", "| dpo", "| merge"]
    assert "epochs 2" in text and "beta 0.1" in text and "- dtype float32" in text
    assert str(chain) not in text


def test_data_are_listed_by_source_and_writer_and_an_unknown_licence_is_named(chain: Path) -> None:
    _, text = read_card(chain / "dpo")
    assert "| sft | fiqa | CC BY-SA 4.0 | Qwen2.5-72B | unknown: state it | mugi | 8 |" in text
    assert "| sft | scifact | unknown: state it | not recorded | – | judged | 1 |" in text
    assert "| dpo | pairs | unknown: state it | not recorded | – | unknown | 20 |" in text


def test_a_card_says_what_was_held_out_and_by_what(chain: Path) -> None:
    _, text = read_card(chain / "merged")
    assert "- sft: queries, and texts of documents that are relevant to them, of scifact:dev\n" in text
    assert "- dpo: nothing (`--held-out none`)\n" in text


def test_the_command_adds_what_was_measured_and_licences_and_leaves_the_model_the_same(
    chain: Path, tmp_path: Path
) -> None:
    results, config = tmp_path / "results.json", tmp_path / "c.toml"
    results.write_text(json.dumps(RESULTS), encoding="utf-8")
    config.write_text('[card.licenses]\n"Qwen2.5-72B" = "Qwen"\n', encoding="utf-8")
    digest = compute_digest(chain / "dpo")
    assert "Not measured yet" in read_card(chain / "dpo")[1]
    arguments = [str(chain / "dpo"), "--results", str(results), "--config", str(config)]
    result = CliRunner().invoke(card_command, arguments, catch_exceptions=False)
    assert result.output == f"{chain / 'dpo' / 'README.md'} is written\n"
    _, text = read_card(chain / "dpo")
    assert "| student | 0.2 | 0.450 | 0.600 | +0.050 | 0.012 |" in text and "grades are a model's" in text
    assert "| Qwen2.5-72B | Qwen | mugi |" in text and "| fiqa | CC BY-SA 4.0 |" in text
    assert compute_digest(chain / "dpo") == digest


def test_a_stage_that_was_moved_is_looked_for_beside_its_successor(chain: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    chain.rename(moved)
    try:
        CliRunner().invoke(card_command, [str(moved / "merged")], catch_exceptions=False)
        assert "| sft | fiqa |" in read_card(moved / "merged")[1]
    finally:
        moved.rename(chain)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{empty}"], "is no finished output of sft, dpo, grpo, merge; name a folder that one of them wrote"),
        (["{sft}", "--results", "{wrong}"], "is no results.json of `querylift train report`"),
        (["{sft}", "--results", "{absent}"], "cannot be read as JSON"),
    ],
)
def test_a_wrong_folder_or_file_is_named(chain: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "wrong.json").write_text("{}", encoding="utf-8")
    places = {"sft": chain / "sft", "empty": tmp_path, "wrong": tmp_path / "wrong.json", "absent": tmp_path / "no.json"}
    filled = [argument.format(**places) for argument in arguments]
    with pytest.raises(SettingsError, match=sentence):
        CliRunner().invoke(card_command, filled, catch_exceptions=False)
