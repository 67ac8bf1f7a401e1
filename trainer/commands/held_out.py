"""The options `--held-out` and `--held-out-by`: training refuses the queries of evaluation splits, or their documents too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from querylift.plugin.errors import SettingsError
from querylift.trainer.training_config import HeldOutBy, TrainingConfig

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus
    from querylift.trainer.leaks import HeldOutSplit
    from querylift.trainer.rewards.labels import Labels

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


held_out_by_option = click.option(
    "--held-out-by",
    type=click.Choice(get_args(HeldOutBy)),
    help="Refuse held-out queries only (query), or also rows made of documents relevant to them (document) "
    "[default: the configuration's held_out_by, else query].",
)


def load_held_out_splits(specs: Iterable[str], *, by: HeldOutBy) -> list[HeldOutSplit]:
    """Load the evaluation splits that "CORPUS:SPLIT" names, each once. By document, they come with their documents.

    A split is called after its corpus. When two corpora have the same name, the splits are called by their whole spec.
    """
    return [_load_split(name, corpus, split, by=by) for name, corpus, split in _open_splits(specs)]


def load_held_out_document_ids(specs: Iterable[str]) -> list[HeldOutSplit]:
    """Load the splits that "CORPUS:SPLIT" names with the ids of their relevant documents. No document is read."""
    from querylift.trainer.document_leaks import make_held_out_documents, select_relevant_documents
    from querylift.trainer.leaks import HeldOutSplit

    splits = []
    for name, corpus, split in _open_splits(specs):
        relevant = select_relevant_documents(corpus.read_qrels(split), relevant_from=corpus.relevant_from)
        splits.append(HeldOutSplit(name, corpus.name, corpus.read_queries(split), make_held_out_documents(relevant)))
    return splits


def choose_held_out_splits(
    specs: Sequence[str], corpus: Corpus, split: str | None, *, by: HeldOutBy, uses_split: bool = True
) -> list[HeldOutSplit]:
    """Return the evaluation splits of `specs`, or without specs, the splits of `corpus` other than `split`.

    The spec "none" holds nothing out. When `split` is None and `uses_split` is true, the corpus's only split is used for
    training, so nothing is held out. When `uses_split` is false, every split is held out.
    """
    if tuple(specs) == (NOTHING_HELD_OUT,):
        return []
    if specs:
        return load_held_out_splits(specs, by=by)
    if split is not None:
        names = [name for name in corpus.split_names if name != split]
    else:
        names = [] if uses_split else list(corpus.split_names)
    return [_load_split(f"{corpus.name}:{name}", corpus, name, by=by) for name in names]


def apply_held_out_options(
    config: TrainingConfig, held_out: Sequence[str], held_out_by: HeldOutBy | None
) -> TrainingConfig:
    """Return `config` with what the command line holds out, where it says so."""
    update = {"held_out": tuple(held_out) or config.held_out, "held_out_by": held_out_by or config.held_out_by}
    return config.model_copy(update=update)


def load_measured_splits(specs: Sequence[str]) -> list[HeldOutSplit]:
    """Load the splits of `specs` by query. "none" names none."""
    return [] if tuple(specs) == (NOTHING_HELD_OUT,) else load_held_out_splits(specs, by="query")


def raise_on_held_out_rows(
    files: Sequence[Path],
    given: Sequence[str],
    configured: Sequence[str],
    *,
    by: HeldOutBy,
    evaluate_on: str | None = None,
) -> None:
    """Raise SettingsError when a row of `files` has a query of an evaluation split. By document, its text is compared too.

    `given` are the splits of the command line. Without them, `configured` are those of the configuration. One of the two is
    needed; "none" says that nothing is measured. The split `evaluate_on` is held out too. A row does not name its corpus,
    so an id alone counts only in the form NAME:id.
    """
    from querylift.index_tools.corpora.json_rows import read_jsonl
    from querylift.trainer.document_leaks import find_document_leaks, list_row_documents, raise_on_document_leaks
    from querylift.trainer.leaks import find_leaks, raise_on_leaks

    specs = _choose_specs(given, configured, evaluate_on)
    if not specs:
        return
    # The stage's own reader reports broken rows. It knows which keys a row needs.
    rows = [row for file in files for _, row in read_jsonl(file)]
    queries = {(str(row.get("query_id", "")), str(row.get("query", ""))) for row in rows}
    splits = load_held_out_splits(specs, by=by)
    remedy = f"take them out of {', '.join(map(str, files))}: `querylift train teach --drop-leaks` leaves them out"
    raise_on_leaks(find_leaks(sorted(queries), splits), remedy=remedy)
    documents = (document for row in rows for document in list_row_documents(row))
    remedy = remedy.replace("--drop-leaks", "--held-out-by document --drop-leaks")
    raise_on_document_leaks(find_document_leaks(documents, splits), remedy=remedy)


def raise_on_held_out_queries(
    corpus: Corpus,
    queries: Mapping[str, str],
    labels: Labels,
    given: Sequence[str],
    configured: Sequence[str],
    *,
    by: HeldOutBy,
    evaluate_on: str | None = None,
) -> None:
    """Raise SettingsError when one of the `queries` of `corpus` is a query of an evaluation split.

    By document, a query that shares a relevant document with such a split is refused too, because rewards teach the words of
    relevant documents. `given`, `configured` and `evaluate_on` are as in `raise_on_held_out_rows`.
    """
    from querylift.trainer.document_leaks import (
        find_leaks_of_relevant_documents,
        raise_on_document_leaks,
        select_relevant_documents,
    )
    from querylift.trainer.leaks import find_leaks, raise_on_leaks

    splits = load_held_out_splits(_choose_specs(given, configured, evaluate_on), by=by)
    remedy = "leave them out with `querylift train split --apart-from`, or name other splits with --held-out"
    raise_on_leaks(find_leaks(sorted(queries.items()), splits, corpus=corpus.name), remedy=remedy)
    qrels = {query_id: labels.qrels[query_id] for query_id in queries}
    relevant = select_relevant_documents(qrels, relevant_from=labels.relevant_from)
    leaks = find_leaks_of_relevant_documents(corpus, relevant, splits)
    raise_on_document_leaks(leaks, remedy="split by document with `querylift train split --by document`")


def _choose_specs(given: Sequence[str], configured: Sequence[str], evaluate_on: str | None) -> tuple[str, ...]:
    """Return the splits of the command line, else those of the configuration, and `evaluate_on`. "none" gives no split.

    Raises SettingsError when no split is named, or when a configured one has a variable without a value.
    """
    _check_specs(given, configured)
    specs = tuple(given) or tuple(configured)
    specs = () if specs == (NOTHING_HELD_OUT,) else specs
    return tuple(dict.fromkeys((*specs, *([evaluate_on] if evaluate_on else []))))


def _open_splits(specs: Iterable[str]) -> list[tuple[str, Corpus, str]]:
    """Return the name for messages, the corpus and the split of every spec, each once."""
    from querylift.index_tools.corpora.corpus_names import load_corpus_and_split

    opened = {spec: load_corpus_and_split(spec) for spec in specs}
    names = {spec: f"{corpus.name}:{split}" for spec, (corpus, split) in opened.items()}
    counts = Counter(names.values())
    return [
        (names[spec] if counts[names[spec]] == 1 else spec, corpus, split) for spec, (corpus, split) in opened.items()
    ]


def _load_split(name: str, corpus: Corpus, split: str, *, by: HeldOutBy) -> HeldOutSplit:
    """Return a split of `corpus` as held out. By document, it comes with the relevant documents of its queries."""
    from querylift.trainer.document_leaks import make_held_out_documents, read_openings, select_relevant_documents
    from querylift.trainer.leaks import HeldOutSplit

    queries = corpus.read_queries(split)
    if by == "query":
        return HeldOutSplit(name, corpus.name, queries)
    relevant = select_relevant_documents(corpus.read_qrels(split), relevant_from=corpus.relevant_from)
    return HeldOutSplit(name, corpus.name, queries, make_held_out_documents(relevant, read_openings(corpus, relevant)))


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
