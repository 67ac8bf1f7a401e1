"""`querylift quantize student`."""

from __future__ import annotations

import time

import click

from querylift.plugin.errors import MissingExtra, SettingsError


@click.command()
def student() -> None:
    """Make one fast file of the shipped student: the packaged model with its adapter.

    This takes half a minute, once. `querylift serve` then uses the file for `generator = "llama"`. Without the file it uses
    the model and the adapter.
    """
    try:
        from querylift.quantize.shipped_student import prepare_student_file
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error
    from querylift.plugin.generators.llama.model_file import find_packaged_model, find_shipped_adapter

    adapter = find_shipped_adapter()
    if adapter is None:
        raise SettingsError(
            "this installation has no models/ folder with the shipped adapter; install Querylift from a complete checkout"
        )
    start_s = time.monotonic()
    path = prepare_student_file(find_packaged_model(), adapter)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {time.monotonic() - start_s:.1f} s")
