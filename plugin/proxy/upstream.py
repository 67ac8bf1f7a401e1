"""The engine's side of the proxy: one pool of connections, headers as they came, bodies as streams."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

Headers = list[tuple[bytes, bytes]]

# RFC 9110 section 7.6.1, and what the two HTTP stacks write themselves.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"expect"}
_NOT_FORWARDED_WHOLE = _NOT_FORWARDED | {b"content-length"}
_AUTOMATIC = ("user-agent", "accept", "accept-encoding", "content-type")
SMALL_BYTES = 65_536


class UpstreamDown(Exception):
    """The engine could not be reached, or went away before it answered. `status` and `body` are for the client."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        error = {"type": "querylift_engine_unreachable", "reason": reason}
        self.body = json.dumps({"error": error | {"root_cause": [error]}, "status": status}).encode()


class UpstreamBroken(Exception):
    """The engine's answer broke off after its first bytes."""


class Upstream:
    """A pool of connections to the engine at `url`. Connecting is tried twice, each time for `connect_timeout_s`."""

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
        """Forward a request; its reply's body is still to be read. Raises UpstreamDown."""
        url = URL(f"{self._base}{path}?{query_string}" if query_string else self._base + path, encoded=True)
        sent = _forwarded(headers, whole=body is None or isinstance(body, bytes))
        try:
            return Reply(await self._request(method, url, sent, body))
        except aiohttp.ClientConnectorError as error:
            raise UpstreamDown(502, f"the engine does not accept connections: {error.strerror or error}") from error
        except TimeoutError as error:
            raise UpstreamDown(504, "the engine could not be reached in time") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamDown(502, f"the engine closed the connection: {type(error).__name__}") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def _request(
        self, method: str, url: URL, headers: list[tuple[str, str]], body: Any
    ) -> aiohttp.ClientResponse:
        options: Any = {"headers": headers, "allow_redirects": False, "skip_auto_headers": _unasked(headers)}
        try:
            return await self._session.request(method, url, data=_data(body), **options)
        except aiohttp.ConnectionTimeoutError:
            pass  # Nothing was sent yet. A process that was paused for a while finds every timer run out, so once more.
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) or not _may_repeat(url, body):
                raise
            # A kept connection that the engine had just closed. Searches change nothing, so once more is safe.
        return await self._session.request(method, url, data=_data(body), **options)


class Reply:
    """The engine's reply: status and headers at once, the body as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = _returned(response.raw_headers)
        self.encoding = next((v.strip().lower() for k, v in self.headers if k == b"content-encoding"), b"")
        length = response.content_length
        self.is_small = length is not None and length <= SMALL_BYTES

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A reply that was not read to its end cannot be reused: close it, so that the engine stops working on it.
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()

    @property
    def at_end(self) -> bool:
        """Whether the whole body was read."""
        return self._response.content.at_eof()

    async def read(self) -> bytes:
        """The whole body. Raises UpstreamBroken."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamBroken(type(error).__name__) from error

    async def read_up_to(self, limit: int) -> bytes:
        """The first bytes of the body, all of it where it is no longer than `limit`. Raises UpstreamBroken."""
        parts = []
        size = 0
        async for chunk in self.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size >= limit:
                break
        return b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come. Raises UpstreamBroken."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamBroken(type(error).__name__) from error


def _data(body: Any) -> Any:
    """A large body as a file: aiohttp writes one in pieces, and without a warning."""
    return io.BytesIO(body) if isinstance(body, bytes) and len(body) > SMALL_BYTES else body


def _forwarded(headers: Headers, *, whole: bool) -> list[tuple[str, str]]:
    """Request headers for the engine. The length of a whole body is written anew by the client, its one owner."""
    dropped = _dropped(_NOT_FORWARDED_WHOLE if whole else _NOT_FORWARDED, headers)
    return [(k.decode("latin-1"), v.decode("latin-1")) for k, v in headers if k not in dropped]


def _returned(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    lowered = [(k.lower(), v) for k, v in headers]
    dropped = _dropped(_HOP_BY_HOP, lowered)
    return [(k, v) for k, v in lowered if k not in dropped]


def _unasked(headers: list[tuple[str, str]]) -> list[str] | None:
    """The headers that aiohttp would add of its own accord. None where there are none: it skips nothing faster."""
    given = {name for name, _ in headers}
    return [name for name in _AUTOMATIC if name not in given] or None


def _dropped(always: frozenset[bytes], headers: Headers) -> frozenset[bytes]:
    """`always` and what the Connection header says concerns this hop only."""
    for key, value in headers:
        if key == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            always |= {name.strip().lower() for name in value.split(b",")} - {b"content-length", b"content-type"}
    return always


def _may_repeat(url: URL, body: Any) -> bool:
    last = url.raw_path.rstrip("/").rsplit("/", 1)[-1]
    return last in ("_search", "_msearch", "_count") and not isinstance(body, AsyncIterator)
