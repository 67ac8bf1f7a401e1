"""What the training commands share: nothing that is measured is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

from plugin.errors import SettingsError

NOTHING = "none"

held_out_option = click.option(
    "--held-out",
    "held_out",
    multiple=True,
    metavar="CORPUS:SPLIT",
    help="Refuse rows of these queries, or 'none'; repeatable [default: the configuration's held_out].",
)


def queries_of(specs: Iterable[str]) -> dict[str, dict[str, str]]:
    """The queries of evaluation splits by "CORPUS:SPLIT", for `trainer.guard`."""
    return dict(map(_queries, specs))


def refuse_held_out(files: Sequence[Path], given: Sequence[str], configured: Sequence[str]) -> None:
    """Raise SettingsError where a row of `files` asks what an evaluation split asks.

    The splits are those `given` on the command line, else the configuration's. One of the two is needed: 'none' says that
    nothing is measured.
    """
    from index_tools.trec import read_jsonl
    from trainer.guard import leaks, refuse

    specs = tuple(given) or tuple(configured)
    if not specs:
        raise SettingsError(
            "no evaluation split is named; name those that you measure on with --held-out CORPUS:SPLIT, or say --held-out none"
        )
    if specs == (NOTHING,):
        return
    asked = {_asked(row) for file in files for _, row in read_jsonl(file)}
    remedy = f"take them out of {', '.join(map(str, files))}: `querylift train teach --drop-leaks` leaves them out"
    refuse(leaks(sorted(asked), queries_of(specs)), remedy=remedy)


def _asked(row: Mapping[str, object]) -> tuple[str, str]:
    # A broken row is named by the stage's own reader, which knows what belongs into it.
    return str(row.get("query_id", "")), str(row.get("query", ""))


def _queries(spec: str) -> tuple[str, dict[str, str]]:
    from index_tools.corpora import load

    head, _, split = spec.rpartition(":")
    if head in ("", "beir", "trec", "ir", "irds"):
        corpus = load(spec)
        return f"{corpus.name}:{corpus.splits()[0]}", corpus.queries()
    corpus = load(head)
    return f"{corpus.name}:{split}", corpus.queries(split)
