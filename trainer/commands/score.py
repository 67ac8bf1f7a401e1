"""`querylift train score`: measure what each candidate gains on the engine."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)
from querylift.plugin.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from querylift.plugin.settings import Settings
    from querylift.trainer.candidates import Candidate
    from querylift.trainer.rewards.labels import Labels
    from querylift.trainer.rewards.scoring import RewardOptions, ScoringResult


@click.command()
@click.argument("candidates", type=click.Path(path_type=Path))
@engine_option
@click.option("--corpus", help="Corpus with the judgments. Its queries must be those of CANDIDATES.")
@click.option("--split", help="Split of the corpus [default: its only one].")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="TREC qrels file, for example of a judge, in place of the corpus's judgments.",
)
@click.option(
    "--relevant-from",
    type=click.IntRange(min=1),
    help="Lowest grade that counts as relevant for recall [default: the corpus's, or 1].",
)
@click.option("--prefix", default="", help="Prefix of the query ids in CANDIDATES, which the labels' ids lack.")
@click.option("--index", required=True, help="Index to search.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    default=[0.2],
    show_default=True,
    help="Weight of the expansion; repeatable. The reward is the mean over all weights.",
)
@click.option(
    "--mix",
    multiple=True,
    metavar="MEASURE=SHARE",
    default=["ndcg_at_10=1"],
    show_default=True,
    help="Measure of the reward and its share; repeatable.",
)
@click.option("--max-words", type=int, help="Cut a teacher's passage to this many words [default: no cut].")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="File of scored candidates to write, as JSON lines."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="File that keeps the rankings of all searches [default: rankings.sqlite in the folder of --out].",
)
@click.option(
    "--patience",
    type=float,
    default=600.0,
    show_default=True,
    help="Seconds to wait for an engine that does not answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def score(candidates: Path, config: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Score CANDIDATES on an index.

    The reward says how much better the engine ranks the relevant documents with the candidate than without it.
    The candidate is added to the search as the proxy would add it. When the engine stops answering, the command waits.
    It keeps every ranking, so that you can stop it and run it again.
    """
    from querylift.index_tools.engine import Engine
    from querylift.trainer.candidates import read_candidates
    from querylift.trainer.commands.output_checks import check_output_file
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.rewards.engine_retry import EngineRetry
    from querylift.trainer.rewards.ranking_cache import RankingCache
    from querylift.trainer.rewards.scored_candidates import write_scored_candidates
    from querylift.trainer.rewards.scoring import RewardOptions, score_candidates

    reward_options = RewardOptions(
        index=options["index"],
        weights=options["weights"],
        mix=dict(_parse_share(item) for item in options["mix"]),
        max_words=options["max_words"],
    )
    inputs = {"candidates": candidates} | ({"labels": options["labels"]} if options["labels"] else {})
    check_output_file(out, inputs=inputs.values())
    all_candidates = list(read_candidates(candidates))
    labels = _load_labels(options, all_candidates)
    _check_candidates(candidates, all_candidates, labels)
    settings = load_settings_with_options(config, engine=options["engine"])
    manifest_settings = _collect_manifest_settings(reward_options, labels, settings)
    manifest = Manifest(out, stage="score", inputs=inputs, settings=manifest_settings, is_folder=False)
    # The client logs a traceback for every failed attempt. `EngineRetry` reports a failure once.
    logging.getLogger("opensearch").setLevel(logging.CRITICAL)
    retry = EngineRetry(options["patience"], say=lambda sentence: click.echo(sentence, err=True))
    cache_path = options["cache"] or out.with_name("rankings.sqlite")
    with manifest.record_run() as results:
        started_s = time.monotonic()
        with (
            Engine(settings) as engine,
            RankingCache(cache_path) as cache,
            show_progress("scoring", len(all_candidates)) as advance,
        ):
            scoring = score_candidates(
                all_candidates,
                engine=engine,
                settings=settings,
                labels=labels,
                options=reward_options,
                cache=cache,
                retry=retry,
                progress=advance,
            )
        if scoring.index_changed:
            raise EngineError(
                f"the index {reward_options.index!r} changed while it was searched; score again once nothing writes to it"
            )
        write_scored_candidates(out, scoring.scored)
        results |= _summarise(scoring, len(all_candidates), took_s=time.monotonic() - started_s)
    click.echo(json.dumps(dict(manifest.results), indent=2) if as_json else _format_summary(dict(manifest.results)))


def _check_candidates(path: Path, candidates: Sequence[Candidate], labels: Labels) -> None:
    """Raise SettingsError when there are no candidates, or none of a query with a relevant document."""
    if not candidates:
        raise SettingsError(f"{path} holds no candidate; write candidates there with `querylift train teach`")
    if not labels.select_usable_qrels().keys() & {candidate.query_id for candidate in candidates}:
        raise SettingsError(
            f"no query of {path} (the first is {candidates[0].query_id!r}) has a relevant document in {labels.source}; "
            "name other labels, or give the prefix of the query ids with --prefix"
        )


def _collect_manifest_settings(reward_options: RewardOptions, labels: Labels, settings: Settings) -> dict[str, Any]:
    """Return the settings that decide the rewards. The state of the index is one of the results."""
    index_settings = settings.find_index_settings(reward_options.index)
    return {
        "index": reward_options.index,
        "weights": reward_options.weights,
        "mix": reward_options.mix,
        "max_words": reward_options.max_words,
        "labels": labels.source,
        "labels_sha256": labels.compute_digest(),
        "table": index_settings.model_dump(exclude={"weight", "enabled"}) if index_settings else {},
    }


def _summarise(scoring: ScoringResult, candidate_count: int, *, took_s: float) -> dict[str, Any]:
    """Return the counts, the mean reward of every method, and the number of queries whose candidates differ, as JSON."""
    from querylift.index_tools.evaluation.measures import calculate_mean

    rewards_by_method, rewards_by_query = defaultdict(list), defaultdict(set)
    for scored in scoring.scored:
        rewards_by_method[scored.candidate.method].append(scored.reward.value)
        rewards_by_query[scored.candidate.query_id].add(round(scored.reward.value, 9))
    return {
        "candidates": candidate_count,
        "scored": len(scoring.scored),
        "without_labels": scoring.unlabelled,
        "refused": len(scoring.rejections),
        "refusals": sorted(set(scoring.rejections.values()))[:5],
        "not_expanded": dict(scoring.not_expanded),
        "searches": scoring.search_count,
        "from_cache": scoring.cache_hits,
        "candidates_per_s": round(candidate_count / max(took_s, 1e-9), 1),
        "mean_reward": {method: calculate_mean(rewards) for method, rewards in sorted(rewards_by_method.items())},
        "queries": len(rewards_by_query),
        "queries_with_spread": sum(len(rewards) > 1 for rewards in rewards_by_query.values()),
        "index_fingerprint": scoring.fingerprint,
        "index_changed": scoring.index_changed,
    }


def _parse_share(text: str) -> tuple[str, float]:
    measure, equals, share = text.partition("=")
    try:
        return measure.strip(), float(share if equals else "1")
    except ValueError:
        raise SettingsError(f"--mix is {text!r}; write MEASURE=SHARE, for example recall_at_100=0.3") from None


def _load_labels(options: dict[str, Any], candidates: Sequence[Candidate]) -> Labels:
    """Load the judgments that score the candidates, of the corpus or of a file. Raises SettingsError when there are none."""
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.plugin.expansion import clean_query
    from querylift.trainer.rewards.labels import load_split_labels, read_labels

    if options["corpus"] is None:
        if options["labels"] is None:
            raise SettingsError("no judgments are named; give --corpus with judgments, or --labels FILE")
        if options["split"] is not None:
            raise SettingsError(f"--split is {options['split']!r} without a corpus; give --corpus, or leave it out")
        return read_labels(options["labels"], relevant_from=options["relevant_from"] or 1, prefix=options["prefix"])
    corpus = load_corpus(options["corpus"], relevant_from=options["relevant_from"])
    split = options["split"]
    if split is None and len(corpus.split_names) == 1:
        split = corpus.split_names[0]
    queries = {options["prefix"] + query_id: text for query_id, text in corpus.read_queries(split).items()}
    for candidate in candidates:
        text = queries.get(candidate.query_id, candidate.query)
        if clean_query(text).casefold() != clean_query(candidate.query).casefold():
            raise SettingsError(
                f"query {candidate.query_id!r} has another text in {options['corpus']} than in the candidates; "
                "name the candidates' corpus"
            )
    if options["labels"] is not None:
        return read_labels(options["labels"], relevant_from=corpus.relevant_from, prefix=options["prefix"])
    return load_split_labels(corpus, split, prefix=options["prefix"])


def _format_summary(results: dict[str, Any]) -> str:
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
