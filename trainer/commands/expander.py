"""`querylift train expander`: train the matrix of a fast expander."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.index_tools.commands.options import config_option, engine_option, load_settings_with_options
from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.held_out import (
    choose_held_out_splits,
    held_out_by_option,
    held_out_or_other_splits_option,
)
from querylift.trainer.commands.options import seed_option
from querylift.trainer.fast_expander.stage_names import STAGE_NAMES

if TYPE_CHECKING:
    from querylift.trainer.fast_expander.training_context import JudgedTrainingQueries
    from querylift.trainer.training_config import HeldOutBy


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@engine_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the trained expander.")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(STAGE_NAMES),
    default=["index"],
    show_default=True,
    help="Stage to run; repeatable, in the order index, judged, preferences.",
)
@click.option("--corpus", help="Corpus with judged queries, for the stages judged and preferences.")
@click.option("--split", help="Split of the corpus to train on [default: its only one].")
@click.option(
    "--candidates",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File of a teacher's candidates for the stage judged; repeatable.",
)
@click.option(
    "--training",
    type=click.Path(path_type=Path),
    help="Training configuration with an [expander] section: a TOML file, or the name of a packaged one.",
)
@seed_option
@held_out_or_other_splits_option
@held_out_by_option
@config_option
def expander(
    folder: Path,
    engine: str | None,
    out: Path,
    stages: tuple[str, ...],
    corpus: str | None,
    split: str | None,
    candidates: tuple[Path, ...],
    training: Path | None,
    seed: int | None,
    held_out: tuple[str, ...],
    held_out_by: HeldOutBy | None,
    config: Path | None,
) -> None:
    """Train the expander in FOLDER, which `querylift expander build --form terms` made.

    The stage index learns from the texts of the index alone. The stage judged learns from the judged queries of
    --corpus. The stage preferences tries sets of terms on the engine and learns to prefer the better ones.

    A run that was stopped goes on after its last finished stage.
    """
    from querylift.trainer.student.libraries import check_training_packages
    from querylift.trainer.training_config import load_training_config

    check_training_packages()
    from querylift.index_tools.engine import Engine
    from querylift.trainer.fast_expander.stages import run_stages
    from querylift.trainer.fast_expander.training_context import load_training_context
    from querylift.trainer.manifest import Manifest

    ordered_stages = [stage for stage in STAGE_NAMES if stage in stages]
    if list(stages) != ordered_stages:
        raise SettingsError(f"--stage is {', '.join(stages)}; give each once, in the order {', '.join(STAGE_NAMES)}")
    training_config = load_training_config(training)
    seed = training_config.seed if seed is None else seed
    by = held_out_by or training_config.held_out_by
    judged = _load_judged_queries(corpus, split, candidates, held_out, by=by) if corpus else None
    if judged is None and set(stages) & {"judged", "preferences"}:
        raise SettingsError(f"stage {stages[-1]} needs judged queries; name them with --corpus and --split")
    settings = load_settings_with_options(config, engine=engine)
    manifest = Manifest(
        out,
        stage="expander",
        inputs={"expander": folder, **{f"candidates {number}": path for number, path in enumerate(candidates)}},
        settings={"stages": stages, "corpus": corpus, "split": split, **training_config.expander.model_dump()},
        seed=seed,
        is_folder=True,
        essential_files=("*.onnx", "*.json"),
    )
    if not manifest.is_done:
        with manifest.record_run() as results, Engine(settings) as client:
            options = training_config.expander
            context = load_training_context(folder, client, settings, options, seed=seed, tell=click.echo)
            run_stages(context, folder, ordered_stages, out, judged)
            results["stages"] = list(stages)
    click.echo(f"{out}: serve it with --generator expander:{out}")


def _load_judged_queries(
    corpus: str, split: str | None, candidate_files: tuple[Path, ...], held_out: tuple[str, ...], *, by: HeldOutBy
) -> JudgedTrainingQueries:
    """Load the queries, judgments and candidates to train on. Raises SettingsError on a leak.

    By document, a query leaks by any of its relevant documents, because the stages learn from all of them.
    """
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.trainer.candidates import read_candidates
    from querylift.trainer.commands.arguments import check_split
    from querylift.trainer.document_leaks import (
        find_document_leaks,
        find_leaks_of_relevant_documents,
        get_candidate_document,
        raise_on_document_leaks,
        select_relevant_documents,
    )
    from querylift.trainer.fast_expander.training_context import JudgedTrainingQueries
    from querylift.trainer.leaks import find_leaks, raise_on_leaks
    from querylift.trainer.rewards.labels import load_split_labels

    loaded_corpus = load_corpus(corpus)
    check_split(loaded_corpus, split)
    split = split or loaded_corpus.split_names[0]
    queries = dict(loaded_corpus.read_queries(split))
    held_out_splits = choose_held_out_splits(held_out, loaded_corpus, split, by=by)
    leaks = find_leaks(sorted(queries.items()), held_out_splits, corpus=loaded_corpus.name)
    raise_on_leaks(leaks, remedy="leave them out with `querylift train split`, or name other splits with --held-out")
    candidates = [candidate for path in candidate_files for candidate in read_candidates(path)]
    labels = load_split_labels(loaded_corpus, split)
    relevant = select_relevant_documents(labels.qrels, relevant_from=labels.relevant_from)
    document_leaks = (
        *find_leaks_of_relevant_documents(loaded_corpus, relevant, held_out_splits),
        *find_document_leaks(map(get_candidate_document, candidates), held_out_splits),
    )
    remedy = "leave them out with `querylift train split --by document`, or name other splits with --held-out"
    raise_on_document_leaks(document_leaks, remedy=remedy)
    return JudgedTrainingQueries(queries, labels, candidates)
