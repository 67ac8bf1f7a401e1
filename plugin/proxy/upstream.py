"""The connections to the engine: one pool, with headers passed on unchanged and bodies as streams."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

Headers = list[tuple[bytes, bytes]]

# From RFC 9110 section 7.6.1. After them come headers that the HTTP client writes itself.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"expect"}
_NOT_FORWARDED_WITH_WHOLE_BODY = _NOT_FORWARDED | {b"content-length"}
_AUTOMATIC_HEADERS = ("user-agent", "accept", "accept-encoding", "content-type")
"""Headers that aiohttp adds on its own."""
SMALL_BYTES = 65_536
"""A body of at most this size is read and written in one piece."""


class UpstreamDown(Exception):
    """The engine was not reached, or it closed the connection before it answered. `status` and `body` go to the client."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        error = {"type": "querylift_engine_unreachable", "reason": reason}
        self.body = json.dumps({"error": error | {"root_cause": [error]}, "status": status}).encode()


class UpstreamBroken(Exception):
    """The engine's answer broke off after its first bytes."""


class Upstream:
    """A pool of connections to the engine at `url`. A connection is tried twice, each time for `connect_timeout_s`."""

    def __init__(self, url: str, *, connect_timeout_s: float = 5, ssl: Any = True) -> None:
        self._base = url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=ssl, keepalive_timeout=15, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=65_536,
            max_field_size=65_536,
            read_bufsize=262_144,
        )

    async def send(
        self, method: str, path: str, query_string: str, headers: Headers, body: bytes | AsyncIterator[bytes] | None
    ) -> Reply:
        """Forward a request and return the reply, whose body is not read yet. Raises UpstreamDown."""
        url = URL(f"{self._base}{path}?{query_string}" if query_string else self._base + path, encoded=True)
        has_whole_body = body is None or isinstance(body, bytes)
        forwarded_headers = _select_forwarded_headers(headers, has_whole_body=has_whole_body)
        try:
            return Reply(await self._request_with_retry(method, url, forwarded_headers, body))
        except aiohttp.ClientConnectorError as error:
            raise UpstreamDown(502, f"the engine does not accept connections: {error.strerror or error}") from error
        except TimeoutError as error:
            raise UpstreamDown(504, "the engine could not be reached in time") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamDown(502, f"the engine closed the connection: {type(error).__name__}") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def _request_with_retry(
        self, method: str, url: URL, headers: list[tuple[str, str]], body: Any
    ) -> aiohttp.ClientResponse:
        options: Any = {
            "headers": headers,
            "allow_redirects": False,
            "skip_auto_headers": _find_headers_to_skip(headers),
        }
        try:
            return await self._session.request(method, url, data=_wrap_large_body(body), **options)
        except aiohttp.ConnectionTimeoutError:
            pass  # Nothing was sent yet, so a second attempt is safe. After a pause of the process every timer has run out.
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) or not _can_repeat(url, body):
                raise
            # The engine had just closed an idle connection. A search changes nothing, so a second attempt is safe.
        return await self._session.request(method, url, data=_wrap_large_body(body), **options)


class Reply:
    """The engine's reply. Status and headers are there at once, and the body is read as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = _select_returned_headers(response.raw_headers)
        encodings = (value.strip().lower() for name, value in self.headers if name == b"content-encoding")
        self.encoding = next(encodings, b"")
        size_bytes = response.content_length
        self.is_small = size_bytes is not None and size_bytes <= SMALL_BYTES

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A connection with an unread rest cannot be reused. Closing it makes the engine stop its work on the search.
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()

    @property
    def is_at_end(self) -> bool:
        """Whether the whole body is read."""
        return self._response.content.at_eof()

    async def read_all(self) -> bytes:
        """Return the whole body. Raises UpstreamBroken."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamBroken(type(error).__name__) from error

    async def read_up_to(self, limit_bytes: int) -> bytes:
        """Return the first bytes of the body, until there are at least `limit_bytes` or it ends. Raises UpstreamBroken."""
        parts = []
        size_bytes = 0
        async for chunk in self.iterate_chunks():
            parts.append(chunk)
            size_bytes += len(chunk)
            if size_bytes >= limit_bytes:
                break
        return b"".join(parts)

    async def iterate_chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the body as they arrive. Raises UpstreamBroken."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamBroken(type(error).__name__) from error


def _wrap_large_body(body: Any) -> Any:
    """Return a large body as a file, because aiohttp writes a file in pieces and without a warning."""
    return io.BytesIO(body) if isinstance(body, bytes) and len(body) > SMALL_BYTES else body


def _select_forwarded_headers(headers: Headers, *, has_whole_body: bool) -> list[tuple[str, str]]:
    """Return the request headers for the engine. For a whole body, the HTTP client writes the length itself."""
    always_dropped = _NOT_FORWARDED_WITH_WHOLE_BODY if has_whole_body else _NOT_FORWARDED
    dropped = _add_connection_headers(always_dropped, headers)
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name not in dropped]


def _select_returned_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers of the engine's reply that go to the client, with names in lower case."""
    lowered = [(name.lower(), value) for name, value in headers]
    dropped = _add_connection_headers(_HOP_BY_HOP, lowered)
    return [(name, value) for name, value in lowered if name not in dropped]


def _find_headers_to_skip(headers: list[tuple[str, str]]) -> list[str] | None:
    """Return the headers that aiohttp must not add. None instead of an empty list makes aiohttp faster."""
    names = {name for name, _ in headers}
    return [name for name in _AUTOMATIC_HEADERS if name not in names] or None


def _add_connection_headers(dropped: frozenset[bytes], headers: Headers) -> frozenset[bytes]:
    """Return `dropped` and the headers that the Connection header names, as they concern only this hop."""
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            dropped |= {item.strip().lower() for item in value.split(b",")} - {b"content-length", b"content-type"}
    return dropped


def _can_repeat(url: URL, body: Any) -> bool:
    """Whether a request can be sent twice: it changes nothing, and its body is not a stream."""
    api = url.raw_path.rstrip("/").rsplit("/", 1)[-1]
    return api in ("_search", "_msearch", "_count") and not isinstance(body, AsyncIterator)
