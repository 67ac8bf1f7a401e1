"""`querylift judge export`: make the files that are served of a trained judge."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the served files.")
def export(folder: Path, out: Path) -> None:
    """Export the trained judge in FOLDER, with weights of eight bits.

    The exported judge runs without PyTorch. The other commands take its folder as --judge.
    """
    from querylift.trainer.judge.student.saved_judge import export_judge
    from querylift.trainer.student.libraries import check_training_packages

    check_training_packages()
    record = export_judge(folder, out)
    size_mb = sum((out / name).stat().st_size for name in record.files) / 1e6
    click.echo(f"{out}: judge {record.name}, {size_mb:.0f} MB, taught by {record.teacher}")
    if record.agreement is None:
        click.echo(
            "Its agreement with people was not measured: `querylift judge sample`.\n"
            f"next  querylift evaluate --judge {out}"
        )
