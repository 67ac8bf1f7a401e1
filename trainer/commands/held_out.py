"""What the training commands share: nothing that is measured is trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.index_tools.corpora.loading import Corpus
    from querylift.trainer.leaks import HeldOut

NOTHING = "none"
_VARIABLE = re.compile(r"\{\w+\}")

held_out_option = click.option(
    "--held-out",
    "held_out",
    multiple=True,
    metavar="CORPUS:SPLIT",
    help="Refuse rows of these queries, or 'none'; repeatable [default: the configuration's held_out].",
)


def held_out_of(specs: Iterable[str]) -> list[HeldOut]:
    """The evaluation splits of "CORPUS:SPLIT", each once; two of one name are named as they were given."""
    from querylift.index_tools.corpora.loading import load_split
    from querylift.trainer.leaks import HeldOut

    opened = {spec: load_split(spec) for spec in specs}
    names = {spec: f"{corpus.name}:{split}" for spec, (corpus, split) in opened.items()}
    count = Counter(names.values())
    return [
        HeldOut(names[spec] if count[names[spec]] == 1 else spec, corpus.name, corpus.queries(split))
        for spec, (corpus, split) in opened.items()
    ]


def held_out_beside(specs: Sequence[str], corpus: Corpus, split: str | None, *, asked: bool = True) -> list[HeldOut]:
    """The evaluation splits of `specs`, else the other splits of `corpus`; 'none' alone holds nothing out.

    Without a split nothing is held out where the queries of the only one are `asked`, and every split where none is.
    """
    from querylift.trainer.leaks import HeldOut

    if tuple(specs) == (NOTHING,):
        return []
    if specs:
        return held_out_of(specs)
    others = [name for name in corpus.splits() if (name != split if split is not None else not asked)]
    return [HeldOut(f"{corpus.name}:{name}", corpus.name, corpus.queries(name)) for name in others]


def refuse_held_out(files: Sequence[Path], given: Sequence[str], configured: Sequence[str]) -> None:
    """Raise SettingsError where a row of `files` asks what an evaluation split asks.

    The splits are those `given` on the command line, else the configuration's. One of the two is needed: 'none' says that
    nothing is measured. A row does not say which corpus it is of, so an id alone counts only where it names one (NAME:id).
    """
    from querylift.index_tools.corpora.trec_files import read_jsonl
    from querylift.trainer.leaks import leaks, refuse

    specs = tuple(given) or tuple(configured)
    _check(given, configured)
    if specs == (NOTHING,):
        return
    asked = {_asked(row) for file in files for _, row in read_jsonl(file)}
    remedy = f"take them out of {', '.join(map(str, files))}: `querylift train teach --drop-leaks` leaves them out"
    refuse(leaks(sorted(asked), held_out_of(specs)), remedy=remedy)


def _check(given: Sequence[str], configured: Sequence[str]) -> None:
    if not given and not configured:
        raise SettingsError(
            "no evaluation split is named; name those that you measure on with --held-out CORPUS:SPLIT, or say --held-out none"
        )
    unfilled = [spec for spec in configured if _VARIABLE.search(spec)] if not given else []
    if unfilled:
        raise SettingsError(
            f"the configuration's held_out is {unfilled[0]!r}, whose variables are filled in by `querylift train run` only; "
            "name what is measured with --held-out CORPUS:SPLIT"
        )


def _asked(row: Mapping[str, object]) -> tuple[str, str]:
    # A broken row is named by the stage's own reader, which knows what belongs into it.
    return str(row.get("query_id", "")), str(row.get("query", ""))
