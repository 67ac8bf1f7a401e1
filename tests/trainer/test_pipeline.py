"""The pipeline announces its steps and runs them in order, one seed after the other."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from querylift.index_tools.corpora import corpus_names
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.commands.main import querylift
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import parse_settings
from querylift.trainer import pipeline
from querylift.trainer.commands.train import STAGES
from querylift.trainer.student.loss_curves import read_curves
from querylift.trainer.training_config import list_packaged_configs, load_training_config, parse_training_config

CONFIG_PATH = Path("my.toml")


def _build_commands(steps: list[dict[str, object]], **changes: object) -> list[str]:
    config = parse_training_config({"variables": {"work": "runs/x"}, "step": steps, **changes})
    return [str(call) for call in pipeline.build_stage_calls(config, path=CONFIG_PATH, overrides={})]


def test_a_step_is_the_command_that_a_person_would_type() -> None:
    steps: list[dict[str, object]] = [
        {
            "stage": "score",
            "arguments": ["{work}/own samples.jsonl"],
            "options": {"index": "products", "weight": [0.1, 0.2], "floor": False, "json": True},
        }
    ]
    assert _build_commands(steps) == [
        "querylift train score 'runs/x/own samples.jsonl' --index products --weight 0.1 --weight 0.2 --no-floor --json"
    ]


def test_a_training_stage_gets_the_configuration_file_and_the_held_out_splits() -> None:
    steps = [{"stage": "sft", "arguments": ["rows.jsonl"], "options": {"out": "{work}/sft-{seed}"}, "per_seed": True}]
    assert _build_commands(steps, seeds=[3], held_out=["scifact:dev"]) == [
        "querylift train sft rows.jsonl --held-out scifact:dev --config my.toml --seed 3 --out runs/x/sft-3"
    ]


def test_the_training_of_an_expander_gets_the_file_the_seed_and_the_held_out_splits_too() -> None:
    steps = [{"stage": "expander", "arguments": ["built"], "options": {"out": "{work}/e-{seed}"}, "per_seed": True}]
    assert _build_commands(steps, seeds=[3], held_out=["scifact:dev"]) == [
        "querylift train expander built --held-out scifact:dev --training my.toml --seed 3 --out runs/x/e-3"
    ]


def test_grpo_gets_the_file_the_seed_and_the_held_out_splits_too() -> None:
    steps = [{"stage": "grpo", "arguments": ["c:train"], "options": {"index": "products"}, "per_seed": True}]
    assert _build_commands(steps, seeds=[3], held_out=["scifact:dev"]) == [
        "querylift train grpo c:train --held-out scifact:dev --training my.toml --seed 3 --index products"
    ]


def test_stages_that_refuse_leaks_are_told_to_hold_out_by_document() -> None:
    steps: list[dict[str, object]] = [
        {"stage": "teach", "arguments": ["c"]},
        {"stage": "score", "arguments": ["rows.jsonl"]},
    ]
    assert _build_commands(steps, held_out=["scifact:dev"], held_out_by="document") == [
        "querylift train teach c --held-out scifact:dev --held-out-by document",
        "querylift train score rows.jsonl",
    ]


def test_one_seed_runs_to_its_end_before_the_next_seed_begins() -> None:
    steps: list[dict[str, object]] = [
        {"stage": "pairs", "arguments": ["all"]},
        {"stage": "sft", "arguments": ["a-{seed}"], "per_seed": True},
        {"stage": "merge", "arguments": ["b-{seed}"], "per_seed": True},
        {"stage": "report", "arguments": ["table"]},
    ]
    first_arguments = [command.split()[3] for command in _build_commands(steps, seeds=[1, 2])]
    assert first_arguments == ["all", "a-1", "b-1", "a-2", "b-2", "table"]


def test_an_undefined_variable_is_named() -> None:
    with pytest.raises(
        SettingsError, match=r"\{data\} in the step 'split' is not defined; define it under \[variables\]"
    ):
        _build_commands([{"stage": "split", "arguments": ["{data}/x"]}])
    with pytest.raises(SettingsError, match="set per_seed = true"):
        _build_commands([{"stage": "split", "arguments": ["x-{seed}"]}])


def test_an_override_of_an_unknown_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'dta' is not a variable of my.toml; its variables are: work"):
        pipeline.build_stage_calls(
            parse_training_config({"variables": {"work": "w"}}), path=CONFIG_PATH, overrides={"dta": "x"}
        )


def test_every_call_is_announced_and_run_in_order() -> None:
    runs: list[tuple[str, tuple[str, ...]]] = []
    lines: list[str] = []

    def run_stage(name: str, arguments: Sequence[str]) -> None:
        runs.append((name, tuple(arguments)))

    pipeline.run_stage_calls(
        [pipeline.StageCall("split", ("x",)), pipeline.StageCall("pairs", ("y",))], run_stage, say=lines.append
    )
    assert runs == [("split", ("x",)), ("pairs", ("y",))]
    assert lines == ["\n[1/2] querylift train split x", "\n[2/2] querylift train pairs y"]


@pytest.mark.parametrize("name", list_packaged_configs())
def test_the_steps_of_every_packaged_file_are_stages_with_their_own_options(name: str) -> None:
    config = load_training_config(Path(name))
    values = dict.fromkeys(config.required, "x")
    for call in pipeline.build_stage_calls(config, path=Path(name), overrides=values):
        assert call.stage in STAGES
        result = CliRunner().invoke(querylift, ["train", call.stage, "--help"], standalone_mode=False)
        for option in (argument for argument in call.arguments if argument.startswith("--")):
            assert option in result.output, f"{call.stage} has no {option}"


def test_a_dry_run_prints_the_commands_and_makes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[[step]]\nstage = "split"\narguments = ["builtin"]\noptions = { out = "made" }\n')
    result = CliRunner().invoke(querylift, ["train", "run", str(file), "--dry-run"], catch_exceptions=False)
    plan = f"plan of {file}:\n  1  split    made  to do\n"
    assert result.output == f"{plan}\n[1/1] querylift train split builtin --out made\n"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ('stage = "sampel"', "'sampel' is not a stage"),
        ('stage = "split"\narguments = ["builtin"]', r"split builtin: Missing option '--out'"),
        ('stage = "split"\narguments = ["builtin"]\noptions = { out = "x", size = 3 }', "No such option '--size'"),
        ('stage = "split"\narguments = ["builtin"]\noptions = { out = ["x", "y"] }', "--out is given as 'x' and 'y'"),
    ],
)
def test_a_step_that_cannot_run_is_refused_before_any_runs(tmp_path: Path, step: str, sentence: str) -> None:
    file = tmp_path / "c.toml"
    valid_step = f'[[step]]\nstage = "split"\narguments = ["builtin"]\noptions = {{ out = "{tmp_path}/first" }}\n'
    file.write_text(f"{valid_step}\n[[step]]\n{step}\n")
    with pytest.raises(SettingsError, match=sentence):
        CliRunner().invoke(querylift, ["train", "run", str(file)], catch_exceptions=False, standalone_mode=False)
    assert not (tmp_path / "first").exists()


def test_a_file_without_steps_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("seed = 1\n")
    with pytest.raises(SettingsError, match=r"has no \[\[step\]\]"):
        CliRunner().invoke(querylift, ["train", "run", str(file)], catch_exceptions=False, standalone_mode=False)


def _run_smoke(folder: Path, *options: str, without: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `querylift train run smoke` in another process, in which the package `without` is not installed."""
    hide_package = f"import sys; sys.modules[{without!r}] = None; " if without else ""
    program = f"{hide_package}from querylift.plugin.commands.main import main; main()"
    command = [sys.executable, "-c", program, "train", "run", "smoke", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("package", ["torch", "trl"])
def test_a_package_that_a_later_stage_needs_is_missed_before_anything_is_written(tmp_path: Path, package: str) -> None:
    result = _run_smoke(tmp_path, without=package)
    sentence = f"querylift: {package} is not installed; run in the checkout of Querylift: pip install '.[train]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", sentence)
    assert list(tmp_path.iterdir()) == []
    assert "[10/10] querylift train sample" in _run_smoke(tmp_path, "--dry-run", without=package).stdout


def test_an_engine_that_a_later_stage_needs_is_missed_before_anything_is_written(tmp_path: Path) -> None:
    result = _run_smoke(tmp_path, "--set", "engine=http://127.0.0.1:9")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("querylift: no search engine answers at http://127.0.0.1:9; ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
def test_an_index_that_a_later_stage_needs_is_missed_before_anything_is_written(
    opensearch: str, tmp_path: Path
) -> None:
    result = _run_smoke(tmp_path, "--set", f"engine={opensearch}", "--set", "index=gone")
    assert (result.returncode, result.stdout) == (2, "")
    assert f"stage score needs the index 'gone', which {opensearch} does not have; build it" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
def test_the_whole_pipeline_runs_on_a_real_engine_and_the_student_learns(opensearch: str, tmp_path: Path) -> None:
    """`querylift train run smoke` runs every stage. A second run finds them all done."""
    with Engine(parse_settings({"engine": opensearch})) as engine:
        build_index(engine, corpus_names.load_corpus("builtin"), IndexPlan("chain-builtin"))
    variables = {"engine": opensearch, "index": "chain-builtin", "work": str(tmp_path)}
    command = [sys.executable, "-m", "querylift", "train", "run", "smoke"]
    command += [part for name, value in variables.items() for part in ("--set", f"{name}={value}")]
    first_run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "[10/10] querylift train sample" in first_run.stdout

    curves = {stage: list(read_curves(tmp_path / f"{stage}-1" / "curves.jsonl")) for stage in ("sft", "dpo")}
    losses = [row["loss"] for row in curves["sft"] if "loss" in row]
    assert losses[-1] < losses[0] / 5
    margins = [row["rewards/margins"] for row in curves["dpo"] if "rewards/margins" in row]
    assert margins[-1] > margins[0] + 1
    served = [json.loads(line) for line in (tmp_path / "served-1.jsonl").read_text().splitlines()]
    assert len({row["query"] for row in served}) == 87
    assert (tmp_path / "merged-1" / "model.safetensors").is_file()

    modified_ns = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    second_run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/sft-1 is done" in second_run.stdout
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == modified_ns
