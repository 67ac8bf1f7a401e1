"""Read a request body so that writing it again loses nothing, or refuse to."""

from __future__ import annotations

import json
import math
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from querylift.plugin.dsl.skip import Skip


def parse(raw: bytes) -> dict[str, Any]:
    """The body as a dict. Raises Skip where it is no JSON object, or one that `dump` could not give back in full."""
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


def dump(body: dict[str, Any]) -> bytes:
    """`body` as one line of JSON. ASCII only, so that a lone surrogate escape in the original comes out as it went in."""
    try:
        return _ENCODER.encode(body).encode("ascii")
    except RecursionError:
        raise Skip("too-deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Skip("duplicate-key")
    return found


def _exact(literal: str) -> float:
    value = float(literal)
    try:
        same = math.isfinite(value) and Decimal(repr(value)) == Decimal(literal)
    except InvalidOperation:  # an exponent of more than 18 digits
        same = False
    if not same:
        raise Skip("number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Skip("not-json")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_exact, parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
