"""`querylift index`: put a corpus into an index."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.index_tools.commands.options import config_option, engine_option, progress, settings_with


@click.command()
@click.argument("corpus")
@engine_option
@click.option("--index", "name", required=True, help="Index to build.")
@click.option("--language", help="Language of the corpus, like en or zh [default: the corpus's own].")
@click.option("--analyzer", help="Analyzer of the text fields [default: by the corpus's language].")
@click.option("--k1", type=float, default=1.2, show_default=True, help="BM25: how soon repeated words stop counting.")
@click.option("--b", type=float, default=0.75, show_default=True, help="BM25: how much long documents are held back.")
@click.option("--replace", is_flag=True, help="Delete an index of that name that querylift did not build.")
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
    """Index CORPUS: `builtin`, a BEIR folder, `trec:FOLDER`, or an ir_datasets id.

    Running it again builds the index anew. The count in the engine must equal the count read.
    """
    from querylift.index_tools.corpora.loading import load
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.indexing import IndexPlan, build

    plan = IndexPlan(name, analyzer, k1, b, replace)
    loaded = load(corpus, language=language)
    with Engine(settings_with(config, engine=engine)) as client, progress(f"indexing {loaded.name}") as advance:
        count = build(client, loaded, plan, progress=advance)
    click.echo(f"{name}: {count} documents")
