"""`querylift ab`: compare the clicks of an experiment's variants."""

from __future__ import annotations

import json
from pathlib import Path

import click

from querylift.index_tools.clicks.click_events import read_clicks
from querylift.index_tools.clicks.joining import join_clicks
from querylift.index_tools.clicks.report import build_report
from querylift.index_tools.clicks.search_log import read_search_log
from querylift.plugin.errors import SettingsError


@click.command()
@click.argument("log", metavar="LOG.jsonl", type=click.Path(path_type=Path))
@click.argument("clicks", metavar="CLICKS.jsonl", type=click.Path(path_type=Path))
@click.option("--experiment", help="Name of the experiment, if the log has several.")
@click.option("--traffic", type=float, help="Compare only searches with this share of users, if the log has several.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def ab(log: Path, clicks: Path, experiment: str | None, traffic: float | None, as_json: bool) -> None:
    """Say whether users click more with expansion than without.

    LOG.jsonl is the log of `querylift serve`, with [log] searches = true,
    or the file that [log] searches_file names. CLICKS.jsonl
    has a UBI event on each line. A click has "action_name": "click", and the
    "query_id" that the header X-Querylift-Query-Id named. The interval takes users,
    not searches, as independent.
    """
    search_log = read_search_log(log, experiment=experiment, traffic=traffic)
    click_file = read_clicks(clicks)
    joined = join_clicks(search_log.searches, click_file.clicks)
    if click_file.clicks and not joined.click_count:
        remedy = "log each click with the value of the answer's header X-Querylift-Query-Id as its query_id"
        raise SettingsError(f"no click of {clicks} belongs to a search of {log}; {remedy}")
    if not click_file.clicks:
        raise SettingsError(f'{clicks} has no click; write a line with "action_name": "click" for each')
    report = build_report(search_log, click_file, joined)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        click.echo("\n".join(report.format_lines()))
