"""Answers clients that ask for the nodes' addresses ("sniffing") with Querylift's own address.

They would otherwise send their searches to the nodes, past Querylift.
"""

from __future__ import annotations

import json
import re
from typing import Any

from querylift.plugin.proxy.asgi_types import Scope, Send

_MAX_ANSWER_BYTES = 4_194_304
"""A longer answer passes unchanged. An engine of a thousand nodes answers with a fourth of this."""
_ROUTE = re.compile(r"\A/_nodes(?:/[^/]+)?/(?:[a-z_]+(?:,|%2C))*http(?:(?:,|%2C)[a-z_]+)*/?\Z", re.IGNORECASE)


def asks_for_addresses(method: str, path: str) -> bool:
    """Whether a request asks for the nodes' HTTP addresses: GET `/_nodes/http`, `/_nodes/_all/http`, `/_nodes/http,os`."""
    return method == "GET" and path.startswith("/_nodes/") and _ROUTE.match(path) is not None


def ask_for_plain_answer(scope: Scope) -> Scope:
    """Return the request in the form in which the engine answers with JSON that is not compressed."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
    return {**scope, "headers": headers}


class AddressWriter:
    """An ASGI `send` that writes `address` over every node's HTTP address. All else in the answer stays as it is.

    The answer is held back until it is complete. One that cannot be read passes unchanged.
    """

    def __init__(self, send: Send, address: str) -> None:
        self._send = send
        self._address = address
        self._start: dict[str, Any] | None = None
        self._body = b""

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        has_more = message.get("more_body", False)
        if has_more and len(self._body) <= _MAX_ANSWER_BYTES:
            return
        start, body = self._start, self._body
        self._start, self._body = None, b""
        if not has_more and (changed_body := replace_addresses(body, self._address)) is not None:
            headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            start = {**start, "headers": [*headers, (b"content-length", str(len(changed_body)).encode())]}
            body = changed_body
        await self._send(start)
        await self._send({**message, "body": body})

    async def send_held_start(self) -> None:
        """Send the held start of an answer that broke off, so that the client sees the same when the connection is cut."""
        if self._start is not None:
            await self._send(self._start)


def replace_addresses(body: bytes, address: str) -> bytes | None:
    """Return the answer with `address` for every node, or None when it is no JSON with addresses of nodes."""
    try:
        answer = json.loads(body)
        nodes = list(answer["nodes"].values())
        addresses = [node["http"] for node in nodes if "http" in node]
        for entry in addresses:
            for name, own_value in (("publish_address", address), ("bound_address", [address])):
                if name in entry:
                    entry[name] = own_value
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode() if addresses else None
