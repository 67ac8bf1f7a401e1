"""The option `--held-out`: training refuses the queries of evaluation splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus
    from querylift.trainer.leaks import HeldOutSplit

NOTHING_HELD_OUT = "none"
_VARIABLE = re.compile(r"\{\w+\}")

held_out_option = click.option(
    "--held-out",
    "held_out",
    multiple=True,
    metavar="CORPUS:SPLIT",
    help="Evaluation split whose queries are refused, or 'none'; repeatable [default: the configuration's held_out].",
)

held_out_or_other_splits_option = click.option(
    "--held-out",
    multiple=True,
    metavar="CORPUS:SPLIT",
    help="Evaluation split whose queries are refused, or 'none'; repeatable [default: the other splits of the corpus].",
)


def load_held_out_splits(specs: Iterable[str]) -> list[HeldOutSplit]:
    """Load the evaluation splits that "CORPUS:SPLIT" names, each once.

    A split is called after its corpus. When two corpora have the same name, the splits are called by their whole spec.
    """
    from querylift.index_tools.corpora.corpus_names import load_corpus_and_split
    from querylift.trainer.leaks import HeldOutSplit

    loaded = {spec: load_corpus_and_split(spec) for spec in specs}
    names = {spec: f"{corpus.name}:{split}" for spec, (corpus, split) in loaded.items()}
    counts = Counter(names.values())
    return [
        HeldOutSplit(names[spec] if counts[names[spec]] == 1 else spec, corpus.name, corpus.read_queries(split))
        for spec, (corpus, split) in loaded.items()
    ]


def choose_held_out_splits(
    specs: Sequence[str], corpus: Corpus, split: str | None, *, uses_split: bool = True
) -> list[HeldOutSplit]:
    """Return the evaluation splits of `specs`, or without specs, the splits of `corpus` other than `split`.

    The spec "none" holds nothing out. When `split` is None and `uses_split` is true, the corpus's only split is used for
    training, so nothing is held out. When `uses_split` is false, every split is held out.
    """
    from querylift.trainer.leaks import HeldOutSplit

    if tuple(specs) == (NOTHING_HELD_OUT,):
        return []
    if specs:
        return load_held_out_splits(specs)
    if split is not None:
        names = [name for name in corpus.split_names if name != split]
    else:
        names = [] if uses_split else list(corpus.split_names)
    return [HeldOutSplit(f"{corpus.name}:{name}", corpus.name, corpus.read_queries(name)) for name in names]


def raise_on_held_out_rows(files: Sequence[Path], given: Sequence[str], configured: Sequence[str]) -> None:
    """Raise SettingsError when a row of `files` has a query of an evaluation split.

    `given` are the splits of the command line. Without them, `configured` are those of the configuration. One of the two is
    needed; "none" says that nothing is measured. A row does not name its corpus, so an id alone counts only in the form
    NAME:id.
    """
    from querylift.index_tools.corpora.json_rows import read_jsonl
    from querylift.trainer.leaks import find_leaks, raise_on_leaks

    _check_specs(given, configured)
    specs = tuple(given) or tuple(configured)
    if specs == (NOTHING_HELD_OUT,):
        return
    # The stage's own reader reports broken rows. It knows which keys a row needs.
    queries = {
        (str(row.get("query_id", "")), str(row.get("query", ""))) for file in files for _, row in read_jsonl(file)
    }
    remedy = f"take them out of {', '.join(map(str, files))}: `querylift train teach --drop-leaks` leaves them out"
    raise_on_leaks(find_leaks(sorted(queries), load_held_out_splits(specs)), remedy=remedy)


def _check_specs(given: Sequence[str], configured: Sequence[str]) -> None:
    """Raise SettingsError when no split is named, or when a configured one has a variable without a value."""
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
