"""`querylift train merge`: make one model of an adapter and its base."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the model.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Number format of the weights.",
)
def merge(adapter: Path, out: Path, dtype: str) -> None:
    """Merge ADAPTER and the adapters below it into their base.

    The result is a plain Hugging Face folder, which can be converted to GGUF.
    """
    from querylift.trainer.student.libraries import check_training_packages, silence_libraries
    from querylift.trainer.student.merge import merge_adapter

    check_training_packages()
    silence_libraries()
    merge_adapter(adapter, out=out, dtype=dtype, say=click.echo)
