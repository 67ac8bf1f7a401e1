"""`querylift expander`: the fast expander, built from an index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from querylift.index_tools.commands.options import config_option, engine_option, progress, settings_with


@click.group()
def expander() -> None:
    """The fast expander: an index's own terms, by a small encoder and without decoding."""


@expander.command()
@click.argument("index")
@engine_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make, or to bring up to date.")
@click.option("--form", type=click.Choice(["neighbours", "terms", "cluster"]), default="neighbours", show_default=True)
@click.option("--field", default="contents", show_default=True, help="Analysed field to take terms from.")
@click.option(
    "--text", "sources", multiple=True, help="Source field to read; repeatable [default: what FIELD is made of]."
)
@click.option(
    "--encoder", type=click.Path(path_type=Path), help="sentence-transformers folder [default: the packaged one]."
)
@click.option(
    "--vector-search",
    type=click.Path(path_type=Path),
    help='Form cluster: a search as JSON, "{{vector}}" for the query\'s vector.',
)
@click.option(
    "--temperature", type=click.FloatRange(min=0, min_open=True), help="[default: 0.08, of cosines; form cluster: 0.04]"
)
@click.option(
    "--changed-since", default="", help="Field with each document's last change: a later build reads only newer ones."
)
@click.option("--threads", type=click.IntRange(min=1), help="Documents encoded at once [default: the CPUs].")
@config_option
def build(index: str, engine: str | None, out: Path, config: Path | None, threads: int | None, **options: Any) -> None:
    """Read every document of INDEX and write an expander that `--generator expander:FOLDER` serves.

    Stopped, it goes on where it was; run again, it encodes only documents whose text has changed.
    """
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.fast_expander.build import Request, build
    from querylift.plugin.fast_expander.folder import Shape

    options["changed_field"] = options.pop("changed_since")
    cooler = options.pop("temperature") or (0.04 if options["form"] == "cluster" else Shape().temperature)
    options["shape"] = Shape(temperature=cooler)
    request = Request(index, folder=out, threads=threads or os.cpu_count() or 1, **options)
    with Engine(settings_with(config, engine=engine)) as client, progress(f"reading {index}") as advance:
        built = build(client, request, progress=lambda done, total: advance(done))
    about = built.about
    size_mb = sum(facts.size_bytes for facts in about.files.values()) / 1e6
    click.echo(
        f"{out}: {about.source.documents} documents ({built.encoded} encoded now), {about.terms} terms, {size_mb:.1f} MB"
    )
    if built.without_text:
        click.echo(f"{built.without_text} documents have no text and are left out")
    if built.unreadable:
        click.echo(
            f"{built.unreadable} of those encoded now are in words that the encoder does not know: near to no query"
        )
