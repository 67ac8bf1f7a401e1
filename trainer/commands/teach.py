"""`querylift train teach`: collect candidates from a teacher, from files, from relevant documents and from the index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)
from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.plugin.files import compute_json_digest
from querylift.trainer.commands.arguments import check_split
from querylift.trainer.commands.endpoint_options import confirm_cost, format_left_requests, format_price
from querylift.trainer.commands.held_out import (
    choose_held_out_splits,
    held_out_by_option,
    held_out_or_other_splits_option,
)
from querylift.trainer.commands.teach_options import build_sources, check_options, list_given_options, source_options

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus
    from querylift.plugin.settings import Settings
    from querylift.trainer.candidates import Candidate
    from querylift.trainer.leaks import HeldOutSplit
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.teaching.plan import TeachingPlan
    from querylift.trainer.teaching.sources import CandidateSource, Sources, TeachingTask
    from querylift.trainer.training_config import HeldOutBy


@click.command()
@click.argument("corpus")
@click.option("--split", default=None, help="Split whose queries are expanded [default: the only one].")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File of candidates to write. A repeated command adds what the file lacks.",
)
@source_options
@click.option(
    "--index",
    help="Index that holds the documents, for --judged, --prompt few-shot and --pseudo-queries [default: the corpus's own].",
)
@click.option(
    "--text",
    "text_fields",
    multiple=True,
    help="Source field of --index to read; repeatable [default: title and text].",
)
@engine_option
@config_option
@held_out_or_other_splits_option
@held_out_by_option
@click.option("--drop-leaks", is_flag=True, help="Leave out what is held out, where the command would otherwise stop.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Use only the first queries of the split, up to this number. Imported files are not cut.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def teach(
    corpus: str,
    split: str | None,
    out: Path,
    index: str | None,
    text_fields: tuple[str, ...],
    engine: str | None,
    config: Path | None,
    held_out: tuple[str, ...],
    held_out_by: HeldOutBy | None,
    drop_leaks: bool,
    limit: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Collect candidate expansions for the queries of CORPUS.

    The sources are a teacher (--endpoint and --model), files (--import), relevant documents (--judged) and a fast expander
    (--expander). Name one or several. A file is one of candidates, or a table of the generator `table`.
    """
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.trainer.teaching.sources import TeachingTask

    sources = build_sources(options)
    check_options(sources, list_given_options(), limit=limit)
    settings = load_settings_with_options(config, engine=engine)
    loaded_corpus = _choose_documents(load_corpus(corpus), sources, settings, index=index, text_fields=text_fields)
    needs_split = _needs_split(sources)
    if needs_split:
        check_split(loaded_corpus, split)
    queries = loaded_corpus.read_queries(split) if needs_split or split else {}
    task = TeachingTask(
        corpus=loaded_corpus,
        split=split,
        split_queries=queries,
        queries=dict(islice(queries.items(), limit)),
        held_out=choose_held_out_splits(
            held_out, loaded_corpus, split, by=held_out_by or "query", uses_split=needs_split
        ),
        seed=options["seed"],
    )
    manifest = _open_manifest(out, task, sources, drop_leaks=drop_leaks, index=index, text_fields=text_fields)
    collected = _collect_without_leaks(sources, task, drop_leaks=drop_leaks)
    with manifest.record_run() as results:
        results |= {"dropped": collected.dropped_queries, "dropped_by_document": collected.dropped_rows}
        if sources.endpoint.plan and not options["yes"]:
            usage = sources.endpoint.estimate_usage(collected.teacher_requests, out)
            confirm_cost(usage, sources.endpoint.plan)
        results.update(_write_candidates(sources, collected, out, held_out=task.held_out))
        click.echo(json.dumps(results, indent=2) if as_json else _format_summary(out, results))
        # This is inside the block, so that the manifest does not record an incomplete stage as done.
        _raise_when_incomplete(results, sources.endpoint.plan, out)


@dataclass(frozen=True, slots=True)
class _CollectedCandidates:
    """Candidates and requests without leaks. Counts of the queries that leak, and of rows that leak by their document."""

    complete: list[Candidate]
    expander_requests: list[Candidate]
    teacher_requests: list[Candidate]
    dropped_queries: int
    dropped_rows: int


def _choose_documents(
    corpus: Corpus, sources: Sources, settings: Settings, *, index: str | None, text_fields: Sequence[str]
) -> Corpus:
    """Return the corpus with the documents of --index, or with its own. Raises SettingsError when it needs some and has none."""
    from querylift.index_tools.corpora.index_documents import DEFAULT_FIELDS, read_documents_from_index

    reads_documents = any(source.is_chosen and source.reads_documents for source in sources)
    if text_fields and index is None:
        raise SettingsError("--text names fields of --index, which is not given; give it, or leave --text out")
    if index is not None and not reads_documents:
        raise SettingsError("--index is for --judged, --prompt few-shot or --pseudo-queries; give one, or leave it out")
    if index is not None:
        return read_documents_from_index(corpus, settings, index, fields=text_fields or DEFAULT_FIELDS)
    if reads_documents and not corpus.has_documents:
        raise SettingsError(f"{corpus.name!r} has no documents; name the index that holds them with --index")
    return corpus


def _needs_split(sources: Sources) -> bool:
    """Return whether the corpus must have queries. Pseudo-queries alone, or with files, do without."""
    return not sources.expander.options.pseudo_queries or sources.endpoint.is_chosen or sources.documents.is_chosen


def _open_manifest(
    out: Path,
    task: TeachingTask,
    sources: Sources,
    *,
    drop_leaks: bool,
    index: str | None,
    text_fields: Sequence[str],
) -> Manifest:
    """Open the manifest of `out`. It leaves out the speed, the number and the endpoint, which may change between runs."""
    from querylift.trainer.manifest import Manifest

    settings: dict[str, Any] = {
        "corpus": task.corpus.name,
        "split": task.split,
        "queries_sha256": compute_json_digest(dict(task.split_queries)),
        "held_out": sorted(split.name for split in task.held_out),
        # Its absence means "query", so that an output that was begun before there was the setting can be continued.
        **({"held_out_by": "document"} if any(split.documents for split in task.held_out) else {}),
        "drop_leaks": drop_leaks,
        **({"index": index, "text_fields": list(text_fields)} if index else {}),
    }
    inputs: dict[str, Path] = {}
    source: CandidateSource
    for source in sources:
        settings |= source.get_manifest_settings()
        inputs |= source.get_manifest_inputs()
    return Manifest(out, stage="teach", inputs=inputs, settings=settings, seed=task.seed, is_folder=False)


def _collect_without_leaks(sources: Sources, task: TeachingTask, *, drop_leaks: bool) -> _CollectedCandidates:
    """Collect from every chosen source, and leave leaks out. Raises SettingsError on a leak unless `drop_leaks` is set."""
    from querylift.trainer.document_leaks import find_document_leaks, get_candidate_document, raise_on_document_leaks
    from querylift.trainer.leaks import collect_leaked_ids, find_leaks, raise_on_leaks

    files, documents, endpoint, expander = (
        source.collect(task) if source.is_chosen else []
        for source in (sources.files, sources.documents, sources.endpoint, sources.expander)
    )
    queries = [(candidate.query_id, candidate.query) for candidate in [*endpoint, *expander, *files, *documents]]
    leaks = find_leaks(queries, task.held_out, corpus=task.corpus.name)
    if not drop_leaks:
        raise_on_leaks(leaks)
    leaked_ids = collect_leaked_ids(leaks)
    complete, expander_requests, teacher_requests = (
        [candidate for candidate in candidates if candidate.query_id not in leaked_ids]
        for candidates in ([*files, *documents], expander, endpoint)
    )
    rows = [*complete, *expander_requests]
    document_leaks = find_document_leaks(map(get_candidate_document, rows), task.held_out)
    if not drop_leaks:
        raise_on_document_leaks(document_leaks)
    leaked_documents = {leak.document for leak in document_leaks}
    collected = _CollectedCandidates(
        complete=[row for row in complete if get_candidate_document(row) not in leaked_documents],
        expander_requests=[row for row in expander_requests if get_candidate_document(row) not in leaked_documents],
        teacher_requests=teacher_requests,
        dropped_queries=len(leaked_ids),
        dropped_rows=sum(get_candidate_document(row) in leaked_documents for row in rows),
    )
    if not collected.complete and not collected.expander_requests and not collected.teacher_requests:
        raise SettingsError(
            "there is nothing to collect: no query has a relevant document, or all are held out; name another split"
        )
    return collected


def _write_candidates(
    sources: Sources, collected: _CollectedCandidates, out: Path, *, held_out: Sequence[HeldOutSplit]
) -> dict[str, Any]:
    """Append complete candidates and answers to `out`, and return the counts of each source as JSON."""
    from querylift.trainer.teaching.candidate_files import append_candidates

    results: dict[str, Any] = {}
    if collected.complete:
        results["given"] = asdict(append_candidates(collected.complete, out))
    if collected.expander_requests:
        requests = collected.expander_requests
        results["expander"] = sources.expander.answer(requests, out, show_progress=show_progress)
    if sources.endpoint.is_chosen:
        requests = collected.teacher_requests
        results["teacher"] = sources.endpoint.answer(requests, out, held_out=held_out, show_progress=show_progress)
    return results


def _raise_when_incomplete(results: Mapping[str, Any], plan: TeachingPlan | None, out: Path) -> None:
    """Raise GeneratorError when requests are unanswered, or when no candidate was written."""
    counts = {name: results.get("teacher", {}).get(name, 0) for name in ("left", "failed", "tokens_in")}
    if plan and (sentence := format_left_requests(**counts, plan=plan)):
        raise GeneratorError(sentence)
    if not out.stat().st_size:
        raise GeneratorError(f"{out} holds no candidate: every collected text is empty; check the source's texts")


def _format_summary(out: Path, results: Mapping[str, Any]) -> str:
    lines = [f"{results['dropped']} queries left out: they are held out"] if results["dropped"] else []
    if results["dropped_by_document"]:
        lines.append(
            f"{results['dropped_by_document']} rows left out: their documents are relevant to held-out queries"
        )
    for name in ("given", "expander"):
        if name in results:
            counts = "{written:,} written, {known:,} there before, {empty:,} without words, {without_end:,} did not end".format(
                **results[name]
            )
            lines.append(f"{name}: {counts}")
    if "teacher" in results:
        lines.append(_format_teaching_result(results["teacher"]))
    return "\n".join([*lines, f"candidates: {out}"])


def _format_teaching_result(result: Mapping[str, Any]) -> str:
    line = (
        "teacher: {written:,} written, {empty:,} without words, {refused:,} refused, {failed:,} failed, "
        "{held_out:,} repeat a held-out document, {without_end:,} did not end; {tokens_in:,} prompt and {tokens_out:,} "
        "answer tokens; {per_second:,.1f} candidates per second"
    ).format(**result)
    return line + (f", cost {format_price(result['cost'])}" if result["cost"] is not None else "")
