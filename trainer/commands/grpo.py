"""`querylift train grpo`: the student writes, the engine rewards, and the student learns from it at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import config_option, engine_option, load_settings_with_options
from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.held_out import (
    apply_held_out_options,
    held_out_by_option,
    held_out_option,
    raise_on_held_out_queries,
)
from querylift.trainer.commands.options import seed_option
from querylift.trainer.commands.reward_options import (
    cache_option,
    collect_reward_settings,
    describe_labels,
    index_option,
    mix_option,
    parse_mix,
    patience_option,
    read_labels_file,
    relevant_from_option,
    weights_option,
)
from querylift.trainer.commands.training_evaluation import (
    allow_reported_option,
    evaluate_on_option,
    open_evaluator,
)

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus
    from querylift.plugin.settings import Settings
    from querylift.trainer.rewards.labels import Labels
    from querylift.trainer.training_config import TrainingConfig


@click.command()
@click.argument("queries", metavar="CORPUS:SPLIT")
@engine_option
@click.option("--model", required=True, help="Student to train: the output of `sft`, or any other model.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the adapter, or for the whole model when lora.rank is 0.",
)
@click.option(
    "--training",
    type=click.Path(path_type=Path),
    help="Training configuration with a [grpo] section: a TOML file, or the name of a packaged one.",
)
@click.option(
    "--labels",
    "labels_path",
    type=click.Path(path_type=Path),
    help="TREC qrels file in place of the corpus's judgments, such as a judge's from `querylift judge qrels`.",
)
@relevant_from_option
@index_option
@weights_option
@mix_option
@click.option("--limit", type=click.IntRange(1), help="Use only the first queries that have labels, up to this number.")
@cache_option
@patience_option
@seed_option
@held_out_option
@held_out_by_option
@evaluate_on_option
@allow_reported_option
@config_option
def grpo(queries: str, training: Path | None, config: Path | None, **options: Any) -> None:
    """Train a student on the queries of CORPUS:SPLIT by the rewards of an engine (GRPO).

    It writes several passages for each query. The engine says how much better it ranks with each of them. The student then
    writes more like the better ones. `sample`, `score`, `pairs` and `dpo` do the same with passages written beforehand.

    When the engine stops answering, the command waits. A run that was stopped goes on from its last checkpoint. Keep the model
    where it is until `merge` has made one model of it and the new adapter.
    """
    from querylift.trainer.student.libraries import check_training_packages, silence_libraries
    from querylift.trainer.training_config import load_training_config

    check_training_packages()
    silence_libraries()
    training_config = load_training_config(training)
    training_config = apply_held_out_options(training_config, options["held_out"], options["held_out_by"])
    settings = load_settings_with_options(config, engine=options["engine"])
    train_on_queries(queries, settings, training_config, options)


def train_on_queries(spec: str, settings: Settings, training_config: TrainingConfig, options: dict[str, Any]) -> None:
    """Train on the labelled queries of the split that `spec` names. `options` are those of the command by their names."""
    from querylift.index_tools.corpora.corpus_names import load_corpus_and_split
    from querylift.index_tools.engine import Engine
    from querylift.plugin.files import compute_json_digest
    from querylift.trainer.rewards.engine_retry import EngineRetry, silence_client_log
    from querylift.trainer.rewards.engine_reward import EngineReward
    from querylift.trainer.rewards.ranking_cache import RankingCache
    from querylift.trainer.rewards.scoring import RewardOptions
    from querylift.trainer.student import shared_training
    from querylift.trainer.student.grpo import RewardedQueries, train_by_rewards
    from querylift.trainer.student.training_result import format_result

    reward_options = RewardOptions(index=options["index"], weights=options["weights"], mix=parse_mix(options["mix"]))
    corpus, split = load_corpus_and_split(spec)
    labels = _load_labels(corpus, split, options)
    labelled = labels.select_queries(corpus.read_queries(split), limit=options["limit"])
    if not labelled:
        raise SettingsError(
            f"no query of {spec} has a relevant document in {labels.source}; name another split, or labels for its "
            "queries with --labels"
        )
    labels = labels.restrict_to(labelled)
    evaluate_on = options["evaluate_on"]
    raise_on_held_out_queries(
        corpus,
        labelled,
        labels,
        options["held_out"],
        training_config.held_out,
        by=training_config.held_out_by,
        evaluate_on=evaluate_on,
    )
    evaluator = open_evaluator(
        training_config,
        options["held_out"],
        evaluate_on=evaluate_on,
        index=options["index"] if evaluate_on else None,
        engine=options["engine"] if evaluate_on else None,
        allow_reported=options["allow_reported"],
        settings=settings,
    )
    say = shared_training.silence_other_processes(click.echo)
    silence_client_log()
    out, labels_path = options["out"], options["labels_path"]
    cache_path = options["cache"] or out.with_name("rankings.sqlite")
    with Engine(settings) as engine, RankingCache(cache_path) as cache:
        reward = EngineReward(
            engine=engine,
            settings=settings,
            labels=labels,
            options=reward_options,
            cache=cache,
            retry=EngineRetry(options["patience"], say=lambda sentence: click.echo(sentence, err=True)),
        )
        rewarded = RewardedQueries(
            queries=labelled,
            source=corpus.name,
            reward=reward,
            inputs={} if labels_path is None else {"labels": labels_path},
            settings={
                "queries_sha256": compute_json_digest(labelled),
                **describe_labels(labels, labels_path),
                **collect_reward_settings(reward_options, settings),
            },
        )
        result = train_by_rewards(
            rewarded,
            training_config,
            model=options["model"],
            out=out,
            seed=options["seed"],
            evaluator=evaluator,
            say=say,
        )
    say(format_result(result))


def _load_labels(corpus: Corpus, split: str, options: dict[str, Any]) -> Labels:
    from dataclasses import replace

    from querylift.trainer.rewards.labels import load_split_labels

    relevant_from, path = options["relevant_from"], options["labels_path"]
    if path is not None:
        return read_labels_file(path, relevant_from=relevant_from, default_grade=corpus.relevant_from)
    return load_split_labels(replace(corpus, relevant_from=relevant_from or corpus.relevant_from), split)
