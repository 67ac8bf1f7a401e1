"""`querylift train split`: split judged queries in two, to train on and to choose settings on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import compute_json_digest

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus
    from querylift.index_tools.corpora.records import Qrels, Queries

TRAIN, HELD = "train", "held"


@click.command()
@click.argument("corpus")
@click.option("--split", "split_name", default=None, help="Split of CORPUS to cut [default: its only one].")
@click.option(
    "--hold-out", type=click.IntRange(1), default=200, show_default=True, help="Number of queries to hold out."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed for the random choice of the held-out queries."
)
@click.option(
    "--apart-from",
    multiple=True,
    metavar="CORPUS:SPLIT",
    help="Leave the queries of this split out of 'train', and those like them; repeatable.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="BEIR folder to write. It links to the documents of a BEIR folder, and copies those of any other corpus.",
)
def split(
    corpus: str, split_name: str | None, hold_out: int, seed: int, apart_from: tuple[str, ...], out: Path
) -> None:
    """Split the judged queries of CORPUS into "train" and "held".

    The result is a folder that every stage accepts as a corpus. Choose weights, lengths and other settings on "held", so that
    the evaluation split stays unseen until you report on it. Queries of "train" that are nearly the same as a query of "held"
    or --apart-from are left out.
    """
    from querylift.index_tools.corpora.beir_corpus import CORPUS_ABOUT_FILE
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.trainer.commands.arguments import check_split
    from querylift.trainer.commands.held_out import load_held_out_splits
    from querylift.trainer.leaks import HeldOutSplit, collect_leaked_ids, find_leaks
    from querylift.trainer.manifest import Manifest

    loaded_corpus = load_corpus(corpus)
    check_split(loaded_corpus, split_name)
    qrels = loaded_corpus.read_qrels(split_name)
    queries = {
        query_id: text
        for query_id, text in loaded_corpus.read_queries(split_name).items()
        if any(grade > 0 for grade in qrels.get(query_id, {}).values())
    }
    held, candidates = _hold_out_queries(queries, hold_out, corpus=loaded_corpus.name, seed=seed)
    apart_splits = load_held_out_splits(apart_from)
    held_out_splits = [*apart_splits, HeldOutSplit(HELD, loaded_corpus.name, held)]
    leaked_ids = collect_leaked_ids(find_leaks(candidates.items(), held_out_splits, corpus=loaded_corpus.name))
    train = {query_id: text for query_id, text in candidates.items() if query_id not in leaked_ids}
    settings: dict[str, Any] = {
        "corpus": loaded_corpus.name,
        "split": split_name,
        "hold_out": hold_out,
        "queries_sha256": compute_json_digest(queries),
        "qrels_sha256": compute_json_digest(qrels),
        "apart_from": sorted(apart.name for apart in apart_splits),
        "apart_from_sha256": compute_json_digest(sorted(compute_json_digest(apart.queries) for apart in apart_splits)),
    }
    about = {"language": loaded_corpus.language, "relevant_from": loaded_corpus.relevant_from}
    manifest = Manifest(out, stage="split", inputs={}, settings=settings, seed=seed, is_folder=True)
    with manifest.record_run() as results:
        _write_split(out, HELD, held, qrels)
        _write_split(out, TRAIN, train, qrels)
        _write_lines(out / CORPUS_ABOUT_FILE, [json.dumps(about)])
        _link_or_copy_documents(corpus, loaded_corpus, out)
        results.update(train=len(train), held=len(held), left_out=len(leaked_ids))
    click.echo(
        f"{out}: {len(train)} queries to train on, {len(held)} held out, {len(leaked_ids)} left out as too alike"
    )


def _hold_out_queries(queries: Queries, hold_out: int, *, corpus: str, seed: int) -> tuple[Queries, Queries]:
    """Return `hold_out` random queries, and the others."""
    if hold_out >= len(queries):
        raise SettingsError(f"--hold-out is {hold_out}, and {corpus} has {len(queries)} judged queries; lower it")
    query_ids = sorted(queries)
    random.Random(seed).shuffle(query_ids)
    held = {query_id: queries[query_id] for query_id in query_ids[:hold_out]}
    return held, {query_id: queries[query_id] for query_id in query_ids[hold_out:]}


def _write_split(out: Path, name: str, queries: Queries, qrels: Qrels) -> None:
    """Write the queries of a split and their judgments, in the BEIR format."""
    query_lines = [
        json.dumps({"_id": query_id, "text": text}, ensure_ascii=False) for query_id, text in queries.items()
    ]
    qrels_lines = [
        f"{query_id}\t{doc_id}\t{grade}" for query_id in queries for doc_id, grade in qrels[query_id].items()
    ]
    _write_lines(out / f"queries.{name}.jsonl", query_lines)
    _write_lines(out / f"qrels.{name}.tsv", ["query-id\tcorpus-id\tscore", *qrels_lines])


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    from querylift.plugin.files import open_for_replacement

    with open_for_replacement(path) as stream:
        for line in lines:
            stream.write(f"{line}\n".encode())


def _link_or_copy_documents(spec: str, corpus: Corpus, out: Path) -> None:
    """Link to the documents of a BEIR folder, or write those of any other corpus.

    Do nothing when the corpus has no documents, or `out` has them.
    """
    source = Path(spec.removeprefix("beir:"))
    files = [out / name for name in ("corpus.jsonl", "corpus.jsonl.gz")]
    if not corpus.has_documents or any(file.exists() for file in files):
        return
    if spec == "builtin" or not source.is_dir():
        rows = ({"_id": doc.doc_id, "title": doc.title, "text": doc.text} for doc in corpus.iter_documents())
        _write_lines(files[0], (json.dumps(row, ensure_ascii=False) for row in rows))
        return
    for file in files:
        if (source / file.name).is_file():
            file.unlink(missing_ok=True)  # it may be a broken link
            file.symlink_to((source / file.name).resolve())
