"""`querylift judge adapt`: adapt a local large model to a domain, in up to three steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import engine_option, load_settings_with_options, show_progress
from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.judge.query_options import scale_option
from querylift.trainer.commands.options import seed_option

if TYPE_CHECKING:
    from querylift.plugin.settings import Settings
    from querylift.trainer.judge.adaptation.adaptation_config import AdaptationConfig
    from querylift.trainer.judge.adaptation.pretrain import DomainSource
    from querylift.trainer.student.shared_training import Say
    from querylift.trainer.student.training_result import TrainingResult

AnyCommand = Callable[..., Any]

_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Configuration of the adaptation: a TOML file, or judge-smoke or judge-qwen3-4b [default: built-in values].",
)
_out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the adapter, or for the whole model when lora.rank is 0.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON. Progress goes to standard error.")
_annotations_option = click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    required=True,
    help="File of annotations, as `querylift judge annotate` writes them.",
)


@click.group()
def adapt() -> None:
    """Adapt a local large model to your domain, before it annotates.

    Each step is optional and starts from the output of any other: pretrain, sft, dpo. A step that was stopped goes on from
    where it was. Serve the result with any server: `querylift train merge` makes one model of an adapter and its base.
    """


@adapt.command()
@click.option(
    "--model", help="Base: a folder, a FILE.gguf, or the name of a packaged model [default: the configuration's]."
)
@click.option("--index", help="Index whose documents are read.")
@click.option("--corpus", help="Corpus whose documents are read, in place of --index.")
@click.option(
    "--field",
    "fields",
    multiple=True,
    help="Text field of the index to read; repeatable [default: chosen by a look at the index].",
)
@click.option(
    "--max-documents",
    type=click.IntRange(min=1),
    help="Read a random sample of this many documents [default: the configuration's].",
)
@engine_option
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    envvar="QUERYLIFT_CONFIG",
    help="Settings file with the engine's account [default: querylift.toml in this folder, if it exists].",
)
@_out_option
@_config_option
@seed_option
@_json_option
def pretrain(
    model: str | None,
    index: str | None,
    corpus: str | None,
    fields: tuple[str, ...],
    max_documents: int | None,
    engine: str | None,
    settings_file: Path | None,
    out: Path,
    config: Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Continue the pre-training of a base on the documents of an index or a corpus.

    The model learns the words of your domain by plain language modelling. It needs no annotations.
    """
    adaptation_config = _load_config(config)
    if max_documents:
        options = adaptation_config.pretrain.model_copy(update={"max_documents": max_documents})
        adaptation_config = adaptation_config.model_copy(update={"pretrain": options})
    if (index is None) == (corpus is None):
        raise SettingsError("--index and --corpus name two sources of documents; give exactly one of them")
    if corpus and fields:
        raise SettingsError("--field names fields of --index, which is not given; give it, or leave --field out")
    from querylift.trainer.judge.adaptation.pretrain import pretrain_on_documents

    say = _choose_say(as_json)
    if index is not None:
        source = _make_index_source(index, fields, load_settings_with_options(settings_file, engine=engine), say=say)
    else:
        source = _make_corpus_source(str(corpus))
    result = pretrain_on_documents(
        source,
        adaptation_config,
        model=adaptation_config.model.base if model is None else model,
        out=out,
        seed=adaptation_config.seed if seed is None else seed,
        say=say,
    )
    _print_result(result, as_json=as_json)


@adapt.command()
@click.option("--model", required=True, help="Model to train: the output of another step, or any other model.")
@_annotations_option
@scale_option
@_out_option
@_config_option
@seed_option
@_json_option
def sft(
    model: str, annotations: Path, scale_text: str, out: Path, config: Path | None, seed: int | None, as_json: bool
) -> None:
    """Fine-tune a model on annotations: reasoning, criteria and grade, after the prompt of `querylift judge annotate`.

    Annotations without a reasoning, or without all four criteria, are left out and counted.
    """
    adaptation_config = _load_config(config)
    from querylift.index_tools.judging.grade_scale import parse_scale
    from querylift.trainer.judge.adaptation.sft import train_on_annotations

    result = train_on_annotations(
        annotations,
        adaptation_config,
        model=model,
        out=out,
        scale=parse_scale(scale_text),
        seed=adaptation_config.seed if seed is None else seed,
        say=_choose_say(as_json),
    )
    _print_result(result, as_json=as_json)


@adapt.command()
@click.option("--model", required=True, help="Model to train: the output of `sft`, or any other model.")
@_annotations_option
@scale_option
@_out_option
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    help="File for the sampled answers, which a repeated command uses again [default: OUT-answers.jsonl].",
)
@_config_option
@seed_option
@_json_option
def dpo(
    model: str,
    annotations: Path,
    scale_text: str,
    out: Path,
    answers: Path | None,
    config: Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Let a model answer annotated pairs, and train it on its best and worst answers.

    The reward of an answer weighs five dimensions: the right grade, criteria that agree with it, a reasoning that is
    grounded in the document, its length, and the format. [reward] of the configuration has their weights.
    """
    adaptation_config = _load_config(config)
    from querylift.index_tools.judging.grade_scale import parse_scale
    from querylift.trainer.judge.adaptation.dpo import train_on_own_answers

    result = train_on_own_answers(
        annotations,
        adaptation_config,
        model=model,
        out=out,
        answers_path=answers,
        scale=parse_scale(scale_text),
        seed=adaptation_config.seed if seed is None else seed,
        say=_choose_say(as_json),
        show_progress=show_progress,
    )
    _print_result(result, as_json=as_json)


def _load_config(path: Path | None) -> AdaptationConfig:
    """Load the configuration, when the training packages are installed."""
    from querylift.trainer.judge.adaptation.adaptation_config import load_adaptation_config
    from querylift.trainer.student.libraries import check_training_packages, silence_libraries

    check_training_packages()
    silence_libraries()
    return load_adaptation_config(path)


def _choose_say(as_json: bool) -> Say:
    """Return how lines are printed: by the first process alone, and on standard error beside JSON."""
    from querylift.trainer.student.shared_training import silence_other_processes

    return silence_other_processes(lambda line: click.echo(line, err=as_json))


def _print_result(result: TrainingResult, *, as_json: bool) -> None:
    from querylift.trainer.student.shared_training import silence_other_processes
    from querylift.trainer.student.training_result import format_result

    say = silence_other_processes(click.echo)
    say(json.dumps(asdict(result), indent=2) if as_json else format_result(result))


def _make_index_source(index: str, fields: tuple[str, ...], settings: Settings, *, say: Say) -> DomainSource:
    from querylift.trainer.judge.adaptation.domain_texts import iter_index_documents
    from querylift.trainer.judge.adaptation.pretrain import DomainSource

    return DomainSource(
        f"index {index}",
        {"index": index, "fields": list(fields)},
        lambda: iter_index_documents(settings, index, fields, say=say),
    )


def _make_corpus_source(name: str) -> DomainSource:
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.trainer.judge.adaptation.pretrain import DomainSource

    corpus = load_corpus(name)
    if not corpus.has_documents:
        raise SettingsError(f"{corpus.name!r} has no documents; name the index that holds them with --index")
    return DomainSource(f"corpus {corpus.name}", {"corpus": corpus.name}, corpus.iter_documents)
