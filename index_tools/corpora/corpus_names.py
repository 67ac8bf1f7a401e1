"""Open a corpus by the text that names it on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from querylift.index_tools.corpora import builtin_corpus
from querylift.index_tools.corpora.beir_corpus import is_beir_folder, open_beir_corpus
from querylift.index_tools.corpora.corpus import UNNAMED_SPLIT, Corpus
from querylift.index_tools.corpora.ir_datasets_corpus import open_ir_datasets_corpus
from querylift.index_tools.corpora.trec_corpus import open_trec_corpus
from querylift.plugin.errors import SettingsError

CORPUS_KINDS = (
    "'builtin', a BEIR folder ('beir:PATH' or a path), TREC files "
    "('trec:FOLDER' or 'trec:documents=FILE,topics=FILE,qrels=FILE'), or an ir_datasets id ('ir:ID')"
)

_OPENERS: Mapping[str, Callable[[str], Corpus]] = {
    "beir": open_beir_corpus,
    "trec": open_trec_corpus,
    "ir": open_ir_datasets_corpus,
    "irds": open_ir_datasets_corpus,
}


def load_corpus(spec: str, *, language: str | None = None, relevant_from: int | None = None) -> Corpus:
    """Open the corpus that `spec` names: `builtin`, `beir:PATH` or a path, `trec:PATH`, or `ir:ID`.

    `language` and `relevant_from` replace the corpus's own values. These are 'en' and 1 by default. A BEIR folder may
    state them in about.json. An ir_datasets id states its language, and TREC Deep Learning passages are relevant from 2.
    Raise SettingsError for any other spec, and when files are missing.
    """
    corpus = _open_corpus(spec)
    return replace(
        corpus,
        language=corpus.language if language is None else language,
        relevant_from=corpus.relevant_from if relevant_from is None else relevant_from,
    )


def load_corpus_and_split(spec: str) -> tuple[Corpus, str]:
    """Open the corpus that CORPUS:SPLIT names, and return it with the name of the split.

    CORPUS alone is enough when it has one split. Raise SettingsError when the split is not clear.
    """
    corpus_spec, _, split = spec.rpartition(":")
    if corpus_spec and corpus_spec not in _OPENERS:
        return load_corpus(corpus_spec), split
    corpus = load_corpus(spec)
    if len(corpus.split_names) != 1:
        names = ", ".join(corpus.split_names) or "none: it has no queries"
        raise SettingsError(f"{spec!r} names no split; write {spec}:SPLIT, its splits are {names}")
    return corpus, corpus.split_names[0]


def _open_corpus(spec: str) -> Corpus:
    if spec == "builtin":
        return Corpus(
            "builtin",
            builtin_corpus.iter_documents,
            {UNNAMED_SPLIT: lambda: (builtin_corpus.read_queries(), builtin_corpus.read_answerable_qrels())},
        )
    kind, colon, location = spec.partition(":")
    if colon and location and kind in _OPENERS:
        return _OPENERS[kind](location)
    if is_beir_folder(Path(spec)):
        return open_beir_corpus(spec)
    raise SettingsError(f"there is no corpus {spec!r}; name {CORPUS_KINDS}")
