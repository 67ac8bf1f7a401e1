"""A command group whose sub-commands are listed in the order of their use, each imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class StageGroup(click.Group):
    """`stages` maps a command's name to its description. Command NAME is the attribute NAME of the module `package`.NAME."""

    def __init__(self, *args: Any, package: str, stages: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._package = package
        self._stages = stages

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._stages)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._stages:
            return None
        command = getattr(import_module(f"{self._package}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Stages"):
            formatter.write_dl(list(self._stages.items()))
