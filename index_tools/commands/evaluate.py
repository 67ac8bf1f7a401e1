"""`querylift evaluate`: measure whether expansion helps on an index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)
from querylift.plugin.errors import QueryliftError, SettingsError
from querylift.plugin.settings import Settings, enable_index, format_generator_names, replace_generator

if TYPE_CHECKING:
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.evaluation.experiment import System, Task
    from querylift.index_tools.evaluation.html_report import Report
    from querylift.index_tools.judging.grade_source import OpenedJudge
    from querylift.index_tools.judging.judged_qrels import ModelJudgment
    from querylift.index_tools.searching import BodyFormatter

_QRELS_NAME = "qrels.txt"


@click.command()
@click.argument("corpus", required=False)
@engine_option
@click.option("--split", default=None, help="Split of the corpus [default: its only split].")
@click.option("--index", "name", required=True, help="Index that holds CORPUS: your own, or one of `querylift index`.")
@click.option(
    "--generator",
    default=None,
    help="Generator: none, table:FILE, feedback, llama, llama:base, llama:FILE.gguf, expander:FOLDER or http:URL "
    "[default: from the settings].",
)
@click.option(
    "--mode",
    type=click.Choice(["boost", "widen"]),
    help="Mode of the rewrites [default: from the settings, else boost].",
)
@click.option("--weight", type=float, help="Weight of an expansion [default: from the settings, else 0.2].")
@click.option(
    "--field",
    "fields",
    multiple=True,
    help="Field to search. May be repeated [default: fields in the index's settings table, or else contents].",
)
@click.option(
    "--body",
    type=click.Path(path_type=Path),
    help="File with your own search body as JSON. {{query}} stands for the query.",
)
@click.option(
    "--via", metavar="PROXY_URL", help="Search through this running proxy, with its own generator and settings."
)
@click.option(
    "--depth", type=click.IntRange(10, 10_000), default=1000, show_default=True, help="Number of hits for each query."
)
@click.option(
    "--relevant-from",
    type=click.IntRange(min=1),
    help="Lowest grade that counts as relevant, for MAP, MRR and recall [default: as the corpus or the judge says].",
)
@click.option(
    "--judge",
    "judge_folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Judge that grades the first ten hits of both systems, in place of the corpus's judgments.",
)
@click.option(
    "--queries",
    "queries_path",
    type=click.Path(path_type=Path),
    help="File of queries in place of CORPUS, for --judge: TREC topics, id<TAB>text, or JSON lines.",
)
@click.option(
    "--judge-field",
    "judge_fields",
    multiple=True,
    help="Field that the judge reads of a document. May be repeated [default: title and text].",
)
@click.option(
    "--same-model", is_flag=True, help="Allow a judge that is, or was taught by, the model that makes the expansions."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the runs, qrels, expansions and report.html.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@config_option
def evaluate(corpus: str | None, config: Path | None, judge_folder: Path | None, **options: Any) -> None:
    """Measure whether expansion helps on an index.

    The command searches with and without expansion, for every judged query of
    CORPUS. It prints nDCG@10, recall@100 and a paired test, and says whether to
    switch expansion on for this index. With --json it also prints MAP, MRR@10 and
    recall@1000.

    A search that the engine refuses counts 0. When no query was expanded, the
    command concludes nothing, and its exit code is 1.

    CORPUS is named as for `querylift index`. Without judged queries, name a judge
    with --judge. Queries alone are then enough.
    """
    from querylift.index_tools.judging.grade_source import open_recorded_judge

    settings = _load_settings(config, options)
    if judge_folder is None and options["queries_path"] is not None:
        raise SettingsError("--queries is given without judgments; add --judge FOLDER, or name a CORPUS with judgments")
    judge = open_recorded_judge(judge_folder) if judge_folder is not None else None
    evaluate_index(settings, corpus, judge, options)


def evaluate_index(settings: Settings, corpus: str | None, judge: OpenedJudge | None, options: dict[str, Any]) -> None:
    """Measure, and print what `evaluate` prints. `options` are those of the command by their names.

    With a judge, the queries may have no judgments. Raises QueryliftError when no query was expanded.
    """
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.evaluation.conclusion import OutcomeCounts, explain_missing_conclusion
    from querylift.index_tools.evaluation.experiment import (
        System,
        check_baseline_hits,
        find_mode_warnings,
        report_to_json,
    )
    from querylift.index_tools.judging.judged_qrels import check_replaceable_qrels, list_judgments
    from querylift.index_tools.judging.learned_queries import warn_about_learned_queries
    from querylift.index_tools.searching import search_offline

    out: Path | None = options["out"]
    options |= {key: getattr(settings.index[options["name"]], key) for key in ("mode", "weight")}
    if judge is not None:
        judge = _check_judging_model(settings, judge, options)
    task = _create_task(corpus, judge, options)
    if judge is not None:
        warn_about_learned_queries(judge, task.queries.values())
    if out is not None and (judge is not None or task.judged_by is not None):
        check_replaceable_qrels(out / _QRELS_NAME)
    search_options = {
        "format_body": _choose_body_formatter(settings, options),
        "depth": options["depth"],
    }
    with Engine(settings) as engine:
        baseline_run = search_offline(engine, task.queries, index=task.index, **search_options)
        baseline = System("no expansion", baseline_run)
        check_baseline_hits(task, baseline)
        if options["via"] is None:
            system = asyncio.run(_measure_offline(settings, engine, task, search_options))
        else:
            system = _measure_over_http(settings, task, options["via"], search_options)
        judgments = list_judgments(task.qrels)
        if judge is not None:
            task, judgments = _judge_hits(engine, task, judge, (baseline, system), options)
        report = _make_report(task, baseline, system, engine, options)
    for warning in find_mode_warnings(system.searched):
        click.echo(f"warning: {warning}", err=True)
    if options["as_json"]:
        click.echo(json.dumps(report_to_json(report, {s.name: s for s in (baseline, system)}), indent=2))
    else:
        click.echo(_format_result(baseline, system, report, options, out))
    if out is not None:  # this may fail, and the result stands above by then
        _write_results(out, task, baseline, system, report, judgments)
    counts = OutcomeCounts.of_run(system.searched)
    is_off = settings.find_generator_names(task.index) == ("none",)
    if not counts.expanded and (options["via"] is not None or not is_off):
        raise QueryliftError(explain_missing_conclusion(counts))


def _check_judging_model(settings: Settings, judge: OpenedJudge, options: dict[str, Any]) -> OpenedJudge:
    """Return the judge, with a remark when it shares its encoder with the expansions.

    Raises SettingsError when it would judge its own expansions. The models behind a proxy are not known here.
    """
    from querylift.index_tools.judging.model_names import (
        add_encoder_remark,
        check_different_models,
        list_expansion_models,
    )

    if options["via"] is not None:
        click.echo(
            f"warning: the models behind {options['via']} are not known here; "
            f"make sure that none of them is {judge.grader.name} or its teacher {judge.grader.teacher}",
            err=True,
        )
        return judge
    models = list_expansion_models(settings, settings.find_generator_names(options["name"]))
    check_different_models(models, judge.grader, allow_same=options["same_model"])
    return add_encoder_remark(judge, models)


def _create_task(corpus: str | None, judge: OpenedJudge | None, options: dict[str, Any]) -> Task:
    """Return the judged queries, or all queries when a judge will judge them. Raises SettingsError when there are none."""
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.index_tools.evaluation.experiment import Task, create_task
    from querylift.index_tools.judging.query_source import load_queries

    split, index = options["split"], options["name"]
    if judge is not None:
        named = load_queries(corpus, split=split, path=options["queries_path"])
        return Task(named.source, named.split, index, named.queries, {})
    if corpus is None:
        raise SettingsError("no queries are named; give CORPUS, or --queries FILE and --judge FOLDER")
    task = create_task(load_corpus(corpus, relevant_from=options["relevant_from"]), split, index)
    if not task.qrels:
        raise SettingsError(
            f"{corpus} has no judgments; let a judge grade the hits with --judge FOLDER, or add judgments"
        )
    return task


def _judge_hits(
    engine: Engine, task: Task, judge: OpenedJudge, systems: tuple[System, System], options: dict[str, Any]
) -> tuple[Task, tuple[ModelJudgment, ...]]:
    """Return the task with the judge's grades of the first hits of both systems, and these grades."""
    from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS
    from querylift.index_tools.judging.grading import grade_pool
    from querylift.index_tools.judging.pooling import pool_runs

    pool = pool_runs({system.name: system.searched.run for system in systems})
    with show_progress("grading", pool.pair_count) as advance:
        graded = grade_pool(
            judge.grader,
            pool,
            task.queries,
            engine=engine,
            index=task.index,
            fields=options["judge_fields"] or DEFAULT_TEXT_FIELDS,
            progress=advance,
        )
    relevant_from = options["relevant_from"] or judge.grader.scale.relevant_from
    judged_task = replace(task, qrels=graded.qrels, relevant_from=relevant_from, judged_by=judge.source)
    return judged_task, graded.judgments


def _load_settings(config: Path | None, options: dict[str, Any]) -> Settings:
    """Return the settings with expansion switched on for the index, and with the options in place of the file's values."""
    if options["generator"] is not None and options["via"] is not None:
        raise SettingsError("--generator and --via are both given; give one of the two")
    if options["via"] is not None and (options["mode"] or options["weight"]):
        raise SettingsError("--via uses the proxy's own mode and weight; leave out --mode and --weight")
    settings = load_settings_with_options(config, engine=options["engine"], enabled=True)
    if options["generator"] is not None:
        settings = replace_generator(settings, options["generator"])
    elif options["via"] is None and settings.find_generator_names(options["name"]) == ("none",):
        raise SettingsError("the settings name no generator; give either --generator or --via")
    changes = {key: options[key] for key in ("mode", "weight") if options[key] is not None}
    return enable_index(settings, options["name"], **changes)


def _choose_body_formatter(settings: Settings, options: dict[str, Any]) -> BodyFormatter:
    from querylift.index_tools.commands.search_body import make_field_formatter, read_body_formatter

    body: Path | None = options["body"]
    if body is None:
        return make_field_formatter(options["fields"] or settings.index[options["name"]].fields)
    if options["fields"]:
        raise SettingsError("--field and --body are both given; leave out --field, because a body names its own fields")
    return read_body_formatter(body)


def _measure_over_http(settings: Settings, task: Task, proxy_url: str, search_options: dict[str, Any]) -> System:
    from querylift.index_tools.evaluation.experiment import System
    from querylift.index_tools.searching import search_over_http
    from querylift.plugin.engine.access import build_engine_access
    from querylift.plugin.engine.facts import find_answering_url

    engine_url = asyncio.run(find_answering_url(settings, timeout_s=10))
    search_options = {
        **search_options,
        "index": task.index,
        "access": build_engine_access(settings),
    }
    with show_progress("searching", len(task.queries)) as advance:
        searched = asyncio.run(search_over_http(proxy_url, task.queries, progress=advance, **search_options))
        # The engine is warm for the direct searches, which come second. In the other order it would be warm for the
        # proxy, and the proxy would look faster than it is.
        direct = asyncio.run(search_over_http(engine_url, task.queries, **search_options))
    added_ms = [searched.took_ms[query_id] - direct.took_ms[query_id] for query_id in task.queries]
    return System(f"via {proxy_url}", searched, added_ms)


async def _measure_offline(settings: Settings, engine: Engine, task: Task, search_options: dict[str, Any]) -> System:
    from querylift.index_tools.evaluation.experiment import System
    from querylift.index_tools.searching import expand_with_generators, search_offline

    with show_progress("expanding", len(task.queries)) as advance:
        results = await expand_with_generators(
            settings, task.queries, index=task.index, progress=advance, **search_options
        )
    searched = search_offline(engine, task.queries, index=task.index, results=results, **search_options)
    return System(format_generator_names(settings.find_generator_names(task.index)), searched)


def _make_report(task: Task, baseline: System, system: System, engine: Engine, options: dict[str, Any]) -> Report:
    from querylift.index_tools.evaluation.experiment import create_report

    through_proxy = options["via"] is not None
    mode, weight = ("", None) if through_proxy else (options["mode"], options["weight"])
    try:
        return create_report(task, baseline, [system], engine=engine, mode=mode, weight=weight)
    except ValueError as error:  # no document is graded as high as --relevant-from
        raise SettingsError(f"{task.corpus} cannot be measured: {error}") from None


def _format_result(baseline: System, system: System, report: Report, options: dict[str, Any], out: Path | None) -> str:
    """Return the table, what a reader must know beside it, and the advice. There is none when no query was expanded."""
    from querylift.index_tools.evaluation.conclusion import OutcomeCounts, format_advice, format_observations
    from querylift.index_tools.evaluation.text_table import render_table

    comparison = report.systems[1].comparison
    assert comparison is not None
    counts = OutcomeCounts.of_run(system.searched)
    runs = {baseline.name: baseline.searched, system.name: system.searched}
    parts = [render_table(report.systems), "", format_observations(report, runs, counts)]
    if out is not None:
        parts.append(f"report: {out / 'report.html'}")
    if counts.expanded:
        through_proxy = options["via"] is not None
        index_settings = "" if through_proxy else f'mode = "{options["mode"]}"\nweight = {options["weight"]:g}'
        parts += ["", format_advice(report.index, comparison, counts, index_settings, judged_by=report.judged_by)]
    return "\n".join(parts)


def _write_results(
    out: Path, task: Task, baseline: System, system: System, report: Report, judgments: Sequence[ModelJudgment]
) -> None:
    from querylift.index_tools.corpora.trec_files import write_run
    from querylift.index_tools.evaluation.html_report import write_report
    from querylift.index_tools.judging.judged_qrels import write_judged_qrels, write_peoples_qrels

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out is {out}: the folder cannot be created ({error.strerror}); name another") from None
    write_report(out / "report.html", report)
    if task.judged_by is None:
        write_peoples_qrels(out / _QRELS_NAME, task.qrels)
    else:
        write_judged_qrels(out / _QRELS_NAME, judgments, task.judged_by)
    write_run(out / "plain.run", baseline.searched.run, "plain")
    write_run(out / "expanded.run", system.searched.run, "expanded")
    rows = [
        {"query_id": query_id, "query": task.queries[query_id], "text": words}
        for query_id, words in system.searched.expansions.items()
    ]
    (out / "expansions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
