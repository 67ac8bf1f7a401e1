"""The sub-commands of the served path: serve, explain, table. Those that make expansions ahead are in `commands_warm`."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings, load

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="QUERYLIFT_CONFIG",
    help="Settings file [default: querylift.toml where there is one].",
)


@click.command()
@config_option
def serve(config: Path | None) -> None:
    """Run the proxy in front of the engine, until it is stopped.

    SIGHUP reads the settings again: a switch for an index needs no restart.
    """
    import uvloop

    from querylift.plugin.proxy.server import serve as run

    _log_to_stderr()
    settings = settings_of(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, lambda: settings_of(config), lambda line: click.echo(line, err=True)))


@click.command()
@click.argument("text")
@click.option("--index", required=True, help="Index that the search would go to.")
@click.option(
    "--field", help="Field that the search would match [default: the first that the index's table lists, or text]."
)
@click.option("--body", type=click.Path(path_type=Path), help="A search body to explain in place of a plain match.")
@click.option("--generator", help="Generator in place of the settings' one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def explain(
    text: str,
    index: str,
    field: str | None,
    body: Path | None,
    generator: str | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Print what would be sent to the engine for TEXT, and why."""
    settings = settings_of(config)
    if generator is not None:
        settings = settings.model_copy(update={"generator": generator})
    explained = asyncio.run(_explained(settings, text, index, field=field or _field_of(settings, index), body=body))
    click.echo(json.dumps(explained, indent=2, ensure_ascii=False) if as_json else _told(explained))


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Keep rows whose KEY (params.mode leads inwards) has this VALUE; repeatable.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The table to write, JSON lines.")
def table(source: Path, where: tuple[str, ...], out: Path) -> None:
    """Make a table of prepared expansions from SOURCE, JSON lines with query and text, plain or .gz."""
    from querylift.plugin.generators.table import build

    rows = list(build(source, where=dict(_pair(item) for item in where)))
    if not rows:
        raise SettingsError(f"no row of {source} has {', '.join(where) or 'an expansion'}; nothing was written")
    _write_lines(out, rows)
    click.echo(f"{out}: {len(rows)} queries")


async def _explained(settings: Settings, text: str, index: str, *, field: str, body: Path | None) -> dict[str, Any]:
    from querylift.plugin.flow import Rules, Search, explain, run_async, search_flow
    from querylift.plugin.generators import factory
    from querylift.plugin.proxy.server import expander_for, match_body

    search = Search(index, _read(body) if body else match_body(text, field), deadline_s=math.inf)
    async with expander_for(settings, factory.make(settings.generator, settings)) as expander:
        rules = Rules(settings, clock=time.monotonic)
        return explain(await run_async(search_flow(search, rules), expander.answer), search)


def _field_of(settings: Settings, index: str) -> str:
    table = settings.index_for(index)
    return table.fields[0] if table and table.fields else "text"


def _told(explained: dict[str, Any]) -> str:
    lines = [explained["sentence"]]
    if explained["expansion"]:
        lines.append(f"expansion: {explained['expansion'].get('text') or explained['expansion'].get('terms')}")
    return "\n".join([*lines, "sent:", json.dumps(explained["body"], indent=2, ensure_ascii=False)])


def settings_of(config: Path | None) -> Settings:
    """The settings of that file, of querylift.toml where there is one, or the built-in ones."""
    default = Path("querylift.toml")
    return load(config if config is not None else default if default.exists() else None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None


def _pair(item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise SettingsError(f"--where is {item!r}; write KEY=VALUE")
    return key, value


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """Write JSON lines whole or not at all."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as part:
            part.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.replace(part.name, path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from None


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
