"""The pipeline: the training stages that one configuration file lists, in order.

Each step of the file is a stage with its arguments and options. `{name}` in them stands for a variable of the file, and `{seed}`
for the seed. Each step becomes the command line that a person would type. A finished stage is not run again, so a pipeline that
was stopped goes on with the first unfinished stage.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.trainer.manifest import read_stage_state
from querylift.trainer.training_config import PipelineStep, TrainingConfig

CONFIG_OPTIONS = {"sft": "config", "dpo": "config", "sample": "config", "grpo": "training", "expander": "training"}
"""Stages that read the configuration file, and the option that names it. In a step that runs once per seed they get `--seed`."""
STAGES_WITH_SEED = ("split", "teach", "pairs")
"""Stages that take a `--seed` and no configuration file."""
STAGES_WITH_HELD_OUT = ("teach", "sft", "dpo", "grpo", "expander")
"""Stages that refuse leaks. They get the file's held_out and held_out_by."""

NAMED_VARIABLES = ("corpus", "index", "engine", "endpoint", "model", "work")
"""Variables that `querylift train run` has an option for. `--set` sets the others."""

_VARIABLE = re.compile(r"\{(\w+)\}")
StageRunner = Callable[[str, Sequence[str]], None]
"""Runs the stage of this name with these arguments. Raises QueryliftError."""


@dataclass(frozen=True, slots=True)
class StageCall:
    """One stage and its complete command-line arguments."""

    stage: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"querylift train {self.stage} {shlex.join(self.arguments)}"


def build_stage_calls(
    config: TrainingConfig, *, path: Path, seeds: Sequence[int] = (), overrides: Mapping[str, str]
) -> list[StageCall]:
    """Return the calls of all steps of `config`, which was read from `path`, in order.

    A step with `per_seed` gives one call for each of `seeds`; without `seeds`, for each seed of the file. `overrides` replaces
    values of the file's variables. Raises SettingsError when a variable is not defined, or is required and not given.
    """
    variables = fill_variables(config, path=path, overrides=overrides)
    seeds = seeds or config.seeds or (config.seed,)
    calls = []
    for steps in _group_by_seeding(config.step):
        for seed in seeds if steps[0].per_seed else [None]:
            values = variables if seed is None else {**variables, "seed": str(seed)}
            calls += [_build_call(step, config, path, values) for step in steps]
    return calls


def fill_variables(config: TrainingConfig, *, path: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the values of all variables. Raises SettingsError when one is unknown, or is required and not given."""
    names = list(dict.fromkeys([*config.variables, *config.required]))
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise SettingsError(
            f"{unknown[0]!r} is not a variable of {path}; its variables are: {', '.join(names) or 'none'}"
        )
    missing = [name for name in config.required if not overrides.get(name)]
    if missing:
        remedy = f"--{missing[0]} VALUE" if missing[0] in NAMED_VARIABLES else f"--set {missing[0]}=VALUE"
        raise SettingsError(f"{path} needs a value for {', '.join(missing)}; give {remedy}")
    return {**config.variables, **overrides}


def list_planned_stages(calls: Sequence[StageCall], outputs: Sequence[Path | None]) -> list[str]:
    """Return a line for each call: its number, stage, output, and whether it is done, begun or still to do.

    `outputs` holds the output of each call, or None.
    """
    states = [read_stage_state(output) if output else "to do" for output in outputs]
    names = [str(output or "") for output in outputs]
    width = max(map(len, names), default=0)
    return [
        f"{number:3}  {call.stage:8} {name:{width}}  {state}"
        for number, (call, name, state) in enumerate(zip(calls, names, states, strict=True), 1)
    ]


def run_stage_calls(calls: Sequence[StageCall], run_stage: StageRunner, *, say: Callable[[str], None]) -> None:
    """Run the calls in order. Announce each with its number and its command line."""
    for number, call in enumerate(calls, 1):
        say(f"\n[{number}/{len(calls)}] {call}")
        run_stage(call.stage, call.arguments)


def _group_by_seeding(steps: Sequence[PipelineStep]) -> Iterator[list[PipelineStep]]:
    """Group neighbouring steps with the same `per_seed`. One seed runs through its whole group before the next seed begins."""
    group: list[PipelineStep] = []
    for step in steps:
        if group and group[0].per_seed != step.per_seed:
            yield group
            group = []
        group.append(step)
    if group:
        yield group


def _build_call(step: PipelineStep, config: TrainingConfig, path: Path, values: Mapping[str, str]) -> StageCall:
    def fill_text(text: Any) -> str:
        return _VARIABLE.sub(lambda match: _look_up_variable(match[1], values, step), str(text))

    options: dict[str, Any] = {}
    if step.stage in STAGES_WITH_HELD_OUT and config.held_out:
        options["held-out"] = list(config.held_out)
        if config.held_out_by == "document":
            options["held-out-by"] = config.held_out_by
    if step.stage in CONFIG_OPTIONS:
        options[CONFIG_OPTIONS[step.stage]] = str(path)
    if "seed" in values and step.stage in (*CONFIG_OPTIONS, *STAGES_WITH_SEED):
        options["seed"] = values["seed"]
    options |= step.options
    arguments = [fill_text(argument) for argument in step.arguments]
    for name, value in options.items():
        arguments += _format_option(name, value, fill_text)
    return StageCall(step.stage, tuple(arguments))


def _format_option(name: str, value: Any, fill_text: Callable[[Any], str]) -> list[str]:
    """Return the arguments of an option. `hold-out = 40` is --hold-out 40; `json = true` is --json, and false --no-json.

    A list repeats the option.
    """
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [argument for item in values for argument in (f"--{name}", fill_text(item))]


def _look_up_variable(name: str, values: Mapping[str, str], step: PipelineStep) -> str:
    if name not in values:
        remedy = "set per_seed = true for this step" if name == "seed" else "define it under [variables]"
        raise SettingsError(f"{{{name}}} in the step {step.stage!r} is not defined; {remedy}")
    return values[name]
