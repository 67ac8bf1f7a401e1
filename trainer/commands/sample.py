"""`querylift train sample`: what the student writes itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.index_tools.commands.options import progress
from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.arguments import prefixed

if TYPE_CHECKING:
    from querylift.trainer.candidates import Candidate
    from querylift.trainer.settings import SampleSettings


@click.command()
@click.argument("model")
@click.argument("queries", nargs=-1, required=True, metavar="QUERIES...")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File of candidates; begun again, it goes on."
)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, or the name of a packaged one.")
@click.option("--samples", type=click.IntRange(1), help="Passages for each query [default: the configuration's].")
@click.option("--temperature", type=click.FloatRange(0, 2), help="[default: the configuration's]")
@click.option("--greedy", is_flag=True, help="One passage for each query, the likeliest word each time.")
@click.option("--seed", type=click.IntRange(0), help="[default: the configuration's]")
@click.option("--limit", type=click.IntRange(1), help="Only the first queries.")
def sample(
    model: str,
    queries: tuple[str, ...],
    out: Path,
    config: Path | None,
    samples: int | None,
    temperature: float | None,
    greedy: bool,
    seed: int | None,
    limit: int | None,
) -> None:
    """Let MODEL, a folder or a name, write passages for QUERIES: CORPUS:SPLIT, or files of queries.

    With NAME=QUERIES the ids become NAME:id, so that those of several sources stay apart.
    They are candidates, to be scored and paired. With --greedy the file is what the model would serve:
    querylift evaluate --generator table:FILE takes it as it is.
    """
    from querylift.trainer.settings import load

    settings = load(config)
    changes = {"samples": samples, "temperature": 0.0 if greedy else temperature}
    if greedy and temperature:
        raise SettingsError(f"--greedy and --temperature {temperature:g} are both given; leave one out")
    options = settings.sample.model_copy(update={key: value for key, value in changes.items() if value is not None})
    asked = dict(list(read_queries(queries).items())[:limit])
    _write(model, asked, options, out=out, seed=settings.seed if seed is None else seed)


def read_queries(sources: tuple[str, ...]) -> dict[str, str]:
    """The queries of every source, by id: a file of queries, CORPUS:SPLIT, or CORPUS where it has one split.

    Raises SettingsError where one id stands for two queries.
    """
    found: dict[str, str] = {}
    for source in sources:
        prefix, place = prefixed(source)
        for query_id, text in _queries(place).items():
            if found.setdefault(prefix + query_id, text) != text:
                raise SettingsError(
                    f"query id {query_id!r} stands for two queries; write NAME={source} to tell them apart"
                )
    return found


def _queries(source: str) -> Mapping[str, str]:
    from querylift.index_tools.corpora.loading import load_split
    from querylift.index_tools.corpora.trec_files import read_topics

    if Path(source).is_file():
        return read_topics(Path(source))
    corpus, split = load_split(source)
    return corpus.queries(split)


def _write(model: str, queries: Mapping[str, str], options: SampleSettings, *, out: Path, seed: int) -> None:
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.student import models

    models.check_installed()
    models.quiet_libraries()
    from querylift.trainer.student.sampling import missing

    name = model if model in (models.PACKAGED, *models.MADE) else Path(model).resolve().name
    settings = {"model": name, **options.model_dump(exclude={"samples", "batch_size"})}
    inputs = models.read_for(model, name="model")
    manifest = Manifest(out, stage="sample", inputs=inputs, settings=settings, seed=seed, folder=False)
    with manifest.running() as results:
        todo = missing(queries, options, out=out, name=name, seed=seed)  # mends the file: nobody else may be writing
        if todo:
            _sample(model, todo, options, out=out, seed=seed)
        digest = hashlib.sha256(json.dumps(queries, sort_keys=True).encode()).hexdigest()
        results.update(written=len(todo), queries=len(queries), queries_sha256=digest)
    click.echo(f"{len(todo)} passages for {len(queries)} queries written to {out}")


def _sample(
    model: str, todo: Mapping[tuple[str, int], Candidate], options: SampleSettings, *, out: Path, seed: int
) -> None:
    from querylift.trainer.student import models
    from querylift.trainer.student.sampling import write_samples

    # Without fused attention: a step is one token long, and the plain products are faster for it.
    student, tokenizer = models.load(model, dtype="bfloat16", attention="eager", seed=seed)
    with progress("sampling", len(todo)) as advance:
        write_samples(student.to(models.device()), tokenizer, todo, options, out=out, seed=seed, progress=advance)
