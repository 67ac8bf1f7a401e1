"""Makes a generator from its name, as settings and command lines give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.plugin.engine.access import build_engine_access
from querylift.plugin.engine.urls import split_http_url
from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.base import Generator
from querylift.plugin.settings import Settings, parse_settings

GENERATOR_FORMS = "none, table:FILE, feedback, llama, llama:base, llama:FILE.gguf, expander:FOLDER, http:URL"


def make_generator(name: str, settings: Settings) -> Generator:
    """Return the generator with this name, not yet started. Raises SettingsError, MissingExtra."""
    kind, _, argument = name.partition(":")
    make = _MAKERS.get(kind)
    if make is None:
        raise SettingsError(f"generator is {name!r}; use one of: {GENERATOR_FORMS}")
    return make(argument, settings)


_ENGINE_SETTINGS = (
    "engine",
    "engine_username",
    "engine_password",
    "engine_ca_file",
    "engine_client_cert",
    "engine_client_key",
    "engine_connect_timeout_s",
    "aws",
)
_SETTINGS_BY_KIND: dict[str, tuple[str, ...]] = {
    "none": (),
    "table": (),
    "feedback": ("feedback", *_ENGINE_SETTINGS),
    "llama": ("llama",),
    "expander": ("expander", "encoder", *_ENGINE_SETTINGS),
    "http": ("http",),
    "https": ("http",),
}
"""The settings that a generator of each kind is made from."""
GENERATOR_TABLES = frozenset().union(*_SETTINGS_BY_KIND.values()).difference(_ENGINE_SETTINGS)
"""The settings tables that only generators read."""


@dataclass(frozen=True, slots=True)
class GeneratorOrigin:
    """What a generator is made from. When it is another than before, the generator must be made again.

    `file_states` have the inode, the size in bytes and the time of the last change of each file.
    """

    settings: tuple[Any, ...]
    file_states: tuple[tuple[int, int, int] | None, ...]


def read_generator_origin(name: str, settings: Settings) -> GeneratorOrigin:
    """Return what the generator of this name is made from now."""
    kind, _, argument = name.partition(":")
    values = tuple(getattr(settings, key) for key in _SETTINGS_BY_KIND.get(kind, ()))
    return GeneratorOrigin(
        values, tuple(_read_file_state(path) for path in _list_source_files(kind, argument, settings))
    )


def _list_source_files(kind: str, argument: str, settings: Settings) -> list[Path]:
    """Return the files whose change means another generator. An expander's record is written after its other files."""
    if kind == "table":
        return [Path(argument)]
    if kind == "expander":
        from querylift.plugin.fast_expander.expander_folder import RECORD_FILE

        return [Path(argument) / RECORD_FILE]
    if kind == "llama":
        model = [Path(argument)] if argument.endswith(".gguf") else []
        return [*model, *filter(None, [settings.llama.adapter])]
    return []


def _read_file_state(path: Path) -> tuple[int, int, int] | None:
    """Return the state of a file; None when it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


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
    try:
        split_http_url(url, example="http:http://127.0.0.1:8000/v1")
    except ValueError as error:
        raise SettingsError(f"generator is 'http:{argument}': {error}") from None
    key = settings.http.api_key
    return HttpGenerator(
        url,
        model=settings.http.model,
        api_key=key.get_secret_value() if key else None,
        max_seconds=settings.http.max_seconds,
        extra_body=settings.http.build_extra_body(),
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
    if settings.llama.socket is not None:
        return _make_model_client(argument, settings, settings.llama.socket)
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


def _make_model_client(argument: str, settings: Settings, socket: Path) -> Generator:
    """Return a generator whose model runs in another process, which serves all workers of this proxy."""
    from querylift.plugin.generators.llama.model_client import ModelClient

    order = {
        "generator": f"llama:{argument}" if argument else "llama",
        "llama": settings.llama.model_dump(mode="json", exclude={"socket"}),
        "files": read_generator_origin(f"llama:{argument}", settings).file_states,
    }
    return ModelClient(socket, order)


def make_ordered_generator(order: Mapping[str, Any]) -> Generator:
    """Return the generator that a worker ordered, in the process that runs models. Raises SettingsError, MissingExtra."""
    return make_generator(order["generator"], parse_settings({"llama": order["llama"]}))


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
