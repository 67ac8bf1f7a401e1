"""`querylift explain`: print the search that the engine would get for a query."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import click

from querylift.plugin import dsl
from querylift.plugin.brokers import open_brokers
from querylift.plugin.commands.options import config_option, read_settings
from querylift.plugin.engine.facts import EngineUnclear, has_field, open_engine_facts
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.flow import (
    ExpansionRules,
    Search,
    choose_explained_fields,
    explain_result,
    make_match_body,
    run_flow_async,
    search_flow,
)
from querylift.plugin.settings import Settings, replace_generator

_TIMEOUT_S = 5
_INNERMOST = re.compile(r"\{[^\[\]{}]*\}|\[[^\[\]{}]*\]")
_LINE_END = re.compile(r"\n\s*")


@click.command()
@click.argument("query", metavar="TEXT")
@click.option("--index", required=True, help="Index to search.")
@click.option(
    "--field",
    "fields",
    multiple=True,
    help="Field to search. May be repeated [default: fields in the index's settings table, or else text].",
)
@click.option(
    "--body",
    "body_path",
    type=click.Path(path_type=Path),
    help="File with a search body to explain, in place of a plain match on TEXT.",
)
@click.option("--generator", help="Generator to use in place of the one in the settings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def explain(
    query: str,
    index: str,
    fields: tuple[str, ...],
    body_path: Path | None,
    generator: str | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Print the search that the engine gets for TEXT, and why.

    TEXT is a query as a user types it. The search itself is not sent. The engine is only asked whether the index has the
    fields, and by a generator that reads the index.
    """
    settings = read_settings(config)
    if generator is not None:
        settings = replace_generator(settings, generator)
    if body_path is not None:
        body = _read_body_file(body_path)
    else:
        body = make_match_body(query, *(fields or choose_explained_fields(settings, index)))
    explanation = asyncio.run(_explain_search(settings, Search(index, body, deadline_s=math.inf)))
    click.echo(json.dumps(explanation, indent=2, ensure_ascii=False) if as_json else _format_explanation(explanation))


async def _explain_search(settings: Settings, search: Search) -> dict[str, Any]:
    async with open_brokers(settings, settings.find_generator_names(search.index)) as brokers:
        rules = ExpansionRules(settings, clock=time.monotonic)
        result = await run_flow_async(search_flow(search, rules), brokers.answer)
    if result.outcome.is_expanded:
        await _check_searched_fields(settings, search, rules)
    return explain_result(result, search)


async def _check_searched_fields(settings: Settings, search: Search, rules: ExpansionRules) -> None:
    """Raise SettingsError when the index has none of the fields that an expanded search names. Warn when nobody can tell."""
    body = dsl.parse_body(search.body)
    table, index = rules.find_table(search, lambda: body)
    fields = dsl.find_user_query(body, table.policy, search.url_parameters).fields
    if not fields:
        return
    try:
        async with open_engine_facts(settings, timeout_s=_TIMEOUT_S) as engine:
            existing_fields = await engine.find_fields(index, fields)
        if existing_fields is None:
            raise EngineUnclear(f"{settings.engine_text} has no index {index}")
    except EngineUnclear as problem:
        click.echo(f"querylift: the fields {', '.join(fields)} were not checked, because {problem}", err=True)
        return
    if not any(has_field(existing_fields, field) for field in fields):
        names = " or ".join(map(repr, fields))
        raise SettingsError(
            f"{index} has no field {names}, so the search would find nothing; name its text fields with --field"
        )


def _format_explanation(explanation: dict[str, Any]) -> str:
    lines = [explanation["sentence"]]
    expansion = explanation["expansion"]
    if expansion:
        lines.append(f"expansion: {Expansion.from_json(expansion).to_summary()}")
    return "\n".join([*lines, "sent:", _format_body(explanation["body"])])


def _format_body(body: Any) -> str:
    """Return indented JSON in which an object or list without others inside stands on one line."""
    text = json.dumps(body, indent=2, ensure_ascii=False)
    return _INNERMOST.sub(lambda part: _LINE_END.sub(" ", part[0]), text)


def _read_body_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}; name a readable file with --body") from None
