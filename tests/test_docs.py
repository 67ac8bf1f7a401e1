"""The documents say what the code does."""

import re
import shlex
import subprocess
import sys
import tomllib

import click
import pytest
from pydantic import BaseModel

import querylift
from querylift.index_tools.judging.judge_folder import JudgeRecord
from querylift.plugin.commands.main import querylift as querylift_command
from querylift.plugin.outcome import REASONS
from querylift.plugin.settings import Settings, parse_settings
from querylift.plugin.settings_tables.index import IndexSettings
from querylift.trainer.judge.adaptation.adaptation_config import AdaptationConfig
from querylift.trainer.judge.student.student_config import JudgeConfig
from querylift.trainer.training_config import EvaluationOptions
from tests.helpers.paths import ROOT

DOCUMENTED = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")


def _tables() -> dict[str, str]:
    parts = re.split(r"^## ", DOCUMENTED, flags=re.M)[1:]
    return {part.split("\n", 1)[0].strip("`"): part for part in parts}


def _keys(part: str) -> set[str]:
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}


def _read_part(path: str, heading: str) -> str:
    """Return what stands under a heading of a page, up to the next heading."""
    page = (ROOT / path).read_text(encoding="utf-8")
    (part,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", page, flags=re.M | re.S)
    return str(part)


def _read_defaults(part: str, *, column: int = 2) -> dict[str, object]:
    """Return the values of a table by their keys. `column` counts from 1."""
    rows = [line.split("|") for line in part.splitlines() if line.startswith("| `")]
    return {row[1].strip(" `"): tomllib.loads(f"value = {row[column].strip(' `')}")["value"] for row in rows}


def _find_command(arguments: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that `arguments` name, and those arguments that come after its name."""
    command: click.Command = querylift_command
    while isinstance(command, click.Group):
        _, subcommand, arguments = command.resolve_command(click.Context(command), arguments)
        assert subcommand is not None
        command = subcommand
    return command, arguments


def _models() -> dict[str, type[BaseModel]]:
    tables = {name: type(value) for name, value in Settings() if isinstance(value, BaseModel)}
    return {f"[{name}]": model for name, model in tables.items()} | {"[index.NAME]": IndexSettings}


@pytest.mark.parametrize(
    "heading",
    ["Top level", "[index.NAME]", "[cache]", "[llama]", "[expander]", "[feedback]", "[http]", "[log]", "[tracing]"],
)
def test_every_setting_is_documented_and_no_other(heading: str) -> None:
    if heading == "Top level":
        expected = set(Settings.model_fields) - {name.strip("[]") for name in _models()} - {"index"}
    else:
        expected = set(_models()[heading].model_fields)
    assert _keys(_tables()[heading]) == expected


def test_every_table_of_settings_has_a_heading() -> None:
    assert set(_tables()) == {"Top level", *_models()}


def test_the_example_of_the_settings_page_is_valid() -> None:
    example = re.search(r"```toml\n(.*?)```", DOCUMENTED, flags=re.S)
    assert example is not None
    assert parse_settings(tomllib.loads(example[1])).index["docs"].fields == ("title", "text")


@pytest.mark.parametrize("section", ["student", "training", "loss"])
def test_every_setting_of_a_judge_is_documented_with_its_default(section: str) -> None:
    part = _read_part("docs/reference/judge.md", f"`[{section}]`")
    assert _read_defaults(part) == getattr(JudgeConfig(), section).model_dump()


@pytest.mark.parametrize("section", ["model", "lora", "pretrain", "sft", "sample", "reward", "dpo"])
def test_every_setting_of_the_adaptation_is_documented_with_its_default(section: str) -> None:
    in_three = ["pretrain", "sft", "dpo"]
    if section in in_three:
        shared = _read_part("docs/reference/judge.md", "Adaptation `[pretrain]`, `[sft]` and `[dpo]`")
        documented = _read_defaults(shared, column=2 + in_three.index(section))
        documented |= _read_defaults(_read_part("docs/reference/judge.md", f"Adaptation `[{section}]` alone"))
    else:
        documented = _read_defaults(_read_part("docs/reference/judge.md", f"Adaptation `[{section}]`"))
    assert documented == getattr(AdaptationConfig(), section).model_dump()


def test_every_setting_of_the_evaluation_while_training_is_documented_with_its_default() -> None:
    part = _read_part("docs/how-to/train.md", "Watch a student while it trains")
    assert _read_defaults(part) == EvaluationOptions().model_dump()


def test_the_choices_of_a_judge_that_the_concepts_name_are_the_defaults() -> None:
    choices = _read_defaults(_read_part("docs/concepts.md", "What we chose ourselves"))
    config = JudgeConfig().model_dump()
    assert len(choices) == 6
    assert choices == {name: config[name.split(".")[0]][name.split(".")[1]] for name in choices}


def test_the_packaged_configuration_of_a_judge_shows_every_setting_with_its_default() -> None:
    lines = (ROOT / "trainer/configs/judge_student/judge-minilm.toml").read_text(encoding="utf-8")
    assert tomllib.loads(lines) == JudgeConfig().model_dump()


def test_every_key_of_a_judges_record_is_documented() -> None:
    part = _read_part("docs/reference/judge.md", "Folder of a judge")
    assert _keys(part) == set(JudgeRecord.model_fields)


def test_every_reason_is_documented() -> None:
    page = (ROOT / "docs/reference/outcomes.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", page, flags=re.M)) == REASONS


def test_importing_the_served_path_loads_nothing_heavy() -> None:
    heavy = ["numpy", "llama_cpp", "torch", "transformers", "opensearchpy", "jinja2", "redis", "querylift.index_tools"]
    imports = "import querylift.plugin.proxy.server, querylift.plugin.commands.serve, sys"
    code = f"{imports}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_sorted_and_each_is_documented() -> None:
    assert sorted(querylift.__all__) == querylift.__all__
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    documented = {name.rsplit(".", 1)[1]: name for name in re.findall(r"^::: (\S+)", page, flags=re.M)}
    assert sorted(documented) == querylift.__all__
    for name, path in documented.items():
        assert getattr(querylift, name).__module__.startswith(path.rsplit(".", 1)[0])


def test_importing_the_package_alone_loads_none_of_its_parts() -> None:
    code = "import querylift, sys; print([name for name in sys.modules if name.startswith('querylift.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_term_of_the_glossary_stands_there_once() -> None:
    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    terms = [term for term in re.findall(r"^\| (.+?) \|", page, flags=re.M) if term not in ("term", "---")]
    assert len(terms) == len(set(terms)) > 50


def test_every_command_has_help() -> None:
    names = [
        "ab", "compare", "demo", "evaluate", "expander", "explain", "export-table", "index", "judge", "node", "quantize",
        "serve", "table", "train", "warm",
    ]  # fmt: skip
    listed = subprocess.run([sys.executable, "-m", "querylift", "--help"], capture_output=True, text=True, check=True)
    commands = listed.stdout.split("Commands:")[1]
    assert re.findall(r"^  ([\w-]+) ", commands, flags=re.M) == names
    assert "not installed" not in commands


@pytest.mark.parametrize("page", ["evaluate", "judge", "train"])
def test_every_command_of_a_page_has_only_options_that_there_are(page: str) -> None:
    text = (ROOT / f"docs/how-to/{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line.partition("#")[0] for line in re.findall(r"^ {4,}querylift (.+)$", text, flags=re.M)]
    assert len(commands) > 3
    for line in commands:
        command, arguments = _find_command(shlex.split(line))
        command.make_context(line, arguments)  # raises UsageError for an unknown option, and for one that is missing


def test_no_committed_file_names_a_registry_or_a_path_of_this_machine() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    forbidden = re.compile(
        r"py[p]i\.org|python[h]osted|repo\d*\.[m]aven|[m]aven\.apache|registry\.[n]pm|(?<![\w.])/(?:root|work)/"
    )
    paths = [ROOT / name for name in files if not (ROOT / name).is_symlink()]
    named = [str(path) for path in paths if forbidden.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert named == []
