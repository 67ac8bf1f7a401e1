"""Refuse an option that is given twice but taken once. click would keep the last value and say nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import click

from querylift.plugin.errors import SettingsError


def refuse_repeated_options(command: click.Command, name: str, arguments: Sequence[str], parent: click.Context) -> None:
    """Raise SettingsError when `arguments` repeat an option of `command`, or of a command in its group, that takes one value.

    An option without a value, such as --json, may be repeated. Other faults of the arguments are left to click.
    """
    context = command.context_class(command, info_name=name, parent=parent, **command.context_settings)
    collecting_command = copy.copy(command)
    collecting_command.params = [_make_collecting_copy(parameter) for parameter in command.params]
    try:
        values, remaining_arguments, _ = collecting_command.make_parser(context).parse_args(list(arguments))
    except click.UsageError:
        return
    for option in command.params:
        given_values = values.get(option.name or "")
        if _takes_one_value(option) and isinstance(given_values, list) and len(given_values) > 1:
            shown_values = " and ".join(repr(value) for value in given_values)
            raise SettingsError(f"{max(option.opts, key=len)} is given as {shown_values}; give it once")
    if isinstance(command, click.Group) and remaining_arguments:
        try:
            inner_name, inner_command, inner_arguments = command.resolve_command(context, remaining_arguments)
        except click.UsageError:
            return
        if inner_command is not None:
            refuse_repeated_options(inner_command, inner_name or "", inner_arguments, context)


def _takes_one_value(parameter: click.Parameter) -> bool:
    """Whether click would keep only the last of several values."""
    if not isinstance(parameter, click.Option) or parameter.multiple or parameter.count:
        return False
    return not parameter.is_flag or bool(parameter.secondary_opts)


def _make_collecting_copy(parameter: click.Parameter) -> click.Parameter:
    """Return a parameter that collects all its values when it takes one."""
    if not _takes_one_value(parameter):
        return parameter
    collecting_parameter = copy.copy(parameter)
    collecting_parameter.multiple = True
    return collecting_parameter
