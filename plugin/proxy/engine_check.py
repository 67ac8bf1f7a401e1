"""Holds the settings against the engine when `serve` starts: the account, the indices and the fields that they name.

A refused `engine_username` is an error, and a refused AWS account a warning. An index or a field that is not there is a
warning, because it may come later.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from querylift.plugin.engine.facts import EngineFacts, EngineUnclear, QuestionRefused, has_field, open_engine_facts
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import read_expander_record
from querylift.plugin.settings import Settings
from querylift.plugin.settings_tables.index import IndexSettings

_log = logging.getLogger("querylift")
_TIMEOUT_S = 10


async def check_settings_on_engine(settings: Settings) -> None:
    """Log a warning for every doubtful setting. Raises SettingsError when the engine refuses the account.

    An engine that does not answer is one warning.
    """
    for doubt in list_ineffective_tables(settings):
        _log.warning("%s", doubt)
    async with open_engine_facts(settings, timeout_s=_TIMEOUT_S) as engine:
        try:
            await _check_account(engine, settings)
            await _check_tables(engine, settings)
        except EngineUnclear as problem:
            _log.warning("not all indices and fields in the settings were checked: %s", problem)


async def log_doubts(settings: Settings) -> None:
    """Check settings that were read again on the engine. A refused account is a warning here."""
    try:
        await check_settings_on_engine(settings)
    except SettingsError as error:
        _log.warning("%s", error)


def list_ineffective_tables(settings: Settings) -> Iterator[str]:
    """Yield a sentence for every setting about indices that can have no effect."""
    names = list(settings.index)
    for position, name in enumerate(names):
        earlier_settings = settings.model_copy(update={"index": {key: settings.index[key] for key in names[:position]}})
        if earlier_settings.find_index_settings(name) is not None:
            yield f"[index.{name!r}] never applies, because a table before it matches the same names; put it first"
    if settings.pit_index is not None and settings.find_index_settings(settings.pit_index) is None:
        yield f"pit_index is {settings.pit_index!r}, which no single table governs; name one index that has a table"
    for name, table in settings.index.items():
        if table.enabled and "*" not in name:
            yield from _list_misplaced_expanders(name, settings.get_generator_names(table))


def _list_misplaced_expanders(index: str, generator_names: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for every expander that was built from another index than the one whose searches it is to expand."""
    for generator_name in generator_names:
        kind, _, folder = generator_name.partition(":")
        if kind != "expander":
            continue
        try:
            mismatch = read_expander_record(Path(folder)).source.explain_mismatch(index)
        except SettingsError:
            continue  # the generator says what is wrong with its folder when it is opened
        if mismatch:
            yield f"[index.{index!r}]: the expander {folder} {mismatch}; build one from {index}"


async def _check_account(engine: EngineFacts, settings: Settings) -> None:
    status, answer = await engine.get("/")
    if status in (401, 403) and settings.aws.region is not None:
        reason = answer.get("message", "no reason given") if isinstance(answer, dict) else "no reason given"
        raise EngineUnclear(
            f"the engine at {settings.engine_text} refuses the AWS account (status {status}: {reason}); "
            "check aws.region, aws.service and what the account may do"
        )
    if status == 401 and settings.engine_username is not None:
        raise SettingsError(
            f"engine_username is {settings.engine_username!r}, and the engine at {settings.engine_text} refuses it (status 401); "
            "correct engine_username and engine_password"
        )
    if status == 401:
        raise EngineUnclear(
            f"the engine at {settings.engine_text} asks for an account (status 401); set engine_username and engine_password"
        )
    if status >= 500:
        raise EngineUnclear(f"the engine at {settings.engine_text} answered with status {status}")


async def _check_tables(engine: EngineFacts, settings: Settings) -> None:
    """Log the doubts about every table. Raises EngineUnclear after the last one when the engine refused to answer on some."""
    first_refusal: EngineUnclear | None = None
    for name, table in settings.index.items():
        try:
            doubts = await _check_table(engine, name, table, _find_feedback_field(settings, table))
        except QuestionRefused as refusal:
            first_refusal = first_refusal or refusal
            continue
        for doubt in doubts:
            _log.warning("%s", doubt)
    if first_refusal is not None:
        raise first_refusal


async def _check_table(engine: EngineFacts, name: str, table: IndexSettings, feedback_field: str | None) -> list[str]:
    """Return a sentence for the index and for every field that the engine does not have."""
    settings_by_field = dict.fromkeys(table.fields, f"fields of [index.{name!r}]")
    if feedback_field is not None:
        settings_by_field.setdefault(feedback_field, "feedback.field")
    existing_fields = await engine.find_fields(name, settings_by_field or ("_id",))
    if existing_fields is None:
        suggestion = _suggest_name(name, await engine.list_index_names())
        remedy = suggestion or "create it, or correct the name"
        return [f"[index.{name!r}]: the engine has no index or alias of this name; {remedy}"]
    doubts = []
    for field, setting in settings_by_field.items():
        if "*" in field or has_field(existing_fields, field):
            continue
        suggestion = _suggest_name(field, await engine.find_fields(name, ("*",)) or set())
        doubts.append(f"{setting}: {name} has no field {field!r}; {suggestion or 'correct the name'}")
    return doubts


def _suggest_name(wrong_name: str, names: set[str]) -> str:
    """Return "did you mean 'title'?", or "" when no name is close."""
    close_names = difflib.get_close_matches(wrong_name, sorted(names), n=1, cutoff=0.7)
    return f"did you mean {close_names[0]!r}?" if close_names else ""


def _find_feedback_field(settings: Settings, table: IndexSettings) -> str | None:
    """Return the field that the generator `feedback` reads on an index; None for other generators."""
    for name in settings.get_generator_names(table):
        kind, _, argument = name.partition(":")
        if kind == "feedback":
            return argument or settings.feedback.field
    return None
