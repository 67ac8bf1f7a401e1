"""Read and check querylift.toml and the environment.

An environment variable may override every key except those of `[index.NAME]`: QUERYLIFT_ENGINE, QUERYLIFT_BUDGET_MS, and
QUERYLIFT_CACHE__PIN_S for a key in a table. QUERYLIFT_GENERATOR names one generator. `load_settings` reads both.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationError, field_validator

from querylift.plugin.engine.urls import check_engine_urls
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings_tables.aws import AwsSettings
from querylift.plugin.settings_tables.base import SettingsTable
from querylift.plugin.settings_tables.generators import (
    CacheSettings,
    EncoderEndpointSettings,
    ExpanderSettings,
    FeedbackSettings,
    HttpSettings,
    LlamaSettings,
)
from querylift.plugin.settings_tables.index import GeneratorNames, IndexSettings
from querylift.plugin.settings_tables.log import LogSettings
from querylift.plugin.settings_tables.tracing import TracingSettings

ENVIRONMENT_PREFIX = "QUERYLIFT_"


def _split_at_commas(value: Any) -> Any:
    """Return the parts of a text, because the environment gives a list as one text. Return a list unchanged.

    Raises ValueError.
    """
    if not isinstance(value, str | list | tuple):
        raise ValueError("write a text, or a list of texts")
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Settings(SettingsTable):
    """Everything that `querylift serve` reads."""

    engine: Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)] = ("http://127.0.0.1:9200",)
    engine_username: str | None = None
    engine_password: SecretStr | None = None
    engine_ca_file: Path | None = None
    engine_client_cert: Path | None = None
    engine_client_key: Path | None = None
    engine_connect_timeout_s: Annotated[float, Field(gt=0)] = 5
    listen: str = "127.0.0.1:9280"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    admin: str | None = "127.0.0.1:9281"
    admin_token: SecretStr | None = None
    admin_hosts: Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)] = ()
    sniffing_address: str | None = None
    enabled: bool = True
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    generator: GeneratorNames = ("none",)
    budget_ms: Annotated[float, Field(ge=0)] = 300
    max_body_bytes: Annotated[int, Field(ge=1)] = 262_144
    pit_index: str | None = None
    index: dict[str, IndexSettings] = Field(default_factory=dict)
    cache: CacheSettings = CacheSettings()
    llama: LlamaSettings = LlamaSettings()
    expander: ExpanderSettings = ExpanderSettings()
    encoder: EncoderEndpointSettings = EncoderEndpointSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    http: HttpSettings = HttpSettings()
    aws: AwsSettings = AwsSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    @field_validator("engine")
    @classmethod
    def _check_engine_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_engine_urls(value)

    @field_validator("admin", "sniffing_address", mode="before")
    @classmethod
    def _switch_off(cls, value: Any) -> Any:
        """Return None for an empty address, because TOML has no value that means none."""
        return None if value == "" else value

    @field_validator("listen", "admin", "sniffing_address")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("index")
    @classmethod
    def _check_index_names(cls, value: dict[str, IndexSettings]) -> dict[str, IndexSettings]:
        for name in value:
            if not name or set(name) & set("?[],"):
                raise ValueError(
                    f"{name!r} is not an index name; name one index, alias or pattern with * in each table"
                )
        return value

    @field_validator("index")
    @classmethod
    def _name_experiments(cls, value: dict[str, IndexSettings]) -> dict[str, IndexSettings]:
        """Name each experiment after its table, unless it has a name."""
        unnamed = {name for name, table in value.items() if table.has_experiment and not table.experiment}
        return value | {name: value[name].model_copy(update={"experiment": name}) for name in unnamed}

    @property
    def engine_text(self) -> str:
        """The URLs of the engine's nodes as one text, for messages."""
        return ", ".join(self.engine)

    def find_index_settings(self, expression: str | None) -> IndexSettings | None:
        """Return the table that governs searches on the index expression (`a,b*`), with the defaults of the top level.

        None when no table does, or when the expression stands for indices with different settings.
        """
        names = [name for name in (expression or "").split(",") if name]
        tables = [self._find_table("*" if name == "_all" else name) for name in names]
        complete_tables = [self._add_defaults(table) for table in tables if table is not None]
        if not tables or len(complete_tables) < len(tables):
            return None
        return complete_tables[0] if all(table == complete_tables[0] for table in complete_tables) else None

    def find_generator_names(self, expression: str | None) -> tuple[str, ...]:
        """Return the generators of searches on the index expression; those of the top level when no table governs them."""
        table = self.find_index_settings(expression)
        return self.generator if table is None else self.get_generator_names(table)

    def get_generator_names(self, table: IndexSettings) -> tuple[str, ...]:
        """Return the generators of a table; those of the top level when it leaves them to that."""
        return table.generator or self.generator

    def list_generator_names(self) -> tuple[str, ...]:
        """Return every generator that serving opens: those of the top level and of the tables that are enabled."""
        names = [
            *self.generator,
            *(name for table in self.index.values() if table.enabled for name in table.generator or ()),
        ]
        return tuple(dict.fromkeys(names))

    def _add_defaults(self, table: IndexSettings) -> IndexSettings:
        """Return a table with the values of the top level where it leaves them to that."""
        defaults = {"generator": self.generator, "budget_ms": self.budget_ms, "cache_ttl_s": self.cache.ttl_s}
        missing = {name: value for name, value in defaults.items() if getattr(table, name) is None}
        return table.model_copy(update=missing) if missing else table

    def find_index_table_name(self, expression: str | None) -> str | None:
        """Return NAME of the table `[index.NAME]` that governs searches on the index expression, or None."""
        if expression is None or self.find_index_settings(expression) is None:
            return None
        names = ("*" if name == "_all" else name for name in expression.split(",") if name)
        first_name = next(names)
        return next(pattern for pattern in self.index if _pattern_covers_name(pattern, first_name))

    def _find_table(self, name: str) -> IndexSettings | None:
        """Return the first table whose pattern matches every index that `name` can stand for."""
        if name.startswith("-"):
            return None
        for pattern, table in self.index.items():
            if _pattern_covers_name(pattern, name):
                return table
            if "*" in name and _can_overlap(pattern, name):
                return None  # the name may also stand for an index with settings of its own
        return None


def _pattern_covers_name(pattern: str, name: str) -> bool:
    """Whether `pattern` stands for every index that `name` stands for. Only a star matches a star in `name`."""
    if "*" not in pattern:
        return pattern == name
    prefix, *inner_parts, suffix = pattern.split("*")
    if not name.startswith(prefix) or not name.endswith(suffix) or len(name) < len(prefix) + len(suffix):
        return False
    unmatched = name[len(prefix) : len(name) - len(suffix)]
    for part in inner_parts:
        position = unmatched.find(part)
        if position < 0:
            return False
        unmatched = unmatched[position + len(part) :]
    return True


def _can_overlap(a: str, b: str) -> bool:
    """Whether one index could match both names. Either may have stars. True when in doubt."""
    prefixes = a.split("*")[0], b.split("*")[0]
    reversed_suffixes = a.split("*")[-1][::-1], b.split("*")[-1][::-1]
    return all(x.startswith(y) or y.startswith(x) for x, y in (prefixes, reversed_suffixes))


def split_address(value: str) -> tuple[str, int]:
    """Return ("127.0.0.1", 9280) for "127.0.0.1:9280". Raises ValueError."""
    host, _, port = value.rpartition(":")
    is_host = (
        bool(host) and "/" not in host and host.startswith("[") == host.endswith("]") == ("[" in host or "]" in host)
    )
    if not is_host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{value!r} is not an address; use HOST:PORT, like 127.0.0.1:9280")
    return host.strip("[]"), int(port)


def load_settings(path: Path | None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings file, or the defaults when `path` is None, and apply the environment. Raises SettingsError."""
    values = _read_toml(path) if path is not None else {}
    _override_from_environment(values, os.environ if environment is None else environment)
    return parse_settings(values, source=str(path) if path is not None else "settings")


def parse_settings(values: Mapping[str, Any], *, source: str = "settings") -> Settings:
    """Return `values` as Settings. Raises SettingsError: one sentence with the key, its value and the remedy."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        raise SettingsError(f"{source}: {_format_validation_error(first_error)}") from None


def replace_generator(settings: Settings, name: str) -> Settings:
    """Return `settings` in which the generator `name` serves every index. Raises SettingsError."""
    values = settings.model_dump()
    tables = {index: {**table, "generator": None} for index, table in values["index"].items()}
    return parse_settings({**values, "generator": name, "index": tables}, source="options")


def format_generator_names(names: Sequence[str]) -> str:
    """Return the names of generators as a text for a person: "table:head.jsonl, then expander:docs.expander"."""
    return ", then ".join(names)


def enable_index(settings: Settings, index: str, **changes: object) -> Settings:
    """Return `settings` that expand searches on `index` only. `changes` override its table. Raises SettingsError."""
    current = (settings.find_index_settings(index) or IndexSettings()).model_dump()
    tables = {index: {**current, "enabled": True, **changes}}
    return parse_settings({**settings.model_dump(), "enabled": True, "index": tables}, source="options")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; name a settings file with --config") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}; name another file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}; correct that line") from None


def _override_from_environment(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Replace values of the file by the environment's. Variables that name no setting belong to other programs."""
    for name, text in environment.items():
        top_key, _, inner_key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        field = Settings.model_fields.get(top_key) if name.startswith(ENVIRONMENT_PREFIX) else None
        if field is None or top_key == "index":
            continue
        table_type = field.annotation
        if isinstance(table_type, type) and issubclass(table_type, BaseModel):
            table = values.get(top_key, {})
            if inner_key in table_type.model_fields and isinstance(table, dict):
                values[top_key] = {**table, inner_key: text}
        elif not inner_key:
            values[top_key] = text


def _format_validation_error(error: Any) -> str:
    """Return pydantic's error as a sentence. The value of a secret is left out."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key} is not a setting; docs/reference/settings.md lists them"
    value = error.get("input")
    is_secret = any(word in key for word in ("password", "api_key", "token", "url")) or "@" in str(value)
    shown_value = "given" if is_secret else f"{value!r}"
    problem = error["msg"].removeprefix("Value error, ")
    return f"{key} is {shown_value}: {problem[0].lower()}{problem[1:]}"
