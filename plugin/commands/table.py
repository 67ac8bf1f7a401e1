"""`querylift table`: make a table of prepared expansions from a file of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import open_for_replacement
from querylift.plugin.generators.table import build_table_rows


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="KEY=VALUE",
    help="Keep only rows in which KEY has this VALUE. A dot reaches into an object: params.mode. Repeatable.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Table to write, as JSON lines.")
def table(source: Path, conditions: tuple[str, ...], out: Path) -> None:
    """Make a table of expansions from a file that has them.

    SOURCE is a file of JSON lines with "query" and "text", plain or .gz. When a query has several rows, the first one
    is used. Serve the table with the setting generator = "table:FILE".
    """
    rows = list(build_table_rows(source, where=dict(_parse_condition(condition) for condition in conditions)))
    if not rows:
        raise SettingsError(f"no row of {source} has {', '.join(conditions) or 'an expansion'}; nothing was written")
    _write_json_lines(out, rows)
    click.echo(f"{out}: {len(rows)} queries")


def _parse_condition(condition: str) -> tuple[str, str]:
    key, equals, value = condition.partition("=")
    if not equals or not key:
        raise SettingsError(f"--where is {condition!r}; write KEY=VALUE")
    return key, value


def _write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the whole file, or leave the old one."""
    with open_for_replacement(path, remedy="name another --out") as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
