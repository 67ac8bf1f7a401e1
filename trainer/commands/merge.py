"""`querylift train merge`: an adapter and its base become one model."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the model.")
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True, help="Of the weights."
)
def merge(adapter: Path, out: Path, dtype: str) -> None:
    """Merge ADAPTER, and the adapters that it lies on, into a plain Hugging Face folder, ready for GGUF."""
    from querylift.trainer.student.merge import merge as merged
    from querylift.trainer.student.models import check_installed

    check_installed()
    merged(adapter, out=out, dtype=dtype, say=click.echo)
