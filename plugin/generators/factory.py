"""Makes a generator from its name, as settings and command lines give it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from querylift.plugin.engine_access import build_engine_access
from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.base import Generator
from querylift.plugin.settings import Settings

GENERATOR_FORMS = "none, table:FILE, feedback, llama, llama:base, llama:FILE.gguf, expander:FOLDER, http:URL"


def make_generator(name: str, settings: Settings) -> Generator:
    """Return the generator with this name, not yet started. Raises SettingsError, MissingExtra."""
    kind, _, argument = name.partition(":")
    make = _MAKERS.get(kind)
    if make is None:
        raise SettingsError(f"generator is {name!r}; use one of: {GENERATOR_FORMS}")
    return make(argument, settings)


def _make_none(argument: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.none import NoneGenerator

    return NoneGenerator()


def _make_table(argument: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.table import TableGenerator

    if not argument:
        raise SettingsError("generator is 'table:' without a file; use table:FILE")
    return TableGenerator(Path(argument))


def _make_feedback(argument: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.rm3 import Rm3Generator

    feedback = settings.feedback
    return Rm3Generator(
        settings.engine,
        field=argument or feedback.field,
        documents=feedback.documents,
        terms=feedback.terms,
        access=build_engine_access(settings),
    )


def _make_http(argument: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.http import HttpGenerator

    # The name is either http:URL or the URL itself, whose scheme the caller has cut off.
    url = argument if argument.startswith(("http://", "https://")) else f"http:{argument}"
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"generator is 'http:{argument}'; use http:URL, like http:http://127.0.0.1:8000/v1")
    key = settings.http.api_key
    return HttpGenerator(
        url,
        model=settings.http.model,
        api_key=key.get_secret_value() if key else None,
        max_seconds=settings.http.max_seconds,
    )


def _make_expander(argument: str, settings: Settings) -> Generator:
    from querylift.plugin.fast_expander.expander_folder import read_expander_record
    from querylift.plugin.generators.cluster_expander import ClusterExpanderGenerator
    from querylift.plugin.generators.fast_expander import FastExpanderGenerator

    if not argument:
        raise SettingsError("generator is 'expander:' without a folder; use expander:FOLDER")
    folder = Path(argument)
    is_cluster = read_expander_record(folder).form == "cluster"
    generator_class = ClusterExpanderGenerator if is_cluster else FastExpanderGenerator
    return generator_class(
        folder,
        settings.engine,
        threads=settings.expander.threads,
        max_pending=settings.expander.queue_size,
        access=build_engine_access(settings),
        endpoint=settings.encoder,
    )


def _make_llama(argument: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.llama.generator import LlamaGenerator

    options = settings.llama
    model, adapter = _choose_llama_files(argument, options.adapter)
    return LlamaGenerator(
        model,
        adapter,
        threads=options.threads,
        slots=options.slots,
        queue_size=options.queue_size,
        max_seconds=options.max_seconds,
    )


def _choose_llama_files(argument: str, adapter: Path | None) -> tuple[Path, Path | None]:
    """Return the model file, and the adapter to put on it, if any."""
    from querylift.plugin.generators.llama.model_file import (
        find_packaged_model,
        find_shipped_adapter,
        get_prepared_student_path,
    )

    if argument == "base":
        return find_packaged_model(), None
    if argument or adapter:
        return Path(argument) if argument else find_packaged_model(), adapter
    model, shipped_adapter = find_packaged_model(), find_shipped_adapter()
    if shipped_adapter is None:
        return model, None
    prepared_student = get_prepared_student_path(model, shipped_adapter)
    if prepared_student.is_file():
        return prepared_student, None
    return model, shipped_adapter


_MAKERS: dict[str, Callable[[str, Settings], Generator]] = {
    "none": _make_none,
    "table": _make_table,
    "feedback": _make_feedback,
    "expander": _make_expander,
    "http": _make_http,
    "https": lambda argument, settings: _make_http(f"https:{argument}", settings),
    "llama": _make_llama,
}
