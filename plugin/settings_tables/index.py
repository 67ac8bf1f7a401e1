"""`[index.NAME]`: what is allowed on one index, and where its expansions come from."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from querylift.plugin.expansion import MAX_DOCUMENTS
from querylift.plugin.policy import Policy
from querylift.plugin.settings_tables.experiment import ExperimentSettings
from querylift.plugin.settings_tables.generators import MAX_CACHE_S


def _make_name_list(value: Any) -> Any:
    """Return a list with one generator for its name alone, and a list unchanged. Raises ValueError."""
    if not isinstance(value, str | list | tuple):
        raise ValueError("name a generator, or a list of them")
    return (value,) if isinstance(value, str) else value


def _check_generator_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of generators unchanged. Raises ValueError."""
    if not names:
        raise ValueError("it names no generator; name one, or 'none'")
    for name in names:
        if name.startswith("http") and "@" in name:
            raise ValueError("put the key into http.api_key; a URL is shown in logs and on the admin page")
    if len(names) > 1 and "none" in names:
        raise ValueError("'none' stands in a list with others; remove it, or write 'none' alone")
    if len(set(names)) < len(names):
        raise ValueError("it names a generator twice; name each one once")
    return names


GeneratorNames = Annotated[tuple[str, ...], BeforeValidator(_make_name_list), AfterValidator(_check_generator_names)]
"""One generator or several. The first one that has an expansion answers. In TOML, a text stands for a list of one."""


class IndexSettings(ExperimentSettings):
    """`[index."NAME"]`: whether and how Querylift expands the searches on one index, alias or pattern with `*`.

    `generator`, `budget_ms` and `cache_ttl_s` are None where the table leaves them to the top level.
    """

    enabled: bool = True
    mode: Literal["boost", "widen"] = "boost"
    weight: Annotated[float, Field(gt=0, le=10)] = 0.2
    fields: tuple[str, ...] = ()
    max_clauses: Annotated[int, Field(ge=1, le=4096)] = 512
    max_query_words: Annotated[int, Field(ge=1, le=1024)] = 256
    documents: Annotated[int, Field(ge=0, le=MAX_DOCUMENTS)] = 200
    document_weight: Annotated[float, Field(gt=0, le=10)] = 0.45
    generator: GeneratorNames | None = None
    budget_ms: Annotated[float, Field(ge=0)] | None = None
    cache_ttl_s: Annotated[float, Field(gt=0, le=MAX_CACHE_S)] | None = None

    @field_validator("fields", mode="before")
    @classmethod
    def _check_fields_are_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f'write a list, like ["{value}"]')
        return value

    @field_validator("fields")
    @classmethod
    def _check_fields_without_boosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if "^" in name:
                raise ValueError(
                    f"write {name.partition('^')[0]!r} in place of {name!r}; a search brings its own boosts"
                )
            if not name.strip() or name != name.strip():
                raise ValueError(f"{name!r} is not the name of a field; correct or remove it")
        return value

    @cached_property
    def policy(self) -> Policy:
        """How searches on the index are rewritten, and for which users."""
        return Policy(
            mode=self.mode,
            weight=self.weight,
            fields=self.fields,
            max_clauses=self.max_clauses,
            max_query_words=self.max_query_words,
            documents=self.documents,
            document_weight=self.document_weight,
            experiment=self.make_experiment(),
        )
