"""Put a corpus into an index, whole, with the analyzer and the BM25 parameters asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from querylift.index_tools.corpora.trec_files import Document
from querylift.index_tools.engine import Engine, action
from querylift.plugin.errors import EngineError, SettingsError

FIELD = "contents"
"""The analysed field that holds title and text together, with term vectors; what evaluation searches."""
ANALYZERS = {"en": "english", "zh": "cjk", "ja": "cjk", "ko": "cjk"}
"""The analyzer of a corpus's language; the others are asked for by name."""
_RETRIED = frozenset({429, 502, 503, 504})
_ROUNDS = 5
_BULK_IDS = 1000


class Source(Protocol):
    """What is indexed: a corpus, or anything that gives its documents as often as it is asked."""

    @property
    def language(self) -> str: ...

    def documents(self) -> Iterator[Document]: ...


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """How an index is to be built. `analyzer` None follows the corpus's language; `k1` and `b` are BM25's."""

    name: str
    analyzer: str | None = None
    k1: float = 1.2
    b: float = 0.75
    replace: bool = False

    def __post_init__(self) -> None:
        if self.k1 < 0:
            raise SettingsError(f"k1 is {self.k1}; use 0 or more, usually 0.9 to 1.2")
        if not 0 <= self.b <= 1:
            raise SettingsError(f"b is {self.b}; use a number from 0 to 1, usually 0.4 to 0.75")


def build(
    engine: Engine,
    corpus: Source,
    plan: IndexPlan,
    *,
    progress: Callable[[int], None] = lambda count: None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Index every document of `corpus` and return how many; the count in the engine is the same, or EngineError is raised.

    An index that an earlier call built is built anew. One that Querylift did not build is left alone, unless `plan`
    says to replace it. `progress` is called with each document's count so far.
    """
    body = index_body(plan, corpus.language)
    _try_out(engine, plan.name, body)
    _make_room(engine, plan)
    engine.call("PUT", f"/{plan.name}", body)
    read = _load(engine, corpus, plan.name, progress=progress, sleep=sleep)
    engine.call("PUT", f"/{plan.name}/_settings", {"index": {"refresh_interval": "1s"}})
    engine.call("POST", f"/{plan.name}/_refresh")
    _check_count(engine, corpus, plan.name, read)
    return read


def index_body(plan: IndexPlan, language: str) -> dict[str, Any]:
    """Settings and mappings: title and text, and both together in `FIELD` with term vectors for engine feedback."""
    analyzer = plan.analyzer or ANALYZERS.get(language)
    if analyzer is None:
        raise SettingsError(f"the corpus's language is {language!r} and has no analyzer here; name one with --analyzer")
    text = {"type": "text", "analyzer": analyzer, "copy_to": FIELD}
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
                FIELD: {"type": "text", "analyzer": analyzer, "term_vector": "yes"},
            },
        },
    }


def _try_out(engine: Engine, name: str, body: dict[str, Any]) -> None:
    """Make an empty index like it, so that what the engine will not build is known before anything is deleted."""
    trial = f"{name}-querylift-trial"
    engine.call("PUT", f"/{trial}", body)
    engine.call("DELETE", f"/{trial}")


def _make_room(engine: Engine, plan: IndexPlan) -> None:
    if not engine.exists(plan.name):
        return
    mappings = engine.call("GET", f"/{plan.name}/_mapping")
    ours = all(m["mappings"].get("_meta", {}).get("built_by") == "querylift" for m in mappings.values())
    if plan.name not in mappings:
        raise SettingsError(f"{plan.name} is an alias; name an index of its own with --index")
    if not ours and not plan.replace:
        raise SettingsError(
            f"index {plan.name} was not built by querylift; name another, or add --replace to delete it first"
        )
    engine.call("DELETE", f"/{plan.name}")


def _load(
    engine: Engine, corpus: Source, name: str, *, progress: Callable[[int], None], sleep: Callable[[float], None]
) -> int:
    """Send every document; those that the engine had no room for go again, each round after a longer wait."""
    read = 0

    def counted() -> Iterator[Document]:
        nonlocal read
        for document in corpus.documents():
            read += 1
            progress(read)
            yield document

    again = _send(engine, name, counted())
    for attempt in range(_ROUNDS):
        if not again:
            break
        sleep(2.0**attempt)
        again = _send(engine, name, (d for d in corpus.documents() if d.doc_id in again))
    return read


def _send(engine: Engine, name: str, documents: Iterable[Document]) -> frozenset[str]:
    """The ids that the engine had no room for. Raises EngineError for a document that it would never take."""
    again = set()
    for ok, item in engine.bulk(_action(name, document) for document in documents):
        if ok:
            continue
        failed = next(iter(item.values()))
        if failed.get("status") not in _RETRIED:
            reason = failed.get("error", {})
            detail = reason.get("reason") if isinstance(reason, dict) else reason
            raise EngineError(f"document {failed.get('_id')!r} was refused: {detail}")
        again.add(str(failed["_id"]))
    return frozenset(again)


def _action(name: str, document: Document) -> dict[str, Any]:
    return action(name, document.doc_id, {"title": document.title, "text": document.text})


def _check_count(engine: Engine, corpus: Source, name: str, read: int) -> None:
    found = engine.count(name)
    if found != read:
        missing = list(islice(_missing(engine, corpus, name), 10))
        named = ", ".join(missing) or "none, so the index holds documents of another source"
        raise EngineError(f"{read} documents were read and {found} are in {name}; the first missing: {named}")


def _missing(engine: Engine, corpus: Source, name: str) -> Iterator[str]:
    """Ids that the corpus has and the index has not."""
    ids = (document.doc_id for document in corpus.documents())
    while batch := list(islice(ids, _BULK_IDS)):
        answer = engine.call("POST", f"/{name}/_mget", {"ids": batch}, params={"_source": "false"})
        yield from (doc["_id"] for doc in answer["docs"] if not doc.get("found"))
