"""Leave out measured queries that share a relevant document with training queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.corpus_names import load_corpus_and_split
from querylift.index_tools.corpora.records import Qrels
from querylift.plugin.errors import SettingsError
from querylift.trainer.document_leaks import (
    find_leaks_of_relevant_documents,
    make_held_out_documents,
    read_openings,
    select_relevant_documents,
)
from querylift.trainer.leaks import HeldOutSplit


class ApartQrels(NamedTuple):
    """The judgments that are left, and notes about what was left out."""

    qrels: Qrels
    notes: tuple[str, ...] = ()


def leave_out_sharing_queries(corpus: Corpus, qrels: Qrels, training: Sequence[str]) -> ApartQrels:
    """Leave out the queries that share a relevant document with the splits that CORPUS:SPLIT in `training` names.

    Raises SettingsError when no query with a relevant document is left.
    """
    if not training:
        return ApartQrels(qrels)
    sharing_ids = _find_sharing_queries(corpus, qrels, training)
    apart_qrels = {query_id: grades for query_id, grades in qrels.items() if query_id not in sharing_ids}
    if not any(select_relevant_documents(apart_qrels, relevant_from=corpus.relevant_from).values()):
        raise SettingsError(
            f"every query of {corpus.name} shares a relevant document with apart_from, which is {', '.join(training)}; "
            "leave apart_from out, or name another split"
        )
    note = (
        f"{len(sharing_ids)} of {len(qrels)} queries are left out: training queries share relevant documents with them"
    )
    return ApartQrels(apart_qrels, (note,))


def _find_sharing_queries(corpus: Corpus, qrels: Qrels, training: Sequence[str]) -> frozenset[str]:
    relevant = select_relevant_documents(qrels, relevant_from=corpus.relevant_from)
    documents = make_held_out_documents(relevant, read_openings(corpus, relevant))
    held_out = [HeldOutSplit("measured", corpus.name, {}, documents)]
    sharing_ids: set[str] = set()
    for spec in training:
        training_corpus, split = load_corpus_and_split(spec)
        training_relevant = select_relevant_documents(
            training_corpus.read_qrels(split), relevant_from=training_corpus.relevant_from
        )
        for leak in find_leaks_of_relevant_documents(training_corpus, training_relevant, held_out):
            sharing_ids.update(leak.held_out_ids)
    return frozenset(sharing_ids)
