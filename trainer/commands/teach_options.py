"""The options of `querylift train teach`, and the sources of candidates that they describe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.arguments import parse_conditions, split_prefix
from querylift.trainer.commands.endpoint_options import MODEL_OPTIONS, PACE_OPTIONS, read_model_options

if TYPE_CHECKING:
    from querylift.trainer.teaching.plan import TeachingPlan
    from querylift.trainer.teaching.sources import Sources

_Command = TypeVar("_Command", bound=Callable[..., Any])

_ENDPOINT_OPTIONS = (
    click.option(
        "--endpoint",
        help="URL of a teacher's OpenAI-compatible API, up to and including /v1. QUERYLIFT_TEACHER_API_KEY holds the key.",
    ),
    click.option("--model", help="Name of the teacher's model."),
    click.option(
        "--prompt",
        "prompts",
        multiple=True,
        type=click.Choice(["zero-shot", "few-shot"]),
        help="Prompt for the teacher; repeatable [default: zero-shot].",
    ),
    click.option(
        "--samples", type=int, default=1, show_default=True, help="Answers to each prompt at each temperature."
    ),
    click.option(
        "--temperature",
        "temperatures",
        multiple=True,
        type=float,
        help="Sampling temperature, from 0 to 2; repeatable [default: 0.7].",
    ),
    click.option("--max-tokens", type=int, default=128, show_default=True, help="Longest answer, in tokens."),
    click.option("--shots", type=int, default=4, show_default=True, help="Number of examples in a few-shot prompt."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed for the draws of examples, documents and queries."
    ),
    *MODEL_OPTIONS,
    *PACE_OPTIONS,
)
_FILE_OPTIONS = (
    click.option(
        "--import",
        "imports",
        multiple=True,
        metavar="[NAME=]FILE",
        help="File of candidates, or a table, that was made elsewhere; repeatable. With NAME, the query ids become NAME:id.",
    ),
    click.option(
        "--where",
        multiple=True,
        metavar="KEY=VALUE",
        help="Import only rows with this value; repeatable. A repeated key accepts each of its values. "
        "The value None accepts rows without the key.",
    ),
)
_DOCUMENT_OPTIONS = (
    click.option(
        "--judged",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Number of relevant documents of each query that become candidates.",
    ),
)
_EXPANDER_OPTIONS = (
    click.option(
        "--expander",
        type=click.Path(path_type=Path),
        help="Folder of a fast expander, which answers with words of its index.",
    ),
    click.option(
        "--words",
        type=click.IntRange(1, 40),
        default=8,
        show_default=True,
        help="Number of words in each answer of the expander.",
    ),
    click.option(
        "--pseudo-queries",
        type=click.IntRange(1),
        help="Draw this many queries from each document, and ask them in place of the split's queries.",
    ),
    click.option(
        "--max-documents",
        type=click.IntRange(1),
        help="Draw pseudo-queries from this many random documents [default: all].",
    ),
)


def source_options(command: _Command) -> _Command:
    """Add the options of all sources to a command."""
    for option in reversed((*_ENDPOINT_OPTIONS, *_FILE_OPTIONS, *_DOCUMENT_OPTIONS, *_EXPANDER_OPTIONS)):
        command = option(command)
    return command


def build_sources(options: Mapping[str, Any]) -> Sources:
    """Return the four sources as the options describe them. Raises SettingsError when a value is wrong."""
    from querylift.trainer.chat.endpoint_plan import choose_api_key
    from querylift.trainer.teaching import sources

    endpoint = sources.EndpointSource(_build_plan(options), api_key=choose_api_key(os.environ))
    where = parse_conditions(options["where"])
    files = []
    for argument in options["imports"]:
        prefix, path = split_prefix(argument)
        files.append(sources.ImportedFile(prefix, Path(path)))
    expander = sources.ExpanderOptions(
        folder=options["expander"],
        words=options["words"],
        pseudo_queries=options["pseudo_queries"],
        max_documents=options["max_documents"],
    )
    return sources.Sources(
        files=sources.FileSource(sources.FileOptions(tuple(files), where)),
        documents=sources.DocumentSource(sources.DocumentOptions(options["judged"])),
        expander=sources.ExpanderSource(expander),
        endpoint=endpoint,
    )


def _build_plan(options: Mapping[str, Any]) -> TeachingPlan | None:
    from querylift.trainer.teaching.plan import TeachingPlan

    if options["endpoint"] is None and options["model"] is None:
        return None
    if options["endpoint"] is None or options["model"] is None:
        raise SettingsError("--endpoint and --model belong together; give both, or neither")
    names: tuple[str, ...] = ("model", "samples", "max_tokens", "shots", "seed", "concurrency")
    names += ("requests_per_minute", "token_budget", "price_in", "price_out")
    values = {name: options[name] for name in names}
    values |= {name: options[name] for name in ("prompts", "temperatures") if options[name]}
    return TeachingPlan(base_url=options["endpoint"], **values, **read_model_options(options))


def check_options(sources: Sources, given_options: Sequence[str], *, limit: int | None) -> None:
    """Raise SettingsError when there is nothing to collect, or when an option has no effect."""
    chosen = [source for source in sources if source.is_chosen]
    if not chosen:
        raise SettingsError("nothing to collect; name --endpoint and --model, or --import, or --judged, or --expander")
    for source in sources:
        source.validate(given_options)
    if limit and not any(source.reads_split for source in chosen):
        if sources.expander.is_chosen:
            raise SettingsError("--limit does not limit --pseudo-queries; give --max-documents instead")
        raise SettingsError("--limit does not limit --import; leave it out, or add --endpoint or --judged")


def list_given_options() -> list[str]:
    """Return the options of the running command that are on the command line, as they are written there."""
    context = click.get_current_context()
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) == ParameterSource.COMMANDLINE
    ]
