"""querylift.toml and the environment, checked when they are read.

Every key but those of `[index.NAME]` may be overridden by an environment variable: QUERYLIFT_ENGINE, QUERYLIFT_BUDGET_MS, and
for a table of the file QUERYLIFT_CACHE__PIN_S. Only `load` reads either; beside it only `querylift.plugin.files` looks at the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from querylift.plugin.errors import SettingsError
from querylift.plugin.policy import Policy

ENVIRONMENT_PREFIX = "QUERYLIFT_"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IndexSettings(_Table):
    """`[index."NAME"]`: whether and how searches on one index, alias or pattern with `*` are expanded."""

    enabled: bool = True
    mode: Literal["boost", "widen"] = "boost"
    weight: Annotated[float, Field(gt=0, le=10)] = 0.2
    fields: tuple[str, ...] = ()
    max_clauses: Annotated[int, Field(ge=1, le=4096)] = 512
    max_query_words: Annotated[int, Field(ge=1, le=1024)] = 64

    @cached_property
    def policy(self) -> Policy:
        """The part that the rewrite reads, made once."""
        return Policy(
            mode=self.mode,
            weight=self.weight,
            fields=self.fields,
            max_clauses=self.max_clauses,
            max_query_words=self.max_query_words,
        )


class CacheSettings(_Table):
    """`[cache]`: where expansions are kept, for how long, and for how long an answered query ranks alike."""

    size: Annotated[int, Field(ge=1)] = 100_000
    ttl_s: Annotated[float, Field(gt=0)] = 86_400
    pin_s: Annotated[float, Field(ge=0)] = 120
    url: SecretStr | None = None
    file: Path | None = None


class LlamaSettings(_Table):
    """`[llama]`: the worker that runs a GGUF file, with an adapter on top or without."""

    adapter: Path | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    slots: Annotated[int, Field(ge=1, le=64)] = 8
    queue_size: Annotated[int, Field(ge=1)] = 64
    max_seconds: Annotated[float, Field(gt=0)] = 10


class ExpanderSettings(_Table):
    """`[expander]`: the fast expander that `querylift expander build` makes."""

    threads: Annotated[int, Field(ge=1, le=64)] = 1
    queue_size: Annotated[int, Field(ge=1)] = 64


class FeedbackSettings(_Table):
    """`[feedback]`: RM3 from the engine's own first documents."""

    documents: Annotated[int, Field(ge=1, le=100)] = 10
    terms: Annotated[int, Field(ge=1, le=128)] = 20
    field: str | None = None


class HttpSettings(_Table):
    """`[http]`: an OpenAI-compatible endpoint."""

    model: str = "default"
    api_key: SecretStr | None = None
    max_seconds: Annotated[float, Field(gt=0)] = 10


class LogSettings(_Table):
    """`[log]`: one line of JSON per search, in the shape of a UBI query record, with the query's hash or its text."""

    searches: bool = False
    query_text: bool = False


class Settings(_Table):
    """Everything that `querylift serve` reads."""

    engine: str = "http://127.0.0.1:9200"
    engine_username: str | None = None
    engine_password: SecretStr | None = None
    engine_ca_file: Path | None = None
    engine_connect_timeout_s: Annotated[float, Field(gt=0)] = 5
    listen: str = "127.0.0.1:9280"
    admin: str | None = "127.0.0.1:9281"
    enabled: bool = True
    generator: str = "llama"
    budget_ms: Annotated[float, Field(ge=0)] = 300
    max_body_bytes: Annotated[int, Field(ge=1)] = 1_048_576
    pit_index: str | None = None
    index: dict[str, IndexSettings] = {}
    cache: CacheSettings = CacheSettings()
    llama: LlamaSettings = LlamaSettings()
    expander: ExpanderSettings = ExpanderSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @field_validator("engine")
    @classmethod
    def _engine_is_a_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("use a URL like http://127.0.0.1:9200")
        if parts.username or parts.password:
            raise ValueError("put the user and the password into engine_username and engine_password")
        return value.rstrip("/")

    @field_validator("generator")
    @classmethod
    def _generator_has_no_password(cls, value: str) -> str:
        if value.startswith("http") and "@" in value:
            raise ValueError("put the key into http.api_key; a URL is shown in logs and on the admin page")
        return value

    @field_validator("listen", "admin")
    @classmethod
    def _address_has_a_port(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("index")
    @classmethod
    def _patterns_have_stars_only(cls, value: dict[str, IndexSettings]) -> dict[str, IndexSettings]:
        for name in value:
            if not name or set(name) & set("?[],"):
                raise ValueError(f"{name!r} is no index name; name one index, alias or pattern with *, one table each")
        return value

    def index_for(self, expression: str | None) -> IndexSettings | None:
        """The one table that governs a search on `expression` (`a,b*`), or None where none does, or several do."""
        names = [name for name in (expression or "").split(",") if name]
        tables = [self._table("*" if name == "_all" else name) for name in names]
        if not tables or any(table is None or table != tables[0] for table in tables):
            return None
        return tables[0]

    def _table(self, name: str) -> IndexSettings | None:
        """The first table whose pattern takes in every index that `name` can stand for."""
        if name.startswith("-"):
            return None
        for pattern, table in self.index.items():
            if _takes_in(pattern, name):
                return table
            if "*" in name and _may_overlap(pattern, name):
                return None  # the name may also stand for an index with settings of its own
        return None


def _takes_in(pattern: str, name: str) -> bool:
    """Whether `pattern` stands for all that `name` stands for. A star in `name` is matched by a star alone."""
    if "*" not in pattern:
        return pattern == name
    first, *middle, last = pattern.split("*")
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    rest = name[len(first) : len(name) - len(last)]
    for part in middle:
        at = rest.find(part)
        if at < 0:
            return False
        rest = rest[at + len(part) :]
    return True


def _may_overlap(a: str, b: str) -> bool:
    """Whether two names, of which either may have stars, could stand for one index. True when in doubt."""
    return _agree(a.split("*")[0], b.split("*")[0]) and _agree(a.split("*")[-1][::-1], b.split("*")[-1][::-1])


def _agree(a: str, b: str) -> bool:
    return a.startswith(b) or b.startswith(a)


def split_address(value: str) -> tuple[str, int]:
    """("127.0.0.1", 9280) from "127.0.0.1:9280". Raises ValueError."""
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is no address; use HOST:PORT, like 127.0.0.1:9280")
    return host.strip("[]"), int(port)


def load(path: Path | None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of `path` (built-in ones where it is None), overridden by the environment. Raises SettingsError."""
    values = _read_toml(path) if path is not None else {}
    _override(values, os.environ if environment is None else environment)
    return check(values, source=str(path) if path is not None else "settings")


def check(values: Mapping[str, Any], *, source: str = "settings") -> Settings:
    """`values` as Settings. Raises SettingsError, one sentence that names the key, its value and the remedy."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SettingsError(f"{source}: {_sentence(first)}") from None


def switched_on(settings: Settings, index: str, **table: object) -> Settings:
    """`settings` that expand on `index` alone, by its own table with the keys of `table` on top. Raises SettingsError."""
    found = (settings.index_for(index) or IndexSettings()).model_dump()
    tables = {index: {**found, "enabled": True, **table}}
    return check({**settings.model_dump(), "enabled": True, "index": tables}, source="options")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; name a settings file with --config") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None


def _override(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Put the environment's values over the file's. A variable that is no setting is somebody else's, and ignored."""
    for name, text in environment.items():
        table, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        field = Settings.model_fields.get(table) if name.startswith(ENVIRONMENT_PREFIX) else None
        if field is None or table == "index":
            continue
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            given = values.get(table, {})
            if key in inner.model_fields and isinstance(given, dict):
                values[table] = {**given, key: text}
        elif not key:
            values[table] = text


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key} is not a setting; docs/settings.md lists them"
    value = error.get("input")
    secret = any(word in key for word in ("password", "api_key", "url")) or "@" in str(value)
    shown = "given" if secret else f"{value!r}"
    problem = error["msg"].removeprefix("Value error, ")
    return f"{key} is {shown}: {problem[0].lower()}{problem[1:]}"
