"""From a generator's name, as settings and command lines give it, to the generator."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.base import Generator
from querylift.plugin.settings import Settings

KINDS = "none, table:FILE, feedback, llama, llama:base, llama:FILE.gguf, expander:FOLDER, http:URL"


def make(spec: str, settings: Settings) -> Generator:
    """The generator that `spec` names, not started. Raises SettingsError, MissingExtra."""
    kind, _, rest = spec.partition(":")
    maker = _MAKERS.get(kind)
    if maker is None:
        raise SettingsError(f"generator is {spec!r}; use one of: {KINDS}")
    return maker(rest, settings)


def _none(rest: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.none import NoneGenerator

    return NoneGenerator()


def _table(rest: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.table import TableGenerator

    if not rest:
        raise SettingsError("generator is 'table:' without a file; use table:FILE")
    return TableGenerator(Path(rest))


def _feedback(rest: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.rm3 import FeedbackGenerator

    feedback = settings.feedback
    return FeedbackGenerator(
        settings.engine,
        field=rest or feedback.field,
        documents=feedback.documents,
        terms=feedback.terms,
        auth=basic_auth(settings),
        ssl=ssl_context(settings),
    )


def _http(rest: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.http import HttpGenerator

    url = rest if rest.startswith(("http://", "https://")) else f"http:{rest}"
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"generator is 'http:{rest}'; use http:URL, like http:http://127.0.0.1:8000/v1")
    key = settings.http.api_key
    return HttpGenerator(
        url,
        model=settings.http.model,
        api_key=key.get_secret_value() if key else None,
        max_seconds=settings.http.max_seconds,
    )


def _expander(rest: str, settings: Settings) -> Generator:
    from querylift.plugin.fast_expander.folder import read_about
    from querylift.plugin.generators.cluster_expander import ClusterExpander
    from querylift.plugin.generators.fast_expander import ExpanderGenerator

    if not rest:
        raise SettingsError("generator is 'expander:' without a folder; use expander:FOLDER")
    kind = ClusterExpander if read_about(Path(rest)).form == "cluster" else ExpanderGenerator
    return kind(
        Path(rest),
        settings.engine,
        threads=settings.expander.threads,
        max_pending=settings.expander.queue_size,
        auth=basic_auth(settings),
        ssl=ssl_context(settings),
    )


def _llama(rest: str, settings: Settings) -> Generator:
    from querylift.plugin.generators.llama.generator import LlamaGenerator

    options = settings.llama
    model, adapter = _llama_files(rest, options.adapter)
    return LlamaGenerator(
        model,
        adapter,
        threads=options.threads,
        slots=options.slots,
        queue_size=options.queue_size,
        max_seconds=options.max_seconds,
    )


def _llama_files(rest: str, adapter: Path | None) -> tuple[Path, Path | None]:
    """The model file and the adapter, if any, that goes on top of it."""
    from querylift.plugin.generators.llama.model_file import packaged_model, prepared_student, shipped_adapter

    if rest == "base":
        return packaged_model(), None
    if rest or adapter:
        return Path(rest) if rest else packaged_model(), adapter
    model, shipped = packaged_model(), shipped_adapter()
    if shipped is None:
        return model, None
    prepared = prepared_student(model, shipped)
    if prepared.is_file():
        return prepared, None
    return model, shipped


_MAKERS: dict[str, Callable[[str, Settings], Generator]] = {
    "none": _none,
    "table": _table,
    "feedback": _feedback,
    "expander": _expander,
    "http": _http,
    "https": lambda rest, settings: _http(f"https:{rest}", settings),
    "llama": _llama,
}


def basic_auth(settings: Settings) -> aiohttp.BasicAuth | None:
    """The engine account that Querylift's own requests use, if any."""
    if settings.engine_username is None:
        return None
    password = settings.engine_password.get_secret_value() if settings.engine_password else ""
    return aiohttp.BasicAuth(settings.engine_username, password)


def ssl_context(settings: Settings) -> Any:
    """How the engine's certificate is checked: by the settings' CA file, else by the system's."""
    if settings.engine_ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(settings.engine_ca_file))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"engine_ca_file is {settings.engine_ca_file}: it cannot be read as certificates ({error})"
        ) from None
