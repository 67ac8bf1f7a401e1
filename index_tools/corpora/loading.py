"""Documents with questions and judgments, from the four places where people have them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any, TypeAlias

from querylift.index_tools.corpora import builtin
from querylift.index_tools.corpora.trec_files import (
    Document,
    Qrels,
    Queries,
    first_character,
    iter_qrels,
    json_id,
    json_text,
    read_jsonl,
    read_lines,
    read_qrels,
    read_topics,
)
from querylift.plugin.errors import DataError, MissingExtra, SettingsError

KINDS = (
    "'builtin', a BEIR folder ('beir:PATH' or a path), TREC files "
    "('trec:FOLDER' or 'trec:documents=FILE,topics=FILE,qrels=FILE'), or an ir_datasets id ('ir:ID')"
)
ALL = "all"
"""The split of a corpus whose questions are not split."""
ABOUT = "about.json"
"""The file of a BEIR folder that says what the others cannot: {"language": "zh", "relevant_from": 2}, either or both."""

Judged: TypeAlias = "tuple[Queries, Qrels]"


@dataclass(frozen=True)
class Corpus:
    """Documents, and questions about them in splits. Nothing is read before it is asked for, nor kept afterwards."""

    name: str
    read_documents: Callable[[], Iterator[Document]] = field(repr=False)
    read_splits: Mapping[str, Callable[[], Judged]] = field(repr=False)
    language: str = "en"
    """'zh' is indexed with the engine's `cjk` analyzer."""
    relevant_from: int = 1
    """The lowest grade that counts as relevant where a measure knows only yes and no."""

    def documents(self) -> Iterator[Document]:
        """Stream the documents; empty ones are among them. A broken line raises DataError when it is reached."""
        return self.read_documents()

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits: none where there are no questions."""
        return tuple(self.read_splits)

    def queries(self, split: str | None = None) -> Queries:
        """Read the questions of a split, judged or not; None means the only one. Raises SettingsError where it is not there."""
        return self._read(split)[0]

    def qrels(self, split: str | None = None) -> Qrels:
        """Read the judgments of the questions of a split, empty where nothing is judged; `split` as in `queries`."""
        return self._read(split)[1]

    def _read(self, split: str | None) -> Judged:
        names = self.splits()
        if not names:
            raise SettingsError(f"{self.name!r} has no questions; name a corpus that has")
        if split is None and len(names) > 1:
            raise SettingsError(f"{self.name!r} has several splits: {', '.join(names)}; name one of them")
        name = names[0] if split is None else split
        if name not in self.read_splits:
            raise SettingsError(f"{self.name!r} has no split {name!r}; its splits are {', '.join(names)}")
        return self.read_splits[name]()


def load(spec: str, *, language: str | None = None, relevant_from: int | None = None) -> Corpus:
    """Open a corpus: `builtin`, `beir:PATH` or a path, `trec:PATH`, or `ir:ID`.

    `language` and `relevant_from` replace what the corpus says of itself: 'en' and 1, a BEIR folder what its about.json says,
    an ir_datasets id its own language, and 2 for the passages of TREC Deep Learning. Raises SettingsError for any other
    spec, and for files that are missing.
    """
    corpus = _open(spec)
    return replace(
        corpus,
        language=corpus.language if language is None else language,
        relevant_from=corpus.relevant_from if relevant_from is None else relevant_from,
    )


def load_split(spec: str) -> tuple[Corpus, str]:
    """The corpus and the split that CORPUS:SPLIT names; CORPUS alone where it has one split. Raises SettingsError."""
    head, _, split = spec.rpartition(":")
    if head and head not in _OPENERS:
        return load(head), split
    corpus = load(spec)
    if len(corpus.splits()) != 1:
        known = ", ".join(corpus.splits()) or "none: it has no questions"
        raise SettingsError(f"{spec!r} names no split; write {spec}:SPLIT, its splits are {known}")
    return corpus, corpus.splits()[0]


def _open(spec: str) -> Corpus:
    kind, colon, rest = spec.partition(":")
    if spec == "builtin":
        return _builtin()
    if colon and rest and kind in _OPENERS:
        return _OPENERS[kind](rest)
    if _corpus_file(Path(spec)) is not None or any(Path(spec).glob("queries*.jsonl*")):
        return _beir(spec)
    raise SettingsError(f"no corpus {spec!r}; name {KINDS}")


def _builtin() -> Corpus:
    return Corpus("builtin", builtin.documents, {ALL: lambda: (builtin.queries(), builtin.qrels())})


# --- splits in files: BEIR and TREC


def _splits(topics: Mapping[str, Path], qrels: Mapping[str, Path]) -> dict[str, Callable[[], Judged]]:
    """Pair the files of each split. The file of split '' serves all the splits that have none of their own."""
    names = sorted({*topics, *qrels} - {""})
    if "" in topics and ("" in qrels or not names):
        names = ["", *names]
    return {name or ALL: partial(_read_split, name, topics, qrels) for name in names}


def _read_split(name: str, topics: Mapping[str, Path], qrels: Mapping[str, Path]) -> Judged:
    own_topics, own_qrels = topics.get(name), qrels.get(name)
    topics_path, qrels_path = own_topics or topics.get(""), own_qrels or qrels.get("")
    if topics_path is None:
        raise SettingsError(f"{str(qrels_path)!r} judges queries that no file holds; add the queries of split {name!r}")
    queries = read_topics(topics_path)
    judged = read_qrels(qrels_path) if qrels_path else {}
    if own_qrels:
        _check_queries(own_qrels, queries, topics_path)
    if own_topics is None:
        queries = {query_id: text for query_id, text in queries.items() if query_id in judged}
    return queries, {query_id: grades for query_id, grades in judged.items() if query_id in queries}


def _check_queries(qrels_path: Path, queries: Queries, topics_path: Path) -> None:
    """Refuse a judged query without text: no search is made for it, and it would count as one that found nothing."""
    for number, qrel in iter_qrels(qrels_path):
        if qrel.query_id not in queries:
            problem = f"query {qrel.query_id!r} is judged but not in {topics_path}"
            raise DataError(qrels_path, number, f"{problem}; add its text or remove its judgments")


def _split_files(paths: Iterable[Path], pattern: str) -> dict[str, Path]:
    """Return the file of each split, '' for the one that names none. Raises SettingsError where two files claim a split."""
    found: dict[str, Path] = {}
    for path in sorted(paths):
        match = re.fullmatch(pattern, path.name)
        if match is None:
            continue
        name = match["split"] or ""
        if name in found:
            raise SettingsError(f"{str(found[name])!r} and {str(path)!r} are files of one split; keep one of them")
        found[name] = path
    return found


# --- BEIR


def _beir(path: str) -> Corpus:
    """Open a folder with `corpus.jsonl`, `queries[.SPLIT].jsonl`, `qrels[.SPLIT].tsv` or `qrels/SPLIT.tsv`, any as `.gz`.

    BEIR says nothing of language and grades; an `about.json` beside them may (see `ABOUT`).
    """
    folder = Path(path)
    if not folder.is_dir():
        raise SettingsError(f"no corpus.jsonl in {path!r}; name a folder in BEIR's layout")
    topics = _split_files(folder.iterdir(), r"queries(\.(?P<split>.+?))?\.jsonl(\.gz)?")
    if not topics and _corpus_file(folder) is None:
        raise SettingsError(f"no corpus.jsonl in {path!r}; name a folder in BEIR's layout")
    splits = _splits(topics, _beir_qrels(folder))
    return Corpus(folder.resolve().name, partial(_beir_documents, folder), splits, **_about(folder / ABOUT))


def _beir_documents(folder: Path) -> Iterator[Document]:
    """The documents, which only indexing needs: queries and judgments are enough to measure an index that there is."""
    documents = _corpus_file(folder)
    if documents is None:
        raise SettingsError(f"no corpus.jsonl in {str(folder)!r}; measuring needs none, but indexing does")
    yield from _distinct(documents)


def _beir_qrels(folder: Path) -> dict[str, Path]:
    inner = folder / "qrels"
    beside = _split_files(folder.iterdir(), r"qrels(\.(?P<split>.+?))?\.tsv(\.gz)?")
    inside = _split_files(inner.iterdir() if inner.is_dir() else (), r"(?P<split>.+?)\.tsv(\.gz)?")
    for name in beside.keys() & inside.keys():
        raise SettingsError(f"{str(beside[name])!r} and {str(inside[name])!r} are files of one split; keep one of them")
    return beside | inside


def _about(path: Path) -> dict[str, Any]:
    """What the file says of the corpus, in a Corpus's words; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error}); mend it, or remove it") from None
    types = {"language": str, "relevant_from": int}
    if not isinstance(said, dict) or any(types.get(name) is not type(value) for name, value in said.items()):
        raise SettingsError(
            f'{path} is not like {{"language": "en", "relevant_from": 1}}; give either or both of the two'
        )
    if said.get("relevant_from", 1) < 1:
        raise SettingsError(
            f"relevant_from is {said['relevant_from']} in {path}; give the lowest relevant grade, 1 or more"
        )
    return said


def _corpus_file(folder: Path) -> Path | None:
    return next((path for path in (folder / "corpus.jsonl", folder / "corpus.jsonl.gz") if path.is_file()), None)


# --- TREC

_ROLE = re.compile(r"(?:documents|topics|qrels)=")


def _trec(rest: str) -> Corpus:
    return _trec_files(rest) if _ROLE.match(rest) else _trec_folder(Path(rest))


def _trec_folder(folder: Path) -> Corpus:
    """Open a folder with `documents.*`, `topics[.SPLIT].*` and `qrels[.SPLIT].*`; several `documents.*` are one corpus."""
    if not folder.is_dir():
        raise SettingsError(f"no folder {str(folder)!r}; name one that holds documents.*, topics.* and qrels.*")
    documents = sorted(path for path in folder.iterdir() if path.name.startswith("documents."))
    if not documents:
        raise SettingsError(f"no documents.* in {str(folder)!r}; name the documents documents.trec or documents.jsonl")
    topics, qrels = (
        _split_files(folder.iterdir(), rf"{role}(\.(?P<split>.+?))??(\.[^.]+)?(\.gz)?") for role in ("topics", "qrels")
    )
    return Corpus(folder.resolve().name, partial(_distinct, *documents), _splits(topics, qrels))


def _trec_files(rest: str) -> Corpus:
    files = {
        role: Path(path) for role, path in (part.split("=", 1) for part in re.split(rf",(?={_ROLE.pattern})", rest))
    }
    if "documents" not in files:
        raise SettingsError(f"no documents in 'trec:{rest}'; name {KINDS}")
    topics, qrels = ({"": files[role]} if role in files else {} for role in ("topics", "qrels"))
    return Corpus(files["documents"].name.split(".")[0], partial(_distinct, files["documents"]), _splits(topics, qrels))


# --- documents in files


def _distinct(*paths: Path) -> Iterator[Document]:
    """Stream documents. Two with one id raise DataError; to know, every id is kept, about 100 bytes for each."""
    seen: set[str] = set()
    for path in paths:
        for number, document in _iter_documents(path):
            if document.doc_id in seen:
                raise DataError(
                    path, number, f"document id {document.doc_id!r} comes twice; give every document its own"
                )
            seen.add(document.doc_id)
            yield document


def _iter_documents(path: Path) -> Iterator[tuple[int, Document]]:
    return _tagged_documents(path) if first_character(path) == "<" else _json_documents(path)


def _json_documents(path: Path) -> Iterator[tuple[int, Document]]:
    for number, row in read_jsonl(path):
        title = json_text(path, number, row, names=("title",)) if row.get("title") is not None else ""
        text = json_text(path, number, row, names=("text", "contents"))
        yield number, Document(json_id(path, number, row), title, text)


_DOCNO = re.compile(r"<docno>(.*?)</docno>", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<(title|headline|head|hl|ttl)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_TEXT = re.compile(r"<(text)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)


def _tagged_documents(path: Path) -> Iterator[tuple[int, Document]]:
    for number, body in _bodies(path):
        docno = _DOCNO.search(body)
        if docno is None or not docno[1].strip():
            raise DataError(path, number, "no <DOCNO> in this <DOC>; give every document an id")
        yield number, Document(docno[1].strip(), _plain(_TITLE, body), _plain(_TEXT, body))


def _bodies(path: Path) -> Iterator[tuple[int, str]]:
    """Stream what stands between `<DOC>` and `</DOC>`, each on a line of its own, with the line that it starts on."""
    start, lines = 0, list[str]()
    for number, line in read_lines(path, blank=True):
        tag = line.strip().lower()
        if tag == "<doc>" and not start:
            start, lines = number, []
        elif tag == "</doc>" and start:
            yield start, "\n".join(lines)
            start = 0
        elif start and tag != "<doc>":
            lines.append(line)
        elif tag:
            raise DataError(path, number, "not between <DOC> and </DOC>; put each tag on a line of its own")
    if start:
        raise DataError(path, start, "this <DOC> has no </DOC>; the file seems to be cut off")


def _plain(pattern: re.Pattern[str], body: str) -> str:
    return "\n".join(unescape(_TAG.sub(" ", found[2])).strip() for found in pattern.finditer(body))


# --- ir_datasets

_DEEP_LEARNING_PASSAGES = re.compile(r"msmarco-passage(-v2)?/trec-dl-")
"""NIST grades passages 0-3 and counts 1, 'related', as not relevant; for documents 1 is relevant."""


def _ir_datasets(dataset_id: str) -> Corpus:
    dataset = _dataset(dataset_id)
    if not dataset.has_docs():
        raise SettingsError(f"'ir:{dataset_id}' has no documents; name a dataset that has")
    return Corpus(
        dataset_id,
        lambda: map(_document, dataset.docs_iter()),
        {ALL: partial(_judged, dataset)} if dataset.has_queries() else {},
        language=dataset.docs_lang() or "en",
        relevant_from=2 if _DEEP_LEARNING_PASSAGES.match(dataset_id) else 1,
    )


def _dataset(dataset_id: str) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtra("ir_datasets", "index") from error
    try:
        return ir_datasets.load(dataset_id)
    except KeyError as error:
        raise SettingsError(
            f"ir_datasets knows no {dataset_id!r}; its ids are listed on https://ir-datasets.com"
        ) from error


def _document(doc: Any) -> Document:
    title = str(getattr(doc, "title", None) or "").strip()
    text = _default_text(doc, names=("text", "body", "contents"))
    # The default text of a document starts with its title where it has one.
    return Document(doc.doc_id, title, text.removeprefix(title).strip() if title else text)


def _judged(dataset: Any) -> Judged:
    """Read queries and judgments; the judgments of queries that the dataset does not hold are left out."""
    queries = {
        query.query_id: _default_text(query, names=("text", "title", "query")) for query in dataset.queries_iter()
    }
    qrels: Qrels = {}
    for qrel in dataset.qrels_iter() if dataset.has_qrels() else ():
        if qrel.query_id in queries:
            qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = qrel.relevance
    return queries, qrels


def _default_text(record: Any, *, names: Iterable[str]) -> str:
    if hasattr(record, "default_text"):
        return str(record.default_text())
    found = next((getattr(record, name) for name in names if hasattr(record, name)), None)
    if found is None:
        raise SettingsError(f"a {type(record).__name__} of this dataset holds no text; name a dataset of texts")
    return str(found)


_OPENERS: Mapping[str, Callable[[str], Corpus]] = {
    "beir": _beir,
    "trec": _trec,
    "ir": _ir_datasets,
    "irds": _ir_datasets,
}
