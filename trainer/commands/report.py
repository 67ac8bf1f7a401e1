"""`querylift train report`: measure what every stage gained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)
from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.trainer.results.records import Results


@click.command()
@click.argument("table", metavar="TABLE.toml", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for report.html, results.json and results.md [default: none, only print].",
)
@engine_option
@click.option(
    "--weight", type=float, help="Weight of the expansions in rows without a weight of their own [default: the file's]."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def report(
    table: Path, out: Path | None, engine: str | None, weight: float | None, as_json: bool, config: Path | None
) -> None:
    """Measure the rows of TABLE.toml on its collections, with the rewrite that is served.

    Prints nDCG@10, the shares of the teacher's nDCG and of its gain, and paired tests against no expansion and against the
    row above.
    """
    from querylift.index_tools.engine import Engine
    from querylift.trainer.results.json_rendering import results_to_json
    from querylift.trainer.results.measurement import measure_rows
    from querylift.trainer.results.table_settings import read_results_settings
    from querylift.trainer.results.text_rendering import render_text

    table_settings = read_results_settings(table)
    if weight is not None:
        if not 0 < weight <= 10:
            raise SettingsError(f"--weight is {weight:g}; use a number above 0 and at most 10")
        table_settings = table_settings.model_copy(update={"weight": weight})
    settings = load_settings_with_options(config, engine=engine)
    if out is not None:
        _create_folder(out)
    with Engine(settings) as connected_engine, show_progress("measuring", table_settings.run_count) as advance:
        results = measure_rows(table_settings, engine=connected_engine, settings=settings, progress=advance)
    if out is not None:
        _write_report(out, results, {row.name: row.curves for row in table_settings.row})
    click.echo(json.dumps(results_to_json(results), indent=2, ensure_ascii=False) if as_json else render_text(results))
    if out is not None and not as_json:
        click.echo(f"\nreport: {out / 'report.html'}")


def _create_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out is {out}, which cannot be made a folder ({error.strerror}); name another") from None


def _write_report(out: Path, results: Results, curves: Mapping[str, Iterable[Path]]) -> None:
    """Write the three files of the report. `curves` maps the name of a row to its files of training curves."""
    from querylift.plugin.files import open_for_replacement
    from querylift.trainer.results.curve_pictures import read_pictures
    from querylift.trainer.results.html_rendering import render_html
    from querylift.trainer.results.json_rendering import results_to_json
    from querylift.trainer.results.markdown_rendering import render_markdown

    pictures, problems = read_pictures(curves)
    for problem in problems:
        click.echo(problem, err=True)
    texts = {
        "results.json": json.dumps(results_to_json(results), indent=2, ensure_ascii=False) + "\n",
        "results.md": render_markdown(results),
        "report.html": render_html(results, pictures, problems),
    }
    for name, text in texts.items():
        with open_for_replacement(out / name) as stream:
            stream.write(text.encode(errors="replace"))
