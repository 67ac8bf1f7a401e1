"""`querylift train score`: what each candidate does to its query on the engine."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import config_option, engine_option, progress, settings_with
from querylift.plugin.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from querylift.plugin.settings import Settings
    from querylift.trainer.candidates import Candidate
    from querylift.trainer.rewards.scoring import Labels, RewardOptions, Scoring


@click.command()
@click.argument("candidates", type=click.Path(path_type=Path))
@engine_option
@click.option("--corpus", help="Corpus whose judgments score; its queries are checked against the candidates'.")
@click.option("--split", help="Split of the corpus [default: its only one].")
@click.option("--labels", type=click.Path(path_type=Path), help="Judge file (TREC qrels) that scores instead.")
@click.option("--relevant-from", type=click.IntRange(min=1), help="Lowest grade that recall counts.")
@click.option("--prefix", default="", help="What stands before the labels' query ids in CANDIDATES.")
@click.option("--index", required=True, help="Index to search.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    default=[0.2],
    show_default=True,
    help="Weight of an expansion; repeatable.",
)
@click.option(
    "--mix", multiple=True, metavar="MEASURE=SHARE", default=["ndcg_at_10=1"], show_default=True, help="Repeatable."
)
@click.option("--max-words", type=int, help="Cut a teacher's passage to so many words [default: whole].")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File of scored candidates, JSON lines.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="What was searched [default: rankings.sqlite beside it]."
)
@click.option(
    "--patience", type=float, default=600.0, show_default=True, help="Seconds to wait for an engine that left."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def score(candidates: Path, config: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Score CANDIDATES on an index by the rewrite that is served: measures of the rewritten query less the plain one's.

    An engine that goes away is waited for. What was searched is kept, so the command can be run again after a kill.
    """
    from querylift.index_tools.engine import Engine
    from querylift.trainer.candidates import read
    from querylift.trainer.commands.output_checks import check_out
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.rewards.ranking_cache import RankingCache
    from querylift.trainer.rewards.retry import Patience
    from querylift.trainer.rewards.scoring import RewardOptions, write_scored
    from querylift.trainer.rewards.scoring import score as score_all

    how = RewardOptions(
        index=options["index"],
        weights=options["weights"],
        mix=dict(map(_share, options["mix"])),
        max_words=options["max_words"],
    )
    inputs = {"candidates": candidates} | ({"labels": options["labels"]} if options["labels"] else {})
    check_out(out, inputs=inputs.values())
    wanted = list(read(candidates))
    labels = _labels(options, wanted)
    _refuse_nothing(candidates, wanted, labels)
    settings = settings_with(config, engine=options["engine"])
    manifest = Manifest(out, stage="score", inputs=inputs, settings=_asked(how, labels, settings), folder=False)
    logging.getLogger("opensearch").setLevel(
        logging.CRITICAL
    )  # It writes a traceback for every try; patience says it once.
    with manifest.running() as results:
        started_s = time.monotonic()
        cache = options["cache"] or out.with_name("rankings.sqlite")
        with Engine(settings) as engine, RankingCache(cache) as kept, progress("scoring", len(wanted)) as advance:
            patience = Patience(options["patience"], tell=lambda sentence: click.echo(sentence, err=True))
            found = score_all(
                wanted,
                engine=engine,
                settings=settings,
                labels=labels,
                options=how,
                cache=kept,
                patience=patience,
                progress=advance,
            )
        if found.changed:
            raise EngineError(
                f"the index {how.index!r} changed while it was searched; score again once nothing writes to it"
            )
        write_scored(out, found.scored)
        results |= summary(found, len(wanted), took_s=time.monotonic() - started_s)
    click.echo(json.dumps(dict(manifest.results), indent=2) if as_json else _text(dict(manifest.results)))


def _refuse_nothing(path: Path, candidates: Sequence[Candidate], labels: Labels) -> None:
    """Raise SettingsError where there is nothing to score: no candidates, or none of a query with a relevant document."""
    if not candidates:
        raise SettingsError(f"there is no candidate in {path}; write candidates there with `querylift train teach`")
    if not labels.usable().keys() & {one.query_id for one in candidates}:
        raise SettingsError(
            f"no query of {path} (the first is {candidates[0].query_id!r}) has a relevant document in {labels.source}; "
            "name the labels of these queries, or with --prefix what stands before the labels' query ids"
        )


def _asked(how: RewardOptions, labels: Labels, settings: Settings) -> dict[str, Any]:
    """What decides the rewards, the index as it stands aside: that is among the results."""
    table = settings.index_for(how.index)
    return {
        "index": how.index,
        "weights": how.weights,
        "mix": how.mix,
        "max_words": how.max_words,
        "labels": labels.source,
        "labels_sha256": labels.digest(),
        "table": table.model_dump(exclude={"weight", "enabled"}) if table else {},
    }


def summary(found: Scoring, candidates: int, *, took_s: float) -> dict[str, Any]:
    """The counts, the mean reward of every method, and the share of queries whose candidates differ, as JSON."""
    from querylift.index_tools.evaluation.measures import mean

    by_method, by_query = defaultdict(list), defaultdict(set)
    for one in found.scored:
        by_method[one.candidate.method].append(one.reward.reward)
        by_query[one.candidate.query_id].add(round(one.reward.reward, 9))
    spread = sum(len(rewards) > 1 for rewards in by_query.values())
    return {
        "candidates": candidates,
        "scored": len(found.scored),
        "without_labels": found.unlabelled,
        "refused": len(found.refused),
        "refusals": sorted(set(found.refused.values()))[:5],
        "not_expanded": dict(found.as_it_is),
        "searches": found.searched,
        "from_cache": found.from_cache,
        "candidates_per_s": round(candidates / max(took_s, 1e-9), 1),
        "mean_reward": {method: mean(rewards) for method, rewards in sorted(by_method.items())},
        "queries": len(by_query),
        "queries_with_spread": spread,
        "index_fingerprint": found.fingerprint,
        "index_changed": found.changed,
    }


def _share(text: str) -> tuple[str, float]:
    measure, equals, share = text.partition("=")
    try:
        return measure.strip(), float(share if equals else "1")
    except ValueError:
        raise SettingsError(f"--mix is {text!r}; write MEASURE=SHARE, for example recall_at_100=0.3") from None


def _labels(options: dict[str, Any], candidates: list[Candidate]) -> Labels:
    from querylift.index_tools.corpora.loading import load
    from querylift.plugin.expansion import clean_query
    from querylift.trainer.rewards.scoring import labels_from, labels_of

    if options["corpus"] is None:
        if options["labels"] is None:
            raise SettingsError("nothing says what is relevant; give --corpus with judgments, or --labels FILE")
        if options["split"] is not None:
            raise SettingsError(f"--split is {options['split']!r} of no corpus; name it with --corpus, or leave it out")
        return labels_from(options["labels"], relevant_from=options["relevant_from"] or 1, prefix=options["prefix"])
    corpus = load(options["corpus"], relevant_from=options["relevant_from"])
    split = options["split"]
    if split is None and len(corpus.splits()) == 1:
        split = corpus.splits()[0]
    queries = {options["prefix"] + query_id: text for query_id, text in corpus.queries(split).items()}
    for one in candidates:
        text = queries.get(one.query_id, one.query)
        if clean_query(text).casefold() != clean_query(one.query).casefold():
            raise SettingsError(
                f"query {one.query_id!r} is another in {options['corpus']} than in the candidates; name their corpus"
            )
    if options["labels"] is not None:
        return labels_from(options["labels"], relevant_from=corpus.relevant_from, prefix=options["prefix"])
    return labels_of(corpus, split, prefix=options["prefix"])


def _text(results: dict[str, Any]) -> str:
    lines = [
        f"candidates   {results['candidates']}: {results['scored']} scored, "
        f"{results['without_labels']} of queries without a relevant document, {results['refused']} refused",
        f"searches     {results['searches']} made, {results['from_cache']} from the cache",
        f"speed        {results['candidates_per_s']:g} candidates/s",
        f"spread       {results['queries_with_spread']} of {results['queries']} queries have candidates that differ",
    ]
    lines += [f"refused      {reason}" for reason in results["refusals"]]
    lines += [f"not expanded {count} ({reason})" for reason, count in results["not_expanded"].items()]
    lines += [f"mean reward  {mean:+.4f} {method}" for method, mean in results["mean_reward"].items()]
    return "\n".join(lines)
