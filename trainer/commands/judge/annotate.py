"""`querylift judge annotate`: let a large model grade pairs of an index, with reasons."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)
from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.trainer.commands.endpoint_options import (
    MODEL_OPTIONS,
    PACE_OPTIONS,
    confirm_cost,
    format_left_requests,
    format_price,
    format_usage,
    read_model_options,
)
from querylift.trainer.commands.judge.query_options import (
    add_query_options,
    format_compare_command,
    format_train_command,
    scale_option,
)

if TYPE_CHECKING:
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.searching import BodyFormatter
    from querylift.plugin.settings import Settings
    from querylift.trainer.chat.endpoint_plan import UsageEstimate
    from querylift.trainer.judge.annotate_run import AnnotatePlan
    from querylift.trainer.judge.pair_choice import ChosenPairs, DocumentPooler, UngradedPair
    from querylift.trainer.manifest import Manifest

_Command = TypeVar("_Command", bound=Callable[..., Any])

_CHOICE_OPTIONS = (
    click.option(
        "--first", type=click.IntRange(0), default=10, show_default=True, help="First documents of each query to grade."
    ),
    click.option(
        "--random",
        type=click.IntRange(0),
        default=10,
        show_default=True,
        help="Random documents of each query to grade, from the ranks after the first ones.",
    ),
    click.option(
        "--depth",
        type=click.IntRange(1, 10_000),
        default=200,
        show_default=True,
        help="Draw the random documents from ranks down to this one.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw."),
    click.option("--limit", type=click.IntRange(1), help="Use only the first queries, up to this number."),
    click.option(
        "--system",
        "systems",
        multiple=True,
        help="Grade the first documents of this system; repeatable: plain, expander, dense, feedback, or a generator "
        "such as table:FILE [default: plain].",
    ),
    click.option(
        "--same-model", is_flag=True, help="Allow a model that also makes the expansions of one of the systems."
    ),
)
_DOCUMENT_OPTIONS = (
    click.option(
        "--field",
        "fields",
        multiple=True,
        help="Field that the model reads of a document. May be repeated [default: title and text].",
    ),
    click.option(
        "--max-words",
        type=click.IntRange(1),
        default=150,
        show_default=True,
        help="Longest text of a document, in words.",
    ),
    click.option(
        "--body",
        type=click.Path(path_type=Path),
        help="File with your own search body as JSON. {{query}} stands for the query.",
    ),
)
_ENDPOINT_OPTIONS = (
    click.option(
        "--endpoint",
        required=True,
        help="URL of an OpenAI-compatible API, up to and including /v1. QUERYLIFT_TEACHER_API_KEY holds the key.",
    ),
    click.option("--model", required=True, help="Name of the model that grades."),
    scale_option,
    click.option(
        "--json-mode/--no-json-mode", default=False, help="Ask the server for JSON alone. Some servers cannot do it."
    ),
    click.option(
        "--json-schema",
        is_flag=True,
        help="Ask for JSON by a schema, in the way that llama-cpp-python and some services read it.",
    ),
    click.option("--max-tokens", type=int, default=400, show_default=True, help="Longest answer, in tokens."),
    *MODEL_OPTIONS,
    *PACE_OPTIONS,
)


def _add_options(command: _Command) -> _Command:
    for option in reversed((*_CHOICE_OPTIONS, *_DOCUMENT_OPTIONS, *_ENDPOINT_OPTIONS)):
        command = option(command)
    return command


@click.command()
@add_query_options
@click.option("--index", required=True, help="Index that holds the documents.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File of annotations to write. A repeated command adds what the file lacks.",
)
@click.option(
    "--qrels",
    "qrels_path",
    type=click.Path(path_type=Path),
    help="Also write all grades of this model in --out to this file, as TREC qrels.",
)
@_add_options
@engine_option
@config_option
@click.option("--dry-run", is_flag=True, help="Print what the run would take, and send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def annotate(engine: str | None, config: Path | None, out: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Let a large model grade pairs of a query and a document, with reasons.

    The queries are those of CORPUS, judged or not, or of a file. The engine ranks
    the documents of the index for each query. The model grades the first ones, and
    random ones further down. Its answer is a reasoning, four criteria and a grade.
    The scale `umbrela` has the prompt of UMBRELA.

    A malformed answer is sent back once with its fault, and then dropped. With
    --system and --qrels, the large model judges systems itself: see `compare`.
    """
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.judging.judged_qrels import check_replaceable_qrels
    from querylift.trainer.commands.output_checks import check_output_file
    from querylift.trainer.judge.annotate_run import estimate_annotating, find_ungraded_pairs
    from querylift.trainer.judge.annotations import describe_missing_grades

    plan = _build_plan(options)
    if options["qrels_path"] is not None:
        check_replaceable_qrels(options["qrels_path"])
    settings = load_settings_with_options(config, engine=engine)
    check_output_file(out, inputs=filter(None, [options["queries_path"], options["body"]]))
    with Engine(settings) as connection:
        chosen = _collect_pairs(connection, settings, options)
    manifest = _open_manifest(out, plan, options)
    if dry_run:
        pairs = find_ungraded_pairs(chosen.pairs, out, model=plan.model, scale=plan.scale)
        usage = estimate_annotating(pairs, plan)
        click.echo(json.dumps(asdict(usage), indent=2) if as_json else _format_estimate(usage, plan))
        return
    with manifest.record_run() as results:
        pairs = find_ungraded_pairs(chosen.pairs, out, model=plan.model, scale=plan.scale)
        _agree_on_usage(pairs, plan, agreed=options["yes"])
        results.update(_ask_and_count(pairs, chosen, plan, out))
        results["choice"] = {name: options[name] for name in ("first", "random", "depth", "seed", "limit", "systems")}
        click.echo(json.dumps(results, indent=2) if as_json else _format_summary(out, results))
        # This is inside the block, so that the manifest does not record an incomplete run as done.
        _raise_when_incomplete(results, plan, out)
        if options["qrels_path"] is not None:
            _write_qrels(options["qrels_path"], plan, out)
        warning = describe_missing_grades(results["grades"], plan.scale)
        if warning and options["qrels_path"] is None:
            click.echo(f"warning: {warning}", err=True)
        elif not as_json:
            click.echo(f"next: {_choose_next_command(out, plan, options['qrels_path'])}")


def _choose_next_command(out: Path, plan: AnnotatePlan, qrels_path: Path | None) -> str:
    """Return the command that uses the grades: a comparison by the qrels, or else the training of a judge."""
    if qrels_path is None:
        return format_train_command(out, plan.scale)
    return format_compare_command(qrels_path)


def _build_plan(options: Mapping[str, Any]) -> AnnotatePlan:
    from querylift.index_tools.judging.grade_scale import parse_scale
    from querylift.trainer.judge.annotate_run import AnnotatePlan

    names = ("model", "max_tokens", "concurrency", "requests_per_minute", "token_budget", "price_in", "price_out")
    json_format = "schema" if options["json_schema"] else "object" if options["json_mode"] else "none"
    return AnnotatePlan(
        base_url=options["endpoint"],
        scale=parse_scale(options["scale_text"]),
        json_format=json_format,
        **{name: options[name] for name in names},
        **read_model_options(options),
    )


def _collect_pairs(engine: Engine, settings: Settings, options: Mapping[str, Any]) -> ChosenPairs:
    from itertools import islice

    from querylift.index_tools.judging.query_source import load_queries
    from querylift.plugin.expansion import clean_query
    from querylift.trainer.judge.pair_choice import PairChoice, collect_pairs

    choice = PairChoice(*(options[name] for name in ("first", "random", "depth", "seed")))
    named = load_queries(options["corpus"], split=options["split"], path=options["queries_path"])
    queries = {query_id: clean_query(text) for query_id, text in islice(named.queries.items(), options["limit"])}
    return collect_pairs(
        engine,
        queries,
        choice,
        index=options["index"],
        format_body=_choose_body_formatter(settings, options),
        fields=_choose_text_fields(options),
        max_words=options["max_words"],
        pool_documents=_make_pooler(engine, settings, options) if options["systems"] else None,
    )


def _make_pooler(engine: Engine, settings: Settings, options: Mapping[str, Any]) -> DocumentPooler:
    """Return a function that pools the first documents of the systems that --system names.

    Raises SettingsError when a system expands with the very model that will judge it.
    """
    from querylift.index_tools.judging.model_names import check_other_model, list_expansion_models
    from querylift.index_tools.judging.pooling import pool_runs
    from querylift.index_tools.judging.system_runs import choose_systems, search_systems

    systems = choose_systems(settings, options["index"], options["systems"])
    if not options["same_model"]:
        check_other_model(list_expansion_models(settings, filter(None, systems.values())), options["model"])

    def pool_documents(queries: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        searched = search_systems(
            engine,
            settings,
            queries,
            index=options["index"],
            systems=systems,
            depth=options["first"],
            format_body=_choose_body_formatter(settings, options),
        )
        for note in searched.notes:
            click.echo(f"note: {note}", err=True)
        return pool_runs(searched.runs, depth=options["first"]).doc_ids

    return pool_documents


def _write_qrels(path: Path, plan: AnnotatePlan, out: Path) -> None:
    """Write the grades of the model in the file of annotations `out` as TREC qrels, with a sidecar that names the model."""
    from querylift.index_tools.judging.grade_source import GradeSource
    from querylift.index_tools.judging.judged_qrels import ModelJudgment, write_judged_qrels
    from querylift.trainer.judge.annotations import read_annotations

    judgments = [
        ModelJudgment(row.query_id, row.doc_id, row.grade)
        for row in read_annotations(out, plan.scale)
        if row.model == plan.model
    ]
    today = date.today().isoformat()
    write_judged_qrels(path, judgments, GradeSource(plan.model, "", today, relevant_from=plan.scale.relevant_from))


def _choose_body_formatter(settings: Settings, options: Mapping[str, Any]) -> BodyFormatter:
    from querylift.index_tools.commands.search_body import choose_field_formatter, read_body_formatter

    if options["body"] is None:
        return choose_field_formatter(settings, options["index"], options["search_fields"])
    if options["search_fields"]:
        raise SettingsError("--search-field and --body are both given; a body names its own fields, so leave one out")
    return read_body_formatter(options["body"])


def _choose_text_fields(options: Mapping[str, Any]) -> tuple[str, ...]:
    from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS

    return tuple(options["fields"]) or DEFAULT_TEXT_FIELDS


def _open_manifest(out: Path, plan: AnnotatePlan, options: Mapping[str, Any]) -> Manifest:
    """Open the manifest of `out`. It holds what all rows must share, so that a file may get more pairs and other models."""
    from querylift.trainer.judge.prompts import JUDGE_PROMPT_VERSION
    from querylift.trainer.manifest import Manifest

    settings = {
        "index": options["index"],
        "fields": list(_choose_text_fields(options)),
        "max_words": options["max_words"],
        "scale": plan.scale.name,
        "prompt": JUDGE_PROMPT_VERSION,
    }
    return Manifest(out, stage="annotate", inputs={}, settings=settings, is_folder=False)


def _agree_on_usage(pairs: list[UngradedPair], plan: AnnotatePlan, *, agreed: bool) -> None:
    """Print what the run will take. Ask before a run that costs money, unless the user has agreed."""
    from querylift.trainer.judge.annotate_run import estimate_annotating

    usage = estimate_annotating(pairs, plan)
    if usage.cost and not agreed:
        confirm_cost(usage, plan)
    else:
        click.echo(_format_estimate(usage, plan), err=True)


def _format_estimate(usage: UsageEstimate, plan: AnnotatePlan) -> str:
    if not usage.requests:
        return "No request is needed, because the file holds all pairs."
    return f"{format_usage(usage, plan)}. A malformed answer takes a second request."


def _ask_and_count(pairs: list[UngradedPair], chosen: ChosenPairs, plan: AnnotatePlan, out: Path) -> dict[str, Any]:
    """Ask for the grades, and return all counts as JSON."""
    from querylift.trainer.chat.endpoint_plan import choose_api_key
    from querylift.trainer.judge.annotate_run import annotate_pairs, count_grades

    with show_progress("asking the teacher", len(pairs)) as advance:
        asking = annotate_pairs(
            pairs,
            plan,
            out,
            api_key=choose_api_key(os.environ),
            answered_before=len(chosen.pairs) - len(pairs),
            progress=advance,
        )
        result = asyncio.run(asking)
    return {
        "model": plan.model,
        "pairs": len(chosen.pairs),
        "known": len(chosen.pairs) - len(pairs),
        "hitless": chosen.hitless_count,
        "textless": chosen.textless_count,
        **result.to_json(),
        "grades": count_grades(out, plan.scale, model=plan.model),
    }


def _format_summary(out: Path, results: Mapping[str, Any]) -> str:
    pairs = "pairs: {pairs:,} chosen, {known:,} there before, {textless:,} left out without text"
    if results["hitless"]:
        pairs += ", queries without a hit: {hitless:,}"
    teacher = (
        "teacher: {asked:,} asked, {written:,} written ({repaired:,} of them repaired), {dropped:,} dropped, "
        "{refused:,} refused, {failed:,} failed, {left:,} left; {tokens_in:,} prompt and {tokens_out:,} answer tokens; "
        "{per_second:,.1f} annotations per second"
    )
    cost = f", cost {format_price(results['cost'])}" if results["cost"] is not None else ""
    grades = ", ".join(f"{grade}: {count:,}" for grade, count in results["grades"].items())
    lines = [pairs.format(**results), teacher.format(**results) + cost, f"grades: {grades}", f"annotations: {out}"]
    return "\n".join(lines)


def _raise_when_incomplete(results: Mapping[str, Any], plan: AnnotatePlan, out: Path) -> None:
    """Raise GeneratorError when pairs are unanswered, or when the file holds no annotation by the model."""
    counts = {name: results[name] for name in ("failed", "left", "tokens_in", "last_failure")}
    if sentence := format_left_requests(**counts, plan=plan):
        raise GeneratorError(sentence)
    if not sum(results["grades"].values()):
        raise GeneratorError(
            f"{out} holds no annotation by {plan.model}: no answer was usable; "
            "try --json-mode or --json-schema, or another --model"
        )
