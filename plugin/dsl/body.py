"""Read a search body so that writing it again loses nothing, or refuse to read it."""

from __future__ import annotations

import json
import math
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from querylift.plugin.outcome import Skip

MAX_VALUES = 8192
"""A body with more values is not read. Reading takes time for each value, and every other search waits meanwhile."""
_EXACT_FLOAT_CHARS = 16
"""A literal of 15 digits and a point survives the way into a float of 64 bits and back."""
_MAX_FLOAT_CHARS = 64
"""A longer literal is not compared: the comparison takes time for each digit."""


def parse_body(raw: bytes) -> dict[str, Any]:
    """Return the body as a dict.

    Raises Skip when the body is not a JSON object, when it has more than MAX_VALUES values, or when `dump_body` could
    not write it without loss.
    """
    check_value_count(raw)
    try:
        text = raw.decode("utf-8")
        body = _DECODER.decode(text)
    except RecursionError:
        raise Skip("too-deep") from None
    except ValueError as error:  # bad UTF-8, bad JSON, an integer of more than 4,300 digits
        raise Skip("not-json") from error
    if not isinstance(body, dict):
        raise Skip("not-json")
    return body


def check_value_count(raw: bytes) -> None:
    """Raise Skip when the JSON text `raw` may hold more than MAX_VALUES values. A comma in a string counts as well."""
    if raw.count(b",") >= MAX_VALUES:
        raise Skip("too-many-values")


def dump_body(body: dict[str, Any]) -> bytes:
    """Return `body` as one line of JSON. The line is ASCII, so an escaped lone surrogate stays as the client sent it."""
    try:
        return _ENCODER.encode(body).encode("ascii")
    except RecursionError:
        raise Skip("too-deep") from None


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raises Skip when a key comes twice."""
    json_object = dict(pairs)
    if len(json_object) != len(pairs):
        raise Skip("duplicate-key")
    return json_object


def _parse_exact_float(literal: str) -> float:
    """Return the number of `literal`. Raises Skip when a float cannot hold it exactly."""
    if len(literal) > _MAX_FLOAT_CHARS:
        raise Skip("number")
    value = float(literal)
    if len(literal) <= _EXACT_FLOAT_CHARS and "e" not in literal and "E" not in literal:
        return value
    try:
        is_exact = repr(value) == literal or (math.isfinite(value) and Decimal(repr(value)) == Decimal(literal))
    except InvalidOperation:  # an exponent of more than 18 digits
        is_exact = False
    if not is_exact:
        raise Skip("number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Skip("not-json")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_float=_parse_exact_float, parse_constant=_refuse_constant
)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
