"""The chain: stages in a row from one file, each the command that a person would type, for every seed where it is asked.

A step of the file is a stage with its arguments and options; `{name}` in them is a variable of the file, or `{seed}`. What a
stage has finished is not done again, so a chain that was stopped goes on where it was.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.trainer.settings import Settings, Step

CONFIGURED = ("sft", "dpo", "sample")
"""Stages that read the file themselves: they are given `--config` and, where the step runs once per seed, `--seed`."""
SEEDED = ("split", "teach", "pairs")
"""Stages that take a `--seed` and no file."""
GUARDED = ("teach", "sft", "dpo")
"""Stages that refuse what the file holds out."""

_VARIABLE = re.compile(r"\{(\w+)\}")
Run = Callable[[str, Sequence[str]], None]
"""Runs the stage of this name with these arguments; raises QueryliftError."""


@dataclass(frozen=True, slots=True)
class Call:
    """One stage with everything filled in."""

    stage: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"querylift train {self.stage} {shlex.join(self.arguments)}"


def calls(settings: Settings, *, config: Path, seeds: Sequence[int] = (), given: Mapping[str, str]) -> list[Call]:
    """Every call of the chain in order: a step per seed runs once for each of `seeds`, else of the file's.

    `given` stands in for variables of the file. Raises SettingsError where a variable is not defined.
    """
    unknown = sorted(set(given) - set(settings.variables))
    if unknown:
        known = ", ".join(settings.variables) or "none"
        raise SettingsError(f"{unknown[0]!r} is no variable of {config}; it has {known}")
    variables = dict(settings.variables) | dict(given)
    return list(_calls(settings, config, list(seeds or settings.seeds or (settings.seed,)), variables))


def run(made: Sequence[Call], stage: Run, *, say: Callable[[str], None]) -> None:
    """Run the calls one after the other, each announced by the command that does the same."""
    for number, call in enumerate(made, 1):
        say(f"\n[{number}/{len(made)}] {call}")
        stage(call.stage, call.arguments)


def _calls(settings: Settings, config: Path, seeds: Sequence[int], variables: Mapping[str, str]) -> Iterator[Call]:
    for group in _groups(settings.step):
        for seed in seeds if group[0].per_seed else [None]:
            values = dict(variables) | ({"seed": str(seed)} if seed is not None else {})
            yield from (_call(step, settings, config, values) for step in group)


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Neighbouring steps that run once per seed belong together: a seed is taken to the end before the next one begins."""
    group: list[Step] = []
    for step in steps:
        if group and group[0].per_seed != step.per_seed:
            yield group
            group = []
        group.append(step)
    if group:
        yield group


def _call(step: Step, settings: Settings, config: Path, values: Mapping[str, str]) -> Call:
    def filled(value: Any) -> str:
        return _VARIABLE.sub(lambda found: _value(found[1], values, step), str(value))

    own: dict[str, Any] = {"held-out": list(settings.held_out)} if step.stage in GUARDED and settings.held_out else {}
    own |= {"config": str(config)} if step.stage in CONFIGURED else {}
    own |= {"seed": values["seed"]} if "seed" in values and step.stage in CONFIGURED + SEEDED else {}
    options = [part for name, value in {**own, **step.options}.items() for part in _option(name, value, filled)]
    return Call(step.stage, (*map(filled, step.arguments), *options))


def _option(name: str, value: Any, filled: Callable[[Any], str]) -> list[str]:
    """`max-words = 40` is --max-words 40, a list is the option repeated, true is --name and false is --no-name."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [part for each in values for part in (f"--{name}", filled(each))]


def _value(name: str, values: Mapping[str, str], step: Step) -> str:
    if name not in values:
        hint = "set per_seed = true for this step" if name == "seed" else "define it under [variables]"
        raise SettingsError(f"{{{name}}} in the step {step.stage!r} is not defined; {hint}")
    return values[name]
