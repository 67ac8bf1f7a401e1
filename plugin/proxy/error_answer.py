"""The body of an error that Querylift answers itself, in the shape in which engines answer theirs."""

from __future__ import annotations

import json


def build_error_body(status: int, kind: str, reason: str) -> bytes:
    """Return JSON that the engines' clients read: `reason` is a sentence, and `kind` a name like `querylift_bad_request`."""
    error = {"type": kind, "reason": reason}
    return json.dumps({"error": error | {"root_cause": [error]}, "status": status}).encode()
