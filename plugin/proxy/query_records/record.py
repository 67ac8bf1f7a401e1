"""One query record in the shape of User Behavior Insights 1.3, and the marks of a search that go into it."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from querylift.plugin.experiments import find_ubi_block
from querylift.plugin.flow import FlowResult

MAX_ID_CHARS = 100
"""UBI's own limit on ids and names."""
MAX_MARKED_BYTES = 65_536
"""In a larger body, no ids are looked for. It would be parsed a second time on the event loop."""
_MARKS = ("query_id", "client_id", "application", "object_id_field")
_CLIENT_HEADER = b"x-opaque-id"


class SearchOrigin(NamedTuple):
    """What a client sent: the body of one search, decompressed, and the headers of its request."""

    body: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()

    def __repr__(self) -> str:
        return f"SearchOrigin({len(self.body)} bytes)"


NO_ORIGIN = SearchOrigin()


def hash_query(text: str) -> str:
    """Return 16 hex digits that stand for a query in logs. The empty text is its own hash."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16] if text else ""


def build_query_record(
    index: str | None, result: FlowResult, added_s: float, *, origin: SearchOrigin = NO_ORIGIN, with_text: bool
) -> dict[str, Any]:
    """Return the record of one search. `user_query` is a hash without `with_text`, and empty when no query was found.

    The ids come from the block `ext.ubi` of the body, so that the records of the engine's UBI plugin join with this one.
    Without them, `query_id` is new, and `client_id` is the header X-Opaque-Id.
    """
    marks = read_ubi_marks(origin.body)
    client_id = marks.get("client_id") or _read_client_header(origin.headers)
    query_hash = hash_query(result.query)
    record = {
        "application": marks.get("application", "querylift"),
        "query_id": marks.get("query_id") or str(uuid.uuid4()),
        "user_query": result.query if with_text else query_hash,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "query_attributes": {
            "index": index,
            "outcome": result.outcome.kind,
            "reason": result.outcome.reason,
            "added_ms": round(added_s * 1000, 3),
            "query_hash": query_hash,
            "expansion_words": result.expansion.count_words() if result.expansion else 0,
            "expansion_documents": len(result.expansion.documents) if result.expansion else 0,
        },
    }
    if client_id:
        record["client_id"] = client_id
    if "object_id_field" in marks:
        record["object_id_field"] = marks["object_id_field"]
    if result.assignment is not None:
        result.assignment.add_to_record(record)
    return record


def read_ubi_marks(body: bytes) -> dict[str, str]:
    """Return the ids and names in `ext.ubi` of a search body. Empty when there are none, or the body cannot be read."""
    if b'"ubi"' not in body or len(body) > MAX_MARKED_BYTES:
        return {}
    try:
        block = find_ubi_block(json.loads(body))
    except (ValueError, RecursionError):
        return {}
    return {name: block[name][:MAX_ID_CHARS] for name in _MARKS if isinstance(block.get(name), str) and block[name]}


def _read_client_header(headers: Sequence[tuple[bytes, bytes]]) -> str:
    value = next((value for name, value in headers if name == _CLIENT_HEADER), b"")
    return value.decode("utf-8", "replace")[:MAX_ID_CHARS]
