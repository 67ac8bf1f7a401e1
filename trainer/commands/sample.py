"""`querylift train sample`: let a student write passages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import MAX_TOKENS
from querylift.plugin.files import compute_json_digest
from querylift.trainer.commands.arguments import split_prefix
from querylift.trainer.commands.options import seed_option, training_config_option
from querylift.trainer.commands.passage_writers import choose_writer

if TYPE_CHECKING:
    from querylift.trainer.commands.passage_writers import PassageWriter
    from querylift.trainer.training_config import SamplingOptions


@click.command()
@click.argument("model")
@click.argument("queries", nargs=-1, required=True, metavar="QUERIES...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File of candidates to write. A repeated command adds what the file lacks.",
)
@training_config_option
@click.option("--samples", type=click.IntRange(1), help="Passages for each query [default: the configuration's].")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 2),
    help="Sampling temperature; 0 takes the likeliest token [default: the configuration's].",
)
@click.option("--greedy", is_flag=True, help="Write one passage for each query, with the likeliest token each time.")
@seed_option
@click.option(
    "--endpoint",
    help="URL of a server that runs the student, up to and including /v1, such as vLLM or llama-server. MODEL is then the "
    "name that the server knows. QUERYLIFT_TEACHER_API_KEY holds the key.",
)
@click.option(
    "--concurrency", type=click.IntRange(1), help="Requests to --endpoint that run at the same time [default: 32]."
)
@click.option("--limit", type=click.IntRange(1), help="Use only the first queries, up to this number.")
def sample(
    model: str,
    queries: tuple[str, ...],
    out: Path,
    config: Path | None,
    samples: int | None,
    temperature: float | None,
    greedy: bool,
    seed: int | None,
    endpoint: str | None,
    concurrency: int | None,
    limit: int | None,
) -> None:
    """Let MODEL, a folder or the name of a packaged model, write passages for QUERIES.

    QUERIES are CORPUS:SPLIT, or files of queries. With NAME=QUERIES the ids become NAME:id, which keeps several sources apart.
    The passages are candidates for `score`. With --greedy they are what the model would serve, and
    `querylift evaluate --generator table:FILE` measures them.

    A student reads the served prompt. An untrained chat model reads its own chat template, with thinking off.
    """
    from querylift.trainer.training_config import load_training_config

    training_config = load_training_config(config)
    if greedy and temperature:
        raise SettingsError(f"--greedy and --temperature {temperature:g} are both given; leave one out")
    overrides = {"samples": samples, "temperature": 0.0 if greedy else temperature}
    options = training_config.sample.model_copy(
        update={name: value for name, value in overrides.items() if value is not None}
    )
    limited_queries = dict(list(read_queries(queries).items())[:limit])
    writer = choose_writer(model, options, endpoint=endpoint, concurrency=concurrency)
    _write_passages(writer, limited_queries, options, out=out, seed=training_config.seed if seed is None else seed)


def read_queries(sources: tuple[str, ...]) -> dict[str, str]:
    """Return the queries of all sources by id. A source is a file of queries, CORPUS:SPLIT, or a CORPUS with one split.

    Raises SettingsError when one id stands for two queries.
    """
    queries: dict[str, str] = {}
    for source in sources:
        prefix, place = split_prefix(source)
        for query_id, text in _read_source(place).items():
            if queries.setdefault(prefix + query_id, text) != text:
                raise SettingsError(
                    f"query id {query_id!r} stands for two queries; write NAME={source} to tell them apart"
                )
    return queries


def _read_source(source: str) -> Mapping[str, str]:
    from querylift.index_tools.corpora.corpus_names import load_corpus_and_split
    from querylift.index_tools.corpora.trec_files import read_topics

    if Path(source).is_file():
        return read_topics(Path(source))
    corpus, split = load_corpus_and_split(source)
    return corpus.read_queries(split)


def _write_passages(
    writer: PassageWriter, queries: Mapping[str, str], options: SamplingOptions, *, out: Path, seed: int
) -> None:
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.student import libraries

    libraries.check_training_packages()
    libraries.silence_libraries()
    from querylift.trainer.student.sampling import count_passages, count_samples, find_missing_samples

    settings = {"model": writer.name, **options.model_dump(exclude={"samples", "batch_size"})}
    settings |= writer.get_manifest_settings()
    inputs = writer.get_manifest_inputs()
    manifest = Manifest(out, stage="sample", inputs=inputs, settings=settings, seed=seed, is_folder=False)
    with manifest.record_run() as results:
        # This may repair the end of the file, so no other process may be writing.
        unwritten = find_missing_samples(queries, options, out=out, name=writer.name, seed=seed)
        known = len(queries) * count_samples(options) - len(unwritten)
        digest = compute_json_digest(queries)
        results.update(written=0, queries=len(queries), queries_sha256=digest)
        if unwritten:
            results.update(writer.write(unwritten, out=out, seed=seed, known=known))
        passage_count, without_end = count_passages(out)
        results.update(passages=passage_count, without_end=without_end)
    click.echo(_format_summary(results, out))


def _format_summary(results: Mapping[str, Any], out: Path) -> str:
    rate = f"; {results['per_second']:,.1f} candidates per second" if "per_second" in results else ""
    return (
        f"{results['written']:,} passages for {results['queries']:,} queries written to {out}{rate}\n"
        f"{results['without_end']:,} of the {results['passages']:,} passages there did not end within {MAX_TOKENS} tokens"
    )
