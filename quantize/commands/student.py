"""`querylift quantize student`."""

from __future__ import annotations

import time

import click

from querylift.plugin.errors import MissingExtra, SettingsError


@click.command()
def student() -> None:
    """Make one fast file of the packaged model and the adapter that comes with Querylift, for `generator = "llama"`.

    It takes half a minute, once; `querylift serve` finds it by itself, and uses both files apart where it is not there.
    """
    try:
        from querylift.quantize.shipped_student import prepare
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error
    from querylift.plugin.generators.llama.model_file import packaged_model, shipped_adapter

    adapter = shipped_adapter()
    if adapter is None:
        raise SettingsError("this installation came without models/; install Querylift from a whole checkout")
    began_s = time.monotonic()
    path = prepare(packaged_model(), adapter)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {time.monotonic() - began_s:.1f} s")
