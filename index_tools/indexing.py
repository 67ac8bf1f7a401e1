"""Build an index of all documents of a corpus, with a chosen analyzer and BM25 parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from querylift.index_tools.corpora.records import Document
from querylift.index_tools.engine import Engine, make_index_action
from querylift.plugin.errors import EngineError, SettingsError

CONTENTS_FIELD = "contents"
"""The analysed field that holds title and text together, with term vectors. Evaluation searches it."""
ANALYZERS = {"en": "english", "zh": "cjk", "ja": "cjk", "ko": "cjk"}
"""The analyzer of each known language. For any other language the user names an analyzer."""
_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_MAX_RETRIES = 5
_IDS_PER_REQUEST = 1000


class DocumentSource(Protocol):
    """A corpus, or anything else that can stream its documents several times."""

    @property
    def language(self) -> str:
        """The language of the documents, such as en."""

    def iter_documents(self) -> Iterator[Document]:
        """Stream all documents."""
        ...


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """How to build an index. `k1` and `b` are BM25's parameters.

    With `analyzer` None, the corpus's language chooses the analyzer.
    """

    name: str
    analyzer: str | None = None
    k1: float = 1.2
    b: float = 0.75
    replace: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.k1 < math.inf:
            raise SettingsError(f"k1 is {self.k1}; use 0 or more, usually 0.9 to 1.2")
        if not 0 <= self.b <= 1:
            raise SettingsError(f"b is {self.b}; use a number from 0 to 1, usually 0.4 to 0.75")


def build_index(
    engine: Engine,
    corpus: DocumentSource,
    plan: IndexPlan,
    *,
    progress: Callable[[int], None] = lambda count: None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Index all documents of `corpus`, and return their number. Raise EngineError when the engine's count differs.

    An index that an earlier call built is deleted first. An index that Querylift did not build raises SettingsError,
    unless `plan.replace` is set. `progress` is called with the number of documents so far.
    """
    body = make_index_body(plan, corpus.language)
    _try_creating_index(engine, plan.name, body)
    _delete_old_index(engine, plan)
    engine.call("PUT", f"/{plan.name}", body)
    document_count = _send_all_documents(engine, corpus, plan.name, progress=progress, sleep=sleep)
    engine.call("PUT", f"/{plan.name}/_settings", {"index": {"refresh_interval": "1s"}})
    engine.call("POST", f"/{plan.name}/_refresh")
    _check_document_count(engine, corpus, plan.name, document_count)
    return document_count


def make_index_body(plan: IndexPlan, language: str) -> dict[str, Any]:
    """Return the settings and mappings of an index with title and text.

    Both together are in `CONTENTS_FIELD`, which has term vectors for the generator `feedback`.
    """
    analyzer = plan.analyzer or ANALYZERS.get(language)
    if analyzer is None:
        raise SettingsError(
            f"the corpus's language is {language!r}, which has no default analyzer; name one with --analyzer"
        )
    text = {"type": "text", "analyzer": analyzer, "copy_to": CONTENTS_FIELD}
    return {
        "settings": {
            "index": {
                "number_of_shards": 1,
                "number_of_replicas": 0,
                "refresh_interval": "-1",
                "similarity": {"default": {"type": "BM25", "k1": plan.k1, "b": plan.b}},
            }
        },
        "mappings": {
            "dynamic": False,
            "_meta": {"built_by": "querylift", "analyzer": analyzer, "k1": plan.k1, "b": plan.b},
            "properties": {
                "title": text,
                "text": text,
                CONTENTS_FIELD: {"type": "text", "analyzer": analyzer, "term_vector": "yes"},
            },
        },
    }


def _try_creating_index(engine: Engine, name: str, body: dict[str, Any]) -> None:
    """Create and delete an empty index with this body. Raise EngineError when the engine refuses it.

    So an error is known before the old index is deleted.
    """
    trial_index = f"{name}-querylift-trial"
    engine.call("PUT", f"/{trial_index}", body)
    engine.call("DELETE", f"/{trial_index}")


def _delete_old_index(engine: Engine, plan: IndexPlan) -> None:
    if not engine.has_index(plan.name):
        return
    mappings = engine.call("GET", f"/{plan.name}/_mapping")
    built_by_querylift = all(
        mapping["mappings"].get("_meta", {}).get("built_by") == "querylift" for mapping in mappings.values()
    )
    if plan.name not in mappings:
        raise SettingsError(f"{plan.name} is an alias; name an index of its own with --index")
    if not built_by_querylift and not plan.replace:
        raise SettingsError(
            f"index {plan.name} was not built by querylift; name another, or add --replace to delete it first"
        )
    engine.call("DELETE", f"/{plan.name}")


def _send_all_documents(
    engine: Engine,
    corpus: DocumentSource,
    name: str,
    *,
    progress: Callable[[int], None],
    sleep: Callable[[float], None],
) -> int:
    """Send all documents and return their number. Documents that the engine had no room for are sent again.

    Each round waits twice as long as the one before.
    """
    document_count = 0

    def iter_counted_documents() -> Iterator[Document]:
        nonlocal document_count
        for document in corpus.iter_documents():
            document_count += 1
            progress(document_count)
            yield document

    retry_ids = _send_documents(engine, name, iter_counted_documents())
    for attempt in range(_MAX_RETRIES):
        if not retry_ids:
            break
        sleep(2.0**attempt)
        retry_documents = (document for document in corpus.iter_documents() if document.doc_id in retry_ids)
        retry_ids = _send_documents(engine, name, retry_documents)
    return document_count


def _send_documents(engine: Engine, name: str, documents: Iterable[Document]) -> frozenset[str]:
    """Return the ids that the engine had no room for. Raise EngineError for a document that it refused for good."""
    retry_ids = set()
    actions = (
        make_index_action(name, document.doc_id, {"title": document.title, "text": document.text})
        for document in documents
    )
    for ok, item in engine.send_bulk_actions(actions):
        if ok:
            continue
        failure = next(iter(item.values()))
        if failure.get("status") not in _RETRIED_STATUSES:
            error = failure.get("error", {})
            reason = error.get("reason") if isinstance(error, dict) else error
            raise EngineError(f"document {failure.get('_id')!r} was refused: {reason}")
        retry_ids.add(str(failure["_id"]))
    return frozenset(retry_ids)


def _check_document_count(engine: Engine, corpus: DocumentSource, name: str, expected_count: int) -> None:
    indexed_count = engine.count_documents(name)
    if indexed_count != expected_count:
        missing_ids = ", ".join(islice(_iter_missing_ids(engine, corpus, name), 10))
        raise EngineError(
            f"{expected_count} documents were read and {indexed_count} are in {name}; the first missing: "
            + (missing_ids or "none, so the index holds documents of another source")
        )


def _iter_missing_ids(engine: Engine, corpus: DocumentSource, name: str) -> Iterator[str]:
    """Stream the ids that the corpus has and the index has not."""
    doc_ids = (document.doc_id for document in corpus.iter_documents())
    while batch := list(islice(doc_ids, _IDS_PER_REQUEST)):
        answer = engine.call("POST", f"/{name}/_mget", {"ids": batch}, params={"_source": "false"})
        yield from (document["_id"] for document in answer["docs"] if not document.get("found"))
