"""`querylift train split`: judged queries in two, those that teach and those that choices are made on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plugin.errors import SettingsError

if TYPE_CHECKING:
    from index_tools.trec import Qrels, Queries

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
    "--out", type=click.Path(path_type=Path), required=True, help="BEIR folder to write; documents are linked to."
)
def split(corpus: str, name: str | None, hold_out: int, seed: int, apart_from: tuple[str, ...], out: Path) -> None:
    """Cut the judged queries of CORPUS into splits "train" and "held", as a folder that every stage takes as a corpus.

    Weights, lengths and recipes are chosen on the held-out ones: the evaluation split stays unseen until it is reported.
    Queries of "train" that are held out too, or nearly, are left out, as are those of --apart-from.
    """
    from index_tools.corpora import load
    from trainer.commands.guarded import queries_of
    from trainer.guard import leaked, leaks
    from trainer.manifest import Manifest

    loaded = load(corpus)
    qrels = loaded.qrels(name)
    queries = {q: text for q, text in loaded.queries(name).items() if any(g > 0 for g in qrels.get(q, {}).values())}
    if hold_out >= len(queries):
        raise SettingsError(f"--hold-out is {hold_out}, and {loaded.name} has {len(queries)} judged queries; lower it")
    drawn = sorted(queries)
    random.Random(seed).shuffle(drawn)
    held = {q: queries[q] for q in drawn[:hold_out]}
    kept_apart = {**queries_of(apart_from), f"{loaded.name}:{HELD}": held}
    rest = {q: queries[q] for q in drawn[hold_out:]}
    left_out = leaked(leaks(list(rest.items()), kept_apart, corpus=loaded.name))
    train = {q: text for q, text in rest.items() if q not in left_out}
    settings = {"corpus": loaded.name, "split": name, "hold_out": hold_out, "apart_from": sorted(kept_apart)}
    with Manifest(out, stage="split", inputs={}, settings=settings, seed=seed).running() as results:
        _write(out, HELD, held, qrels)
        _write(out, TRAIN, train, qrels)
        _link_documents(Path(corpus.removeprefix("beir:")), out)
        results.update(train=len(train), held=len(held), left_out=len(left_out))
    click.echo(f"{out}: {len(train)} queries to train on, {len(held)} held out, {len(left_out)} left out as too alike")


def _write(out: Path, name: str, queries: Queries, qrels: Qrels) -> None:
    from index_tools.trec import replacing

    lines = [json.dumps({"_id": q, "text": text}, ensure_ascii=False) for q, text in queries.items()]
    judged = [f"{q}\t{doc}\t{grade}" for q in queries for doc, grade in qrels[q].items()]
    for file, rows in (
        (f"queries.{name}.jsonl", lines),
        (f"qrels.{name}.tsv", ["query-id\tcorpus-id\tscore", *judged]),
    ):
        with replacing(out / file) as stream:
            stream.write("".join(f"{row}\n" for row in rows).encode())


def _link_documents(source: Path, out: Path) -> None:
    """Documents of a BEIR folder are linked to; those of other corpora are not needed to train or to measure."""
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (source / name).is_file() and not (out / name).exists():
            (out / name).symlink_to((source / name).resolve())
