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
    help="Quantisation types of llama.cpp. TYPE-PURE uses one type for all tensors.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files and manifest.json.")
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure an importance matrix on FILE: JSON lines with query and text.",
)
@click.option(
    "--calibrate-rows",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Number of lines to use, spread over FILE.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: the physical cores less one].")
@click.option("--requantize", is_flag=True, help="Allow a MODEL that is already quantised. It loses precision twice.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
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
    """Make OUT/MODEL-TYPE.gguf, a smaller file of MODEL, for each quantisation type.

    MODEL is a GGUF file with f32, f16 or bf16 numbers. Complete files of an earlier run with the same MODEL and options are
    kept.
    """
    try:
        from querylift.quantize.levels.level_types import parse_types
        from querylift.quantize.levels.make_levels import Calibration, make_levels, read_manifest
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error
    from querylift.index_tools.commands.options import show_progress

    levels = make_levels(
        model,
        out,
        parse_types(types),
        calibration=Calibration(calibrate, calibrate_rows) if calibrate else None,
        threads=threads,
        requantize=requantize,
        progress=show_progress,
    )
    uses_importance = False
    for level in levels:
        uses_importance |= level.importance is not None
        if not as_json:
            click.echo(_format_level(level))
    manifest = read_manifest(out)
    if as_json:
        click.echo(json.dumps(manifest, indent=2))
    elif uses_importance:
        matrix = manifest["importance"]
        counts = f"{matrix['rows']} passages, {matrix['tokens']} tokens"
        click.echo(f"calibrated on {counts}, in {matrix['seconds']:.1f} s")


def _format_level(level: Level) -> str:
    """Return a level's type, size and time, and how many of its tensors fell back to another type."""
    duration = "kept" if level.is_reused else f"{level.seconds:.1f} s"
    line = f"{level.type:<9} {level.size_bytes / 1e6:>7.1f} MB {duration:>8}"
    if not level.fallbacks:
        return line
    fallback_count, tensor_count = sum(level.fallbacks.values()), sum(level.tensors.values())
    return f"{line}  {fallback_count} of {tensor_count} tensors fell back to {', '.join(level.fallbacks)}"
