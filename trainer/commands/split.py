"""`querylift train split`: judged queries in two, those that teach and those that choices are made on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.index_tools.corpora.loading import Corpus
    from querylift.index_tools.corpora.trec_files import Document, Qrels, Queries

TRAIN, HELD = "train", "held"


@click.command()
@click.argument("corpus")
@click.option("--split", "name", default=None, help="Split to cut [default: the only one].")
@click.option("--hold-out", type=click.IntRange(1), default=200, show_default=True, help="Queries to hold out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which ones.")
@click.option(
    "--apart-from", multiple=True, metavar="CORPUS:SPLIT", help="Leave out of 'train' what these ask too; repeatable."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="BEIR folder to write; it links to the documents of a BEIR folder, and holds a copy of others.",
)
def split(corpus: str, name: str | None, hold_out: int, seed: int, apart_from: tuple[str, ...], out: Path) -> None:
    """Cut the judged queries of CORPUS into splits "train" and "held", as a folder that every stage takes as a corpus.

    Weights, lengths and recipes are chosen on the held-out ones: the evaluation split stays unseen until it is reported.
    Queries of "train" that are held out too, or nearly, are left out, as are those of --apart-from.
    """
    from querylift.index_tools.corpora.loading import ABOUT, load
    from querylift.trainer.commands.arguments import check_split
    from querylift.trainer.commands.held_out import held_out_of
    from querylift.trainer.leaks import HeldOut, leaked, leaks
    from querylift.trainer.manifest import Manifest

    loaded = load(corpus)
    check_split(loaded, name)
    qrels = loaded.qrels(name)
    queries = {q: text for q, text in loaded.queries(name).items() if any(g > 0 for g in qrels.get(q, {}).values())}
    held, rest = _cut(queries, hold_out, corpus=loaded.name, seed=seed)
    apart = held_out_of(apart_from)
    left_out = leaked(leaks(rest.items(), [*apart, HeldOut(HELD, loaded.name, held)], corpus=loaded.name))
    train = {q: text for q, text in rest.items() if q not in left_out}
    settings: dict[str, Any] = {"corpus": loaded.name, "split": name, "hold_out": hold_out}
    settings |= {"queries_sha256": _digest(queries), "qrels_sha256": _digest(qrels)}
    settings |= {"apart_from": sorted(one.name for one in apart)}
    settings |= {"apart_from_sha256": _digest(sorted(_digest(one.queries) for one in apart))}
    with Manifest(out, stage="split", inputs={}, settings=settings, seed=seed, folder=True).running() as results:
        _write(out, HELD, held, qrels)
        _write(out, TRAIN, train, qrels)
        _write_lines(out / ABOUT, [json.dumps({"language": loaded.language, "relevant_from": loaded.relevant_from})])
        _give_documents(corpus, loaded, out)
        results.update(train=len(train), held=len(held), left_out=len(left_out))
    click.echo(f"{out}: {len(train)} queries to train on, {len(held)} held out, {len(left_out)} left out as too alike")


def _cut(queries: Queries, hold_out: int, *, corpus: str, seed: int) -> tuple[Queries, Queries]:
    """The queries that are held out, and the rest."""
    if hold_out >= len(queries):
        raise SettingsError(f"--hold-out is {hold_out}, and {corpus} has {len(queries)} judged queries; lower it")
    drawn = sorted(queries)
    random.Random(seed).shuffle(drawn)
    return {q: queries[q] for q in drawn[:hold_out]}, {q: queries[q] for q in drawn[hold_out:]}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write(out: Path, name: str, queries: Queries, qrels: Qrels) -> None:
    lines = [json.dumps({"_id": q, "text": text}, ensure_ascii=False) for q, text in queries.items()]
    judged = [f"{q}\t{doc}\t{grade}" for q in queries for doc, grade in qrels[q].items()]
    _write_lines(out / f"queries.{name}.jsonl", lines)
    _write_lines(out / f"qrels.{name}.tsv", ["query-id\tcorpus-id\tscore", *judged])


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    from querylift.index_tools.corpora.trec_files import replacing

    with replacing(path) as stream:
        for line in lines:
            stream.write(f"{line}\n".encode())


def _give_documents(spec: str, corpus: Corpus, out: Path) -> None:
    """Link to the documents of a BEIR folder, where it has some; write those of any other corpus, once."""
    source = Path(spec.removeprefix("beir:"))
    files = [out / name for name in ("corpus.jsonl", "corpus.jsonl.gz")]
    if any(file.exists() for file in files):
        return
    if spec == "builtin" or not source.is_dir():
        _write_lines(files[0], map(_line, corpus.documents()))
        return
    for file in files:
        if (source / file.name).is_file():
            file.unlink(missing_ok=True)  # a link to what is gone
            file.symlink_to((source / file.name).resolve())


def _line(document: Document) -> str:
    return json.dumps({"_id": document.doc_id, "title": document.title, "text": document.text}, ensure_ascii=False)
