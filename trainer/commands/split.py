"""`querylift train split`: split judged queries in two, to train on and to choose settings on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from querylift.plugin.files import compute_json_digest
from querylift.trainer.training_config import HeldOutBy

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus
    from querylift.index_tools.corpora.records import Qrels, Queries
    from querylift.trainer.query_split import QueryParts


@click.command()
@click.argument("corpus")
@click.option("--split", "split_name", default=None, help="Split of CORPUS to cut [default: its only one].")
@click.option(
    "--by",
    type=click.Choice(get_args(HeldOutBy)),
    default="query",
    show_default=True,
    help="Unit that is held out: single queries, or groups of queries that share relevant documents.",
)
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
    corpus: str,
    split_name: str | None,
    by: HeldOutBy,
    hold_out: int,
    seed: int,
    apart_from: tuple[str, ...],
    out: Path,
) -> None:
    """Split the judged queries of CORPUS into "train" and "held".

    The result is a folder that every stage accepts as a corpus. Choose weights, lengths and other settings on "held", so that
    the evaluation split stays unseen until you report on it. Queries of "train" that are nearly the same as a query of "held"
    or --apart-from are left out.

    With --by document, no query of "train" has a relevant document in common with "held" or --apart-from. The number of
    held-out queries is then as near to --hold-out as the groups allow.
    """
    from querylift.index_tools.corpora.beir_corpus import CORPUS_ABOUT_FILE
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.trainer import query_split
    from querylift.trainer.commands.arguments import check_split
    from querylift.trainer.commands.held_out import load_held_out_document_ids, load_held_out_splits
    from querylift.trainer.manifest import Manifest

    loaded_corpus = load_corpus(corpus)
    check_split(loaded_corpus, split_name)
    judged = query_split.read_judged_split(loaded_corpus, split_name)
    apart_splits = load_held_out_splits(apart_from, by=by)
    held_ids = query_split.choose_held_queries(judged, hold_out, by=by, seed=seed)
    parts = query_split.part_queries(judged, held_ids, apart_splits, by=by)
    sharing = query_split.count_sharing_queries(judged, parts, load_held_out_document_ids(apart_from))
    settings: dict[str, Any] = {
        "corpus": loaded_corpus.name,
        "split": split_name,
        "hold_out": hold_out,
        # Its absence means "query", so that a folder that was written before there was the setting is accepted.
        **({"by": by} if by == "document" else {}),
        "queries_sha256": compute_json_digest(judged.queries),
        "qrels_sha256": compute_json_digest(judged.qrels),
        "apart_from": sorted(apart.name for apart in apart_splits),
        "apart_from_sha256": compute_json_digest(sorted(compute_json_digest(apart.queries) for apart in apart_splits)),
    }
    about = {"language": loaded_corpus.language, "relevant_from": loaded_corpus.relevant_from}
    manifest = Manifest(out, stage="split", inputs={}, settings=settings, seed=seed, is_folder=True)
    with manifest.record_run() as results:
        _write_split(out, query_split.HELD, parts.held, judged.qrels)
        _write_split(out, query_split.TRAIN, parts.train, judged.qrels)
        _write_lines(out / CORPUS_ABOUT_FILE, [json.dumps(about)])
        _link_or_copy_documents(corpus, loaded_corpus, out)
        results |= {"train": len(parts.train), "held": len(parts.held), "left_out": parts.alike_count}
        results |= {"left_out_by_document": parts.sharing_count, "sharing_documents": sharing}
    click.echo(_format_summary(out, parts, sharing, hold_out=hold_out))


def _format_summary(out: Path, parts: QueryParts, sharing: Mapping[str, int], *, hold_out: int) -> str:
    held = f"{len(parts.held)} held out"
    if len(parts.held) != hold_out:
        held += f" (--hold-out is {hold_out}; groups of queries that share documents stay whole)"
    left_out = f"{parts.alike_count} left out as too alike"
    if parts.sharing_count:
        left_out += f", {parts.sharing_count} for a document that they share with a held-out query"
    lines = [f"{out}: {len(parts.train)} queries to train on, {held}, {left_out}"]
    lines += [
        f"{count} queries of {split_name} share a relevant document with a train query; --by document keeps them apart"
        for split_name, count in sharing.items()
    ]
    return "\n".join(lines)


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
