"""Reading requests to the admin page, and sending its answers."""

from __future__ import annotations

from querylift.plugin.proxy.asgi_types import Receive, Send

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """Return the request body, and stop reading past `limit_bytes`."""
    parts = []
    size_bytes = 0
    while size_bytes <= limit_bytes:
        message = await receive()
        parts.append(message.get("body", b""))
        size_bytes += len(parts[-1])
        if not message.get("more_body", False):
            break
    return b"".join(parts)


async def send_answer(send: Send, status: int, media_type: str, body: bytes) -> None:
    """Send a whole answer."""
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
