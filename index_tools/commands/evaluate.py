"""`querylift evaluate`: does expansion help on this index?"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import config_option, engine_option, progress, settings_with
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings, switched_on

if TYPE_CHECKING:
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.evaluation.experiment import System, Task
    from querylift.index_tools.evaluation.report import Report
    from querylift.index_tools.searching import Form


@click.command()
@click.argument("corpus")
@engine_option
@click.option("--split", default=None, help="Split of the corpus [default: its only one].")
@click.option("--index", "name", required=True, help="Index that holds CORPUS, yours or made by `querylift index`.")
@click.option(
    "--generator",
    default=None,
    help="none, table:FILE, feedback, llama, llama:base, llama:FILE.gguf, expander:FOLDER, http:URL.",
)
@click.option("--mode", type=click.Choice(["boost", "widen"]), help="[default: the settings', boost]")
@click.option("--weight", type=float, help="Weight of an expansion's word [default: the settings', 0.2].")
@click.option("--field", "fields", multiple=True, help="Field to search; repeatable [default: contents, as indexed].")
@click.option("--body", type=click.Path(path_type=Path), help="Your own search as JSON, {{query}} for the words.")
@click.option("--via", metavar="PROXY_URL", help="Search through a running proxy, with its generator and settings.")
@click.option("--depth", type=click.IntRange(10, 10_000), default=1000, show_default=True, help="Hits per query.")
@click.option("--relevant-from", type=click.IntRange(min=1), help="Lowest grade that counts for MAP, MRR and recall.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for runs, qrels, expansions and report.html.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def evaluate(corpus: str, config: Path | None, as_json: bool, out: Path | None, **options: Any) -> None:
    """Compare the expanded with the plain search on the judged queries of CORPUS.

    Prints nDCG@10 and recall@100 (--json: MAP, MRR@10, recall@1000 too), a paired test, and whether to switch expansion
    on for this index.
    """
    from querylift.index_tools.corpora.loading import load
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.evaluation.experiment import System, check_found, task_of
    from querylift.index_tools.evaluation.text_table import render_table
    from querylift.index_tools.searching import search_offline

    if (options["generator"] is None) == (options["via"] is None):
        raise SettingsError("name what to evaluate: either --generator or --via, one of the two")
    settings = settings_with(config, engine=options["engine"], generator=options["generator"], enabled=True)
    settings = _with_table(settings, options)
    options |= {key: getattr(settings.index[options["name"]], key) for key in ("mode", "weight")}
    task = task_of(load(corpus, relevant_from=options["relevant_from"]), options["split"], options["name"])
    how = How(_form(options["fields"], options["body"]), options["depth"])
    with Engine(settings) as engine:
        baseline = System("no expansion", search_offline(engine, task.queries, index=task.index, **how.options))
        check_found(task, baseline)
        system = _measure(settings, engine, task, how, via=options["via"])
        made = _report(task, baseline, system, engine, options)
    if out is not None:
        _write(out, task, baseline, system, made)
    if as_json:
        from querylift.index_tools.evaluation.experiment import as_json as to_json

        click.echo(json.dumps(to_json(made, {system.name: system}), indent=2))
    else:
        click.echo(render_table(made.systems))
        click.echo(_closing(task, system, made, options, out))


def _with_table(settings: Settings, options: dict[str, Any]) -> Settings:
    """`settings` with expansion on for the index, by its own table, and what the options say on top of that."""
    if options["via"] is not None and (options["mode"] or options["weight"]):
        raise SettingsError("--mode and --weight are the proxy's own with --via; leave them out")
    given = {key: options[key] for key in ("mode", "weight") if options[key] is not None}
    return switched_on(settings, options["name"], **given)


@dataclass(frozen=True)
class How:
    """The search that every query becomes."""

    form: Form
    depth: int

    @property
    def options(self) -> dict[str, Any]:
        """For the functions of `searching`."""
        return {"form": self.form, "depth": self.depth}


def _form(fields: tuple[str, ...], body: Path | None) -> Form:
    from querylift.index_tools.searching import PLACEHOLDER, match_form, search_body, template_form

    if body is None:
        return match_form(fields) if fields else search_body
    if fields:
        raise SettingsError("--field and --body are both given; a body names its own fields")
    try:
        template = json.loads(body.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"--body is {body}: it cannot be read as JSON ({error})") from None
    if not isinstance(template, dict) or PLACEHOLDER not in json.dumps(template):
        raise SettingsError(f"--body is {body}: it is no search with {PLACEHOLDER} where the words belong")
    return template_form(template)


def _measure(settings: Settings, engine: Engine, task: Task, how: How, *, via: str | None) -> System:
    from querylift.index_tools.evaluation.experiment import System
    from querylift.index_tools.searching import search_over_http
    from querylift.plugin.generators import factory

    if via is None:
        return asyncio.run(_offline(settings, engine, task, how))
    access: dict[str, Any] = {"auth": factory.basic_auth(settings), "ssl": factory.ssl_context(settings)}
    with progress("searching", len(task.queries)) as advance:
        searched = asyncio.run(
            search_over_http(via, task.queries, index=task.index, progress=advance, **access, **how.options)
        )
        # After, not before: the engine is warm by then, and what it saved on us would look like our speed.
        direct = asyncio.run(search_over_http(settings.engine, task.queries, index=task.index, **access, **how.options))
    added_ms = [searched.took_ms[q] - direct.took_ms[q] for q in task.queries]
    return System(f"via {via}", searched, added_ms)


async def _offline(settings: Settings, engine: Engine, task: Task, how: How) -> System:
    from querylift.index_tools.evaluation.experiment import System
    from querylift.index_tools.searching import expand_all, search_offline
    from querylift.plugin.flow import Rules
    from querylift.plugin.generators import factory
    from querylift.plugin.proxy.server import expander_for

    generator = factory.make(settings.generator, settings)
    async with expander_for(settings, generator) as expander:
        rules = Rules(settings, clock=time.monotonic)
        with progress("expanding", len(task.queries)) as advance:
            results = await expand_all(
                task.queries, index=task.index, rules=rules, expander=expander, progress=advance, **how.options
            )
    searched = search_offline(engine, task.queries, index=task.index, results=results, **how.options)
    return System(settings.generator, searched)


def _report(task: Task, baseline: System, system: System, engine: Engine, options: dict[str, Any]) -> Report:
    from querylift.index_tools.evaluation.experiment import report

    via = options["via"] is not None
    mode, weight = ("", None) if via else (options["mode"], options["weight"])
    try:
        return report(task, baseline, [system], engine=engine, mode=mode, weight=weight)
    except ValueError as error:  # no document is graded as high as --relevant-from
        raise SettingsError(f"{task.corpus} cannot be measured: {error}") from None


def _closing(task: Task, system: System, made: Report, options: dict[str, Any], out: Path | None) -> str:
    from querylift.index_tools.evaluation.experiment import advice, outcomes

    comparison = made.systems[1].comparison
    assert comparison is not None
    lines = [f"\nqueries: {outcomes(system.searched)}"]
    if out is not None:
        lines.append(f"report: {out / 'report.html'}")
    how = "" if options["via"] is not None else f'mode = "{options["mode"]}"\nweight = {options["weight"]:g}'
    return "\n".join([*lines, "", advice(task, comparison, how)])


def _write(out: Path, task: Task, baseline: System, system: System, made: Report) -> None:
    from querylift.index_tools.corpora.trec_files import write_qrels, write_run
    from querylift.index_tools.evaluation.report import write_report

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out is {out}: it cannot be made a folder ({error.strerror})") from None
    write_qrels(out / "qrels.txt", task.qrels)
    write_run(out / "plain.run", baseline.searched.run, "plain")
    write_run(out / "expanded.run", system.searched.run, "expanded")
    lines = [
        {"query_id": q, "query": task.queries[q], "text": words} for q, words in system.searched.expansions.items()
    ]
    (out / "expansions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_report(out / "report.html", made)
