"""The chain says what it runs, runs it in order, and a seed is taken to its end before the next one."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from querylift.index_tools.corpora import loading
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build
from querylift.plugin.commands.main import querylift
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import check as settings_of
from querylift.trainer import pipeline
from querylift.trainer.commands.train import STAGES
from querylift.trainer.settings import check, load, packaged
from querylift.trainer.student.loss_curves import read as read_curves

CONFIG = Path("my.toml")


def _commands(steps: list[dict[str, object]], **changes: object) -> list[str]:
    settings = check({"variables": {"work": "runs/x"}, "step": steps, **changes})
    return [str(call) for call in pipeline.calls(settings, config=CONFIG, given={})]


def test_a_step_is_the_command_that_a_person_would_type() -> None:
    steps = [
        {
            "stage": "score",
            "arguments": ["{work}/own samples.jsonl"],
            "options": {"index": "products", "weight": [0.1, 0.2], "floor": False, "json": True},
        }
    ]
    assert _commands(steps) == [
        "querylift train score 'runs/x/own samples.jsonl' --index products --weight 0.1 --weight 0.2 --no-floor --json"
    ]


def test_stages_that_read_the_file_get_it_and_training_gets_what_is_held_out() -> None:
    steps = [{"stage": "sft", "arguments": ["rows.jsonl"], "options": {"out": "{work}/sft-{seed}"}, "per_seed": True}]
    assert _commands(steps, seeds=[3], held_out=["scifact:dev"]) == [
        "querylift train sft rows.jsonl --held-out scifact:dev --config my.toml --seed 3 --out runs/x/sft-3"
    ]


def test_a_seed_is_taken_to_its_end_before_the_next_one_begins() -> None:
    steps = [
        {"stage": "pairs", "arguments": ["all"]},
        {"stage": "sft", "arguments": ["a-{seed}"], "per_seed": True},
        {"stage": "merge", "arguments": ["b-{seed}"], "per_seed": True},
        {"stage": "report", "arguments": ["table"]},
    ]
    named = [command.split()[3] for command in _commands(steps, seeds=[1, 2])]
    assert named == ["all", "a-1", "b-1", "a-2", "b-2", "table"]


def test_a_variable_that_nobody_defined_is_named() -> None:
    with pytest.raises(
        SettingsError, match=r"\{data\} in the step 'split' is not defined; define it under \[variables\]"
    ):
        _commands([{"stage": "split", "arguments": ["{data}/x"]}])
    with pytest.raises(SettingsError, match="set per_seed = true"):
        _commands([{"stage": "split", "arguments": ["x-{seed}"]}])


def test_a_given_variable_that_the_file_does_not_have_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'dta' is no variable of my.toml; it has work"):
        pipeline.calls(check({"variables": {"work": "w"}}), config=CONFIG, given={"dta": "x"})


def test_every_call_is_announced_and_run_in_order() -> None:
    ran: list[tuple[str, tuple[str, ...]]] = []
    said: list[str] = []

    def stage(name: str, arguments: Sequence[str]) -> None:
        ran.append((name, tuple(arguments)))

    pipeline.run([pipeline.Call("split", ("x",)), pipeline.Call("pairs", ("y",))], stage, say=said.append)
    assert ran == [("split", ("x",)), ("pairs", ("y",))]
    assert said == ["\n[1/2] querylift train split x", "\n[2/2] querylift train pairs y"]


@pytest.mark.parametrize("name", packaged())
def test_the_steps_of_every_packaged_file_are_stages_with_their_own_options(name: str) -> None:
    settings = load(Path(name))
    for call in pipeline.calls(settings, config=Path(name), given={}):
        assert call.stage in STAGES
        shown = CliRunner().invoke(querylift, ["train", call.stage, "--help"], standalone_mode=False)
        for option in (argument for argument in call.arguments if argument.startswith("--")):
            assert option in shown.output, f"{call.stage} has no {option}"


def test_a_dry_run_prints_the_commands_and_makes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[[step]]\nstage = "split"\narguments = ["builtin"]\noptions = { out = "made" }\n')
    done = CliRunner().invoke(querylift, ["train", "run", str(file), "--dry-run"], catch_exceptions=False)
    assert done.output == "\n[1/1] querylift train split builtin --out made\n"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ('stage = "sampel"', "'sampel' is no stage"),
        ('stage = "split"\narguments = ["builtin"]', r"split builtin: Missing option '--out'"),
        ('stage = "split"\narguments = ["builtin"]\noptions = { out = "x", size = 3 }', "No such option '--size'"),
    ],
)
def test_a_step_that_cannot_run_is_refused_before_any_runs(tmp_path: Path, step: str, sentence: str) -> None:
    file = tmp_path / "c.toml"
    first = f'[[step]]\nstage = "split"\narguments = ["builtin"]\noptions = {{ out = "{tmp_path}/first" }}\n'
    file.write_text(f"{first}\n[[step]]\n{step}\n")
    with pytest.raises(SettingsError, match=sentence):
        CliRunner().invoke(querylift, ["train", "run", str(file)], catch_exceptions=False, standalone_mode=False)
    assert not (tmp_path / "first").exists()


def test_a_file_without_steps_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("seed = 1\n")
    with pytest.raises(SettingsError, match=r"has no \[\[step\]\]"):
        CliRunner().invoke(querylift, ["train", "run", str(file)], catch_exceptions=False, standalone_mode=False)


@pytest.mark.engine
def test_the_whole_chain_runs_on_a_real_engine_and_the_student_learns(opensearch: str, tmp_path: Path) -> None:
    """`querylift train run smoke`, as a person types it: every stage, then nothing is left to do."""
    with Engine(settings_of({"engine": opensearch})) as engine:
        build(engine, loading.load("builtin"), IndexPlan("chain-builtin"))
    given = {"engine": opensearch, "index": "chain-builtin", "work": str(tmp_path)}
    command = [sys.executable, "-m", "querylift", "train", "run", "smoke"]
    command += [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "[10/10] querylift train sample" in first.stdout

    curves = {stage: list(read_curves(tmp_path / f"{stage}-1" / "curves.jsonl")) for stage in ("sft", "dpo")}
    losses = [row["loss"] for row in curves["sft"] if "loss" in row]
    assert losses[-1] < losses[0] / 5
    margins = [row["rewards/margins"] for row in curves["dpo"] if "rewards/margins" in row]
    assert margins[-1] > margins[0] + 1
    served = [json.loads(line) for line in (tmp_path / "served-1.jsonl").read_text().splitlines()]
    assert len({row["query"] for row in served}) == 87
    assert (tmp_path / "merged-1" / "model.safetensors").is_file()

    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/sft-1 is done" in again.stdout
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == written
