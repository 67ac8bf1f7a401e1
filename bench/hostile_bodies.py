"""Search bodies that cost the proxy much processor time for each byte that a client sends."""

from __future__ import annotations

from querylift.plugin.dsl.body import MAX_VALUES

MAX_BYTES = 262_144
"""The default of the setting max_body_bytes."""
_QUERY = b'{"query":{"match":{"text":"boundary layer"}}'
_CLAUSE = b'{"match":{"text":"a b"}}'
_REPEATED_VALUES = {
    "short floats": b"0.1,",
    "floats with an exponent": b"1e5,",
    "floats of 18 digits that end in 0": b"0.12345678901234560,",
    "integers": b"1,",
    "integers of 4,000 digits": b"9" * 4000 + b",",
    "empty objects": b"{},",
    "objects": b'{"a":1},',
    "empty lists": b"[],",
    "empty strings": b'"",',
    "escaped strings": b'"\\u0041",',
}


def build_hostile_bodies() -> dict[str, bytes]:
    """Return bodies by name. Each is as large as the proxy reads, or has as many values as it reads."""
    bodies = {f"list of {name}": _QUERY + b',"x":[' + _repeat(unit) + b"0]}" for name, unit in _REPEATED_VALUES.items()}
    return bodies | {
        "clauses in a bool": b'{"query":{"bool":{"should":[' + _repeat(_CLAUSE + b",") + _CLAUSE + b"]}}}",
        "empty bools": b'{"query":{"bool":{"must":[' + _repeat(b'{"bool":{"must":[]}},') + _CLAUSE + b"]}}}",
        "parts of a dis_max": b'{"query":{"dis_max":{"queries":[' + _repeat(_CLAUSE + b",") + _CLAUSE + b"]}}}",
        "field patterns": b'{"query":{"multi_match":{"query":"boundary layer","fields":['
        + _repeat(b'"a*",')
        + b'"b"]}}}',
        "sort keys": _QUERY + b',"sort":[' + _repeat(b'"a",') + b'"_score"]}',
        "sort keys in one string": _QUERY + b',"sort":"' + _repeat(b"a,") + b'_score"}',
        "aggregations": _QUERY + b',"aggs":[' + _repeat(b"{},") + b"{}]}",
        "words": b'{"query":{"match":{"text":"' + b"a " * (MAX_BYTES // 2 - 20) + b'"}}}',
        "words of the longest query": b'{"query":{"match":{"text":"' + b"ab-" * 800 + b'"}}}',
        "spaces": _QUERY + b" " * (MAX_BYTES - 60) + b"}",
    }


def _repeat(unit: bytes) -> bytes:
    """Return `unit` as often as the limits on bytes and on values allow."""
    return unit * min((MAX_BYTES - 200) // len(unit), (MAX_VALUES - 50) // unit.count(b","))
