"""`querylift index`: build an index of a corpus."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)


@click.command()
@click.argument("corpus")
@engine_option
@click.option("--index", "name", required=True, help="Name of the index to build.")
@click.option("--language", help="Language of the corpus, such as en or zh [default: as the corpus says].")
@click.option("--analyzer", help="Analyzer of the text fields [default: by language].")
@click.option(
    "--k1", type=float, default=1.2, show_default=True, help="BM25's k1. Smaller values count a repeated word less."
)
@click.option(
    "--b", type=float, default=0.75, show_default=True, help="BM25's b. Larger values lower long documents more."
)
@click.option("--replace", is_flag=True, help="Delete an index of this name even if querylift did not build it.")
@config_option
def index(
    corpus: str,
    engine: str | None,
    name: str,
    language: str | None,
    analyzer: str | None,
    k1: float,
    b: float,
    replace: bool,
    config: Path | None,
) -> None:
    """Build an index of all documents of CORPUS.

    CORPUS is `builtin` (the Python documentation), a folder in BEIR's layout,
    `trec:FOLDER`, or `ir:ID` for a dataset of ir_datasets.

    An index that this command built before is deleted and built again. The command
    fails when the engine does not hold as many documents as were read.
    """
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.indexing import IndexPlan, build_index

    plan = IndexPlan(name, analyzer, k1, b, replace)
    source = load_corpus(corpus, language=language)
    with (
        Engine(load_settings_with_options(config, engine=engine)) as client,
        show_progress(f"indexing {source.name}") as advance,
    ):
        count = build_index(client, source, plan, progress=advance)
    click.echo(f"{name}: {count} documents")
