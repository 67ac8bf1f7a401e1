"""`querylift train teach`: candidate expansions, from a teacher, from files, from the judgments, from the index."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from querylift.index_tools.commands.options import progress
from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.trainer.commands.arguments import check_split, prefixed, where_of
from querylift.trainer.commands.held_out import held_out_beside

if TYPE_CHECKING:
    from querylift.index_tools.corpora.loading import Corpus
    from querylift.trainer.candidates import Candidate
    from querylift.trainer.leaks import HeldOut
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.teaching.prompts import Estimate, Example, Plan


@click.command()
@click.argument("corpus")
@click.option("--split", default=None, help="Split whose queries are asked [default: the only one].")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File of candidates; begun again, it goes on."
)
@click.option(
    "--endpoint", help="URL of an OpenAI-compatible API, with its /v1; the key is in QUERYLIFT_TEACHER_API_KEY."
)
@click.option("--model", help="Model to ask for.")
@click.option(
    "--prompt", "prompts", multiple=True, type=click.Choice(["zero-shot", "few-shot"]), help="[default: zero-shot]"
)
@click.option("--samples", type=int, default=1, show_default=True, help="Answers to each prompt at each temperature.")
@click.option("--temperature", "temperatures", multiple=True, type=float, help="Repeatable [default: 0.7].")
@click.option("--max-tokens", type=int, default=128, show_default=True, help="Tokens of an answer.")
@click.option("--shots", type=int, default=4, show_default=True, help="Judged pairs shown in a few-shot prompt.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--concurrency", type=int, default=8, show_default=True, help="Requests under way at once.")
@click.option("--requests-per-minute", type=float, help="Ask no faster than this.")
@click.option(
    "--token-budget", type=int, help="Stop before this run has used more tokens, prompts and answers together."
)
@click.option("--price-in", type=float, help="Price of a million prompt tokens.")
@click.option("--price-out", type=float, help="Price of a million answer tokens.")
@click.option("--yes", is_flag=True, help="Do not ask before a run that costs money.")
@click.option(
    "--import", "imports", multiple=True, metavar="[NAME=]FILE", help="Expansions made elsewhere; ids become NAME:id."
)
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Which imported rows; a key twice means either, None that it is absent.",
)
@click.option("--judged", type=click.IntRange(0), default=0, help="Relevant documents to take per query.")
@click.option("--expander", type=click.Path(path_type=Path), help="Folder of a fast expander: the words of the index.")
@click.option(
    "--words", type=click.IntRange(1, 40), default=8, show_default=True, help="Words of the expander per query."
)
@click.option(
    "--pseudo-queries",
    type=click.IntRange(1),
    help="Ask the expander so many queries drawn from each document instead.",
)
@click.option("--max-documents", type=click.IntRange(1), help="Draw them from so many documents only.")
@click.option(
    "--held-out",
    multiple=True,
    metavar="CORPUS:SPLIT",
    help="Never train on these queries, or 'none' [default: the other splits of CORPUS].",
)
@click.option("--drop-leaks", is_flag=True, help="Leave out queries that are held out, instead of stopping.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first queries of the split; files are taken whole.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def teach(corpus: str, split: str | None, out: Path, as_json: bool, **options: Any) -> None:
    """Collect candidate expansions for the queries of CORPUS.

    They come from a teacher (--endpoint and --model), from files (--import), from relevant documents (--judged), from the index
    itself (--expander), or from all.
    """
    from querylift.index_tools.corpora.loading import load

    plan = _plan(options)
    _check(plan, options)
    loaded = load(corpus)
    asked = plan is not None or options["judged"] or not options["pseudo_queries"]
    if asked:
        check_split(loaded, split)
    queries = loaded.queries(split) if asked or split else {}
    held_out = held_out_beside(options["held_out"], loaded, split, asked=asked)
    manifest = _manifest(loaded, split, queries, out, plan, held_out, options)
    work = _work(loaded, split, queries, plan, held_out, options)
    work = _without_leaks(work, held_out, loaded.name, drop=options["drop_leaks"])
    with manifest.running() as results:
        results.update(_collect(work, plan, out, options))
        click.echo(json.dumps(results, indent=2) if as_json else _summary(out, results))
        # Raised here, so that the manifest does not say that the stage is done.
        _check_complete(results, plan, out)


@dataclass(frozen=True)
class Work:
    """What is to be collected: queries for a teacher with the examples to show, queries for an expander, and candidates that
    are there already.
    """

    queries: Mapping[str, str]
    drawn: tuple[Example, ...]
    read: Mapping[str, str]
    given: tuple[Candidate, ...]
    dropped: int = 0


# --- options


def _plan(options: Mapping[str, Any]) -> Plan | None:
    from querylift.trainer.teaching.prompts import Plan

    if options["endpoint"] is None and options["model"] is None:
        return None
    if options["endpoint"] is None or options["model"] is None:
        raise SettingsError("--endpoint and --model belong together; give both, or neither")
    same: tuple[str, ...] = ("model", "samples", "max_tokens", "shots", "seed", "concurrency")
    same += ("requests_per_minute", "token_budget", "price_in", "price_out")
    given = {"prompts": options["prompts"], "temperatures": options["temperatures"]}
    chosen = {name: values for name, values in given.items() if values}
    return Plan(base_url=options["endpoint"], **chosen, **{name: options[name] for name in same})


def _check(plan: Plan | None, options: Mapping[str, Any]) -> None:
    """Raise SettingsError where there is nothing to collect, or where an option has nothing to act on."""
    where_of(options["where"])
    if plan is None and not options["imports"] and not options["judged"] and not options["expander"]:
        raise SettingsError("nothing to collect; name --endpoint and --model, or --import, or --judged, or --expander")
    if options["where"] and not options["imports"]:
        raise SettingsError("--where chooses rows of --import, which is not given; give it, or leave --where out")
    if options["limit"] and plan is None and not options["judged"]:
        if options["pseudo_queries"]:
            raise SettingsError("--limit does not cut --pseudo-queries; say --max-documents in its place")
        if not options["expander"]:
            raise SettingsError("--limit does not cut what --import takes; leave it out, or add --endpoint or --judged")
    if not options["expander"] and (lost := _given(_OF_EXPANDER)):
        raise SettingsError(f"{lost[0]} needs the index's words; give --expander, or leave it out")
    if options["max_documents"] and not options["pseudo_queries"]:
        raise SettingsError("--max-documents needs --pseudo-queries; add it, or leave --max-documents out")
    asking = _given(_ASKING)
    if asking and plan is None:
        raise SettingsError(f"{asking[0]} needs a teacher; give --endpoint and --model, or leave it out")
    if plan and plan.prompts == ("zero-shot",) and _given(("shots",)):
        raise SettingsError("--shots needs --prompt few-shot; add it, or leave --shots out")


_ASKING = frozenset(
    "prompts samples temperatures max_tokens shots concurrency requests_per_minute token_budget price_in price_out".split()
)
_OF_EXPANDER = ("words", "pseudo_queries", "max_documents")


def _given(names: Collection[str]) -> list[str]:
    """The options of these names that stand on the command line, as they are written there."""
    context = click.get_current_context()
    said = {name for name in names if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    return [option.opts[0] for option in context.command.params if option.name in said]


def _manifest(
    corpus: Corpus,
    split: str | None,
    queries: Mapping[str, str],
    out: Path,
    plan: Plan | None,
    held_out: Sequence[HeldOut],
    options: Mapping[str, Any],
) -> Manifest:
    """The manifest of `out`. How fast, how much and from where is not part of it: those may change when a run goes on."""
    from querylift.plugin.fast_expander.folder import ABOUT
    from querylift.trainer.manifest import Manifest

    asked = json.dumps(queries, sort_keys=True).encode()
    settings = {
        "corpus": corpus.name,
        "split": split,
        "queries_sha256": hashlib.sha256(asked).hexdigest(),
        "teacher": plan.decisive() if plan else None,
        "imports": [prefix for prefix, _ in map(prefixed, options["imports"])],
        "where": {key: sorted(values) for key, values in sorted(where_of(options["where"]).items())},
        "judged": options["judged"],
        "held_out": sorted(one.name for one in held_out),
        "drop_leaks": options["drop_leaks"],
    }
    inputs = {
        f"import {n}": path
        for n, (_, path) in enumerate(((name, Path(path)) for name, path in map(prefixed, options["imports"])), 1)
    }
    if options["expander"]:
        settings["expander"] = {name: options[name] for name in _OF_EXPANDER}
        inputs["expander"] = options["expander"] / ABOUT
    return Manifest(out, stage="teach", inputs=inputs, settings=settings, seed=options["seed"], folder=False)


# --- what is collected


def _work(
    corpus: Corpus,
    split: str | None,
    queries: Mapping[str, str],
    plan: Plan | None,
    held_out: Sequence[HeldOut],
    options: Mapping[str, Any],
) -> Work:
    from querylift.trainer.teaching.prompts import FEW_SHOT, from_judged
    from querylift.trainer.teaching.teacher import imported

    given: list[Candidate] = []
    where = where_of(options["where"])
    for prefix, path in map(prefixed, options["imports"]):
        given += imported(Path(path), where, prefix=prefix)
    queries = dict(islice(queries.items(), options["limit"]))
    if options["judged"]:
        given += from_judged(corpus, split, per_query=options["judged"], queries=queries, seed=options["seed"])
    drawn = _drawn(corpus, split, plan, held_out) if plan and FEW_SHOT in plan.prompts else ()
    read = _read(corpus, queries, options) if options["expander"] else {}
    return Work(queries if plan else {}, drawn, read, tuple(given))


def _read(corpus: Corpus, queries: Mapping[str, str], options: Mapping[str, Any]) -> Mapping[str, str]:
    """What the expander is asked: the queries, or some drawn from the documents."""
    from querylift.trainer.teaching.fast_expander_teacher import queries_of

    if not options["pseudo_queries"]:
        return queries
    per_document, at_most = options["pseudo_queries"], options["max_documents"]
    return queries_of(corpus, per_document=per_document, max_documents=at_most, seed=options["seed"])


def _drawn(corpus: Corpus, split: str | None, plan: Plan, held_out: Sequence[HeldOut]) -> tuple[Example, ...]:
    """The examples to show, none of them held out: what is shown comes back in what is written."""
    from querylift.trainer.leaks import leaked, leaks
    from querylift.trainer.teaching.prompts import examples

    without = leaked(leaks(corpus.queries(split).items(), held_out, corpus=corpus.name))
    drawn = examples(corpus, split, k=plan.shots, seed=plan.seed, without=without)
    if not drawn:
        raise SettingsError(f"{corpus.name} has no judged query to show; leave --prompt few-shot out")
    return drawn


def _without_leaks(work: Work, held_out: Sequence[HeldOut], corpus: str, *, drop: bool) -> Work:
    """`work`, once nothing in it is held out. Raises SettingsError where something is and is not to be dropped."""
    from querylift.trainer.leaks import leaked, leaks, refuse

    training = [*work.queries.items(), *work.read.items(), *((given.query_id, given.query) for given in work.given)]
    found = leaks(training, held_out, corpus=corpus)
    if not drop:
        refuse(found)
    out = leaked(found)
    queries = {query_id: query for query_id, query in work.queries.items() if query_id not in out}
    read = {query_id: query for query_id, query in work.read.items() if query_id not in out}
    given = tuple(given for given in work.given if given.query_id not in out)
    if not queries and not read and not given:
        raise SettingsError("there is nothing to collect: no query has a relevant document, or all are held out")
    return Work(queries, work.drawn, read, given, len(out))


def _collect(work: Work, plan: Plan | None, out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    from querylift.trainer.teaching.teacher import append

    results: dict[str, Any] = {"dropped": work.dropped}
    # Asked before anything is written.
    todo = _confirmed(work, plan, out, yes=options["yes"]) if plan else []
    if work.given:
        results["given"] = asdict(append(work.given, out))
    if work.read:
        results["expander"] = _said(work.read, out, options)
    if plan:
        results["teacher"] = _taught(todo, plan, out, work)
    return results


def _said(queries: Mapping[str, str], out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    from querylift.trainer.teaching.fast_expander_teacher import teach

    with progress("asking the expander", len(queries)) as advance:
        return asdict(teach(queries, options["expander"], out, words=options["words"], progress=advance))


def _confirmed(work: Work, plan: Plan, out: Path, *, yes: bool) -> list[Candidate]:
    """The requests to make, once somebody has agreed to what they may cost."""
    from querylift.trainer.teaching.prompts import estimate
    from querylift.trainer.teaching.teacher import missing

    todo = missing(work.queries, plan, out)
    expected = estimate(todo, plan, drawn=work.drawn)
    if not expected.cost or yes:
        return todo
    sentence = _priced(expected, plan)
    if not sys.stdin.isatty():
        raise SettingsError(f"{sentence}; agree to it with --yes, as there is no terminal to ask on")
    click.confirm(f"{sentence}. Go on?", abort=True, err=True)
    return todo


def _priced(expected: Estimate, plan: Plan) -> str:
    budget = f", stopping at {plan.token_budget:,} tokens" if plan.token_budget else ""
    return (
        f"{expected.requests:,} requests to {plan.model} take about {expected.tokens_in:,} prompt tokens and at most "
        f"{expected.tokens_out:,} answer tokens, and cost at most about {_price(expected.cost or 0)}{budget}"
    )


def _price(amount: float) -> str:
    """Two decimals, or as many as it takes to show two digits."""
    places = 1 - math.floor(math.log10(amount)) if 0 < amount < 0.1 else 2
    return f"{amount:,.{places}f}"


def _taught(todo: Sequence[Candidate], plan: Plan, out: Path, work: Work) -> dict[str, Any]:
    from querylift.trainer.teaching.teacher import api_key, teach

    key = api_key(os.environ)
    with progress("asking the teacher", len(todo)) as advance:
        taught = asyncio.run(teach(todo, plan, out, key=key, drawn=work.drawn, progress=advance))
    return taught.to_json()


def _check_complete(results: Mapping[str, Any], plan: Plan | None, out: Path) -> None:
    """Raise GeneratorError where requests are left, or nothing came of them: what comes next would learn from a part."""
    left, failed, used = (results.get("teacher", {}).get(name, 0) for name in ("left", "failed", "tokens_in"))
    if plan and left + failed:
        remedy = "run the same command again to go on"
        if left and not used:
            remedy = f"raise --token-budget: {plan.token_budget:,} does not pay for the first of them"
        requests = "1 request is" if left + failed == 1 else f"{left + failed:,} requests are"
        raise GeneratorError(f"{requests} left: {failed:,} failed, {left:,} beyond the token budget; {remedy}")
    if not out.stat().st_size:
        raise GeneratorError(
            f"{out} holds no candidate: nothing that was collected has words; see what the source gives"
        )


def _summary(out: Path, results: Mapping[str, Any]) -> str:
    lines = [f"{results['dropped']} queries left out: they are held out"] if results["dropped"] else []
    for name in ("given", "expander"):
        if name in results:
            line = "{written:,} written, {known:,} there before, {empty:,} without words"
            lines.append(f"{name}: {line.format(**results[name])}")
    if "teacher" in results:
        lines.append(_taught_line(results["teacher"]))
    return "\n".join([*lines, f"candidates: {out}"])


def _taught_line(taught: Mapping[str, Any]) -> str:
    line = "teacher: {written:,} written, {empty:,} without words, {failed:,} failed; {tokens_in:,} prompt and "
    line = (line + "{tokens_out:,} answer tokens").format(**taught)
    return line + (f", cost {_price(taught['cost'])}" if taught["cost"] is not None else "")
