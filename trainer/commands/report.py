"""`querylift train report`: the table of what every stage brought."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.index_tools.commands.options import config_option, engine_option, progress, settings_with
from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.trainer.results.measurement import Results


@click.command()
@click.argument("table", metavar="TABLE.toml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.html, results.json and results.md.")
@engine_option
@click.option(
    "--weight", type=float, help="Weight of an expansion's word, for rows without their own [default: the file's]."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def report(
    table: Path, out: Path | None, engine: str | None, weight: float | None, as_json: bool, config: Path | None
) -> None:
    """Measure the rows of TABLE.toml on its collections, through the rewrite that is served.

    Prints nDCG@10, the shares of the teacher's result and gain kept, and paired tests against no expansion and against
    the row above.
    """
    from querylift.index_tools.engine import Engine
    from querylift.trainer.results.measurement import measure
    from querylift.trainer.results.rendering import render_text, to_json
    from querylift.trainer.results.table_settings import read_settings

    asked = read_settings(table)
    if weight is not None:
        if not 0 < weight <= 10:
            raise SettingsError(f"--weight is {weight:g}; use a number above 0 and at most 10")
        asked = asked.model_copy(update={"weight": weight})
    settings = settings_with(config, engine=engine)
    if out is not None:
        _make_folder(out)
    with Engine(settings) as connection, progress("measuring", asked.measurements) as advance:
        results = measure(asked, engine=connection, settings=settings, progress=advance)
    if out is not None:
        _write(out, results, {row.name: row.curves for row in asked.row})
    click.echo(json.dumps(to_json(results), indent=2, ensure_ascii=False) if as_json else render_text(results))
    if out is not None and not as_json:
        click.echo(f"\nreport: {out / 'report.html'}")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out is {out}: it cannot be made a folder ({error.strerror})") from None


def _write(out: Path, results: Results, curves: Mapping[str, Iterable[Path]]) -> None:
    from querylift.index_tools.corpora.trec_files import replacing
    from querylift.trainer.results.rendering import read_pictures, render_html, render_markdown, to_json

    pictures, problems = read_pictures(curves)
    for problem in problems:
        click.echo(problem, err=True)
    texts = {
        "results.json": json.dumps(to_json(results), indent=2, ensure_ascii=False) + "\n",
        "results.md": render_markdown(results),
        "report.html": render_html(results, pictures, problems),
    }
    for name, text in texts.items():
        with replacing(out / name) as stream:
            stream.write(text.encode(errors="replace"))
