"""Options of `sft`, `dpo` and `grpo` that name what a student is evaluated on while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from querylift.index_tools.commands.options import engine_option, load_settings_with_options
from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.plugin.settings import Settings
    from querylift.trainer.student.search_evaluation import SearchEvaluator
    from querylift.trainer.training_config import TrainingConfig

_Command = TypeVar("_Command", bound=Callable[..., object])
evaluate_on_option = click.option(
    "--evaluate-on",
    metavar="CORPUS:SPLIT",
    help="Measure nDCG@10 on this split while training, as [evaluation] of the configuration says.",
)
allow_reported_option = click.option(
    "--allow-reported",
    is_flag=True,
    help="Allow --evaluate-on to share queries with a held-out split. Results on that split will then be too good.",
)
_OPTIONS = (
    evaluate_on_option,
    click.option("--index", help="Index to search for --evaluate-on."),
    engine_option,
    allow_reported_option,
)


def evaluation_options(command: _Command) -> _Command:
    """Add the options that `open_evaluator` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_evaluator(
    config: TrainingConfig,
    held_out: Sequence[str],
    *,
    evaluate_on: str | None,
    index: str | None,
    engine: str | None,
    allow_reported: bool,
    settings: Settings | None = None,
) -> SearchEvaluator | None:
    """Return what evaluates the student, None without a split.

    `settings` are those of the engine, None for those of this folder. `held_out` are the splits of the command line. Without
    them, those of `config` are held out. Raises SettingsError when the split has held-out queries, or when no query of it
    is judged.
    """
    if evaluate_on is None:
        if index is not None or engine is not None or allow_reported:
            raise SettingsError(
                "--index, --engine and --allow-reported belong to --evaluate-on, which is missing; name a split with it"
            )
        return None
    if index is None:
        raise SettingsError(f"--evaluate-on is {evaluate_on!r} without an index; name the one to search with --index")
    from querylift.index_tools.corpora.corpus_names import load_corpus_and_split
    from querylift.trainer.rewards.engine_retry import silence_client_log
    from querylift.trainer.rewards.labels import load_split_labels
    from querylift.trainer.student.search_evaluation import SearchEvaluator

    corpus, split = load_corpus_and_split(evaluate_on)
    judged = load_split_labels(corpus, split)
    queries = judged.select_queries(corpus.read_queries(split), limit=config.evaluation.limit)
    if not queries:
        raise SettingsError(
            f"--evaluate-on is {evaluate_on!r}, where no query has a relevant document; name another split"
        )
    if not allow_reported:
        _raise_on_reported_queries(
            queries,
            evaluate_on,
            corpus.name,
            held_out or config.held_out,
        )
    silence_client_log()
    return SearchEvaluator(
        name=evaluate_on,
        queries=queries,
        labels=judged.restrict_to(queries),
        settings=settings or load_settings_with_options(None, engine=engine),
        index=index,
        weight=config.evaluation.weight,
        batch_size=config.sample.batch_size,
    )


def _raise_on_reported_queries(
    queries: dict[str, str], evaluate_on: str, corpus_name: str, held_out: Sequence[str]
) -> None:
    from querylift.trainer.commands.held_out import load_measured_splits
    from querylift.trainer.leaks import collect_leaked_ids, find_leaks

    leaks = find_leaks(queries.items(), load_measured_splits(held_out), corpus=corpus_name)
    if leaks:
        raise SettingsError(
            f"--evaluate-on is {evaluate_on!r}, of which {len(collect_leaked_ids(leaks))} queries are in the held-out split "
            f"{leaks[0].split}, and a step that is chosen on reported queries makes the report too good; name another "
            "split, or add --allow-reported"
        )
