"""`querylift quantize make`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.plugin.errors import MissingExtra

if TYPE_CHECKING:
    from querylift.quantize.levels.make_levels import Level


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--types",
    default="Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0",
    show_default=True,
    metavar="TYPE,TYPE",
    help="Any that llama.cpp writes.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files and manifest.json.")
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON lines with query and text, to find which columns matter (an importance matrix).",
)
@click.option(
    "--calibrate-rows",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Lines of it to use, from all over the file.",
)
@click.option("--threads", type=click.IntRange(min=1), help="[default: the physical cores less one]")
@click.option("--requantize", is_flag=True, help="Take a MODEL that is quantised already, and lose twice.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def make(
    model: Path,
    types: str,
    out: Path,
    calibrate: Path | None,
    calibrate_rows: int,
    threads: int | None,
    requantize: bool,
    as_json: bool,
) -> None:
    """Make smaller files of MODEL, a GGUF file of f32, f16 or bf16 numbers: OUT/MODEL-TYPE.gguf for each type.

    Files that are there already, whole and of this model, are kept.
    """
    try:
        from querylift.quantize.levels import make_levels
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error
    from querylift.index_tools.commands.options import progress

    levels = make_levels.make(
        model,
        out,
        make_levels.wanted_types(types),
        calibration=make_levels.Calibration(calibrate, calibrate_rows) if calibrate else None,
        threads=threads,
        requantize=requantize,
        progress=progress,
    )
    calibrated = False
    for level in levels:
        calibrated |= level.importance is not None
        if not as_json:
            click.echo(_line(level))
    manifest = make_levels.read_manifest(out)
    if as_json:
        click.echo(json.dumps(manifest, indent=2))
    elif calibrated:
        read = manifest["importance"]
        click.echo(f"calibrated on {read['rows']} passages, {read['tokens']} tokens, in {read['seconds']:.1f} s")


def _line(level: Level) -> str:
    """Type, size and time of a level, and how many of its tensors are of another type because their rows fit no block."""
    took = "kept" if level.kept else f"{level.seconds:.1f} s"
    start = f"{level.type:<9} {level.size_bytes / 1e6:>7.1f} MB {took:>8}"
    if not level.fallbacks:
        return start
    count, of = sum(level.fallbacks.values()), sum(level.tensors.values())
    return f"{start}  {count} of {of} tensors fell back to {', '.join(level.fallbacks)}"
