"""The connections to the engine: one pool, with headers passed on unchanged and bodies as streams."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from querylift.plugin.engine.aws_credentials import CredentialsUnavailable
from querylift.plugin.engine.aws_signing import CONTENT_HASH_HEADER, AwsSigner
from querylift.plugin.engine.nodes import EngineNodes
from querylift.plugin.engine.session import make_engine_session
from querylift.plugin.proxy.error_answer import build_error_body
from querylift.plugin.proxy.forwarded_headers import (
    Headers,
    find_headers_to_skip,
    read_content_length,
    select_forwarded_headers,
    select_returned_headers,
)
from querylift.plugin.proxy.routes import match_search_route
from querylift.plugin.proxy.signed_request import (
    MAX_BODY_BYTES,
    BodyTooLarge,
    SpooledBody,
    drop_account_headers,
    spool_body,
)

SMALL_BYTES = 65_536
"""A body of at most this size is read and written in one piece."""
_UNREAD_REQUEST_STATUSES = frozenset({400, 413, 414, 417, 431})
"""An engine may give these answers before it has read the request. It then reads no other on the connection."""
_CLOSE_S = 1.0
_DEAD_AFTER_S = 180
"""An engine's machine that acknowledges nothing for so long is gone. One that is only busy acknowledges."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class UpstreamDown(Exception):
    """The engine was not reached, or it closed the connection before it answered. `status` and `body` go to the client."""

    def __init__(self, status: int, reason: str, *, kind: str = "querylift_engine_unreachable") -> None:
        super().__init__(reason)
        self.status = status
        self.body = build_error_body(status, kind, reason)


class UpstreamBroken(Exception):
    """The engine's answer broke off after its first bytes."""


class Upstream:
    """A pool of connections to the engine at `urls`: one URL, or the URLs of several nodes.

    A connection is tried for `connect_timeout_s`. The only node is then tried once more, and several nodes one after the
    other. With a `signer`, every request goes out under the account that it signs for, and none under the client's.
    """

    def __init__(
        self,
        urls: str | Iterable[str],
        *,
        connect_timeout_s: float = 5,
        ssl: Any = True,
        signer: AwsSigner | None = None,
    ) -> None:
        self._signer = signer
        self._nodes = EngineNodes(urls)
        self._has_base_path = any(urlsplit(url).path.strip("/") for url in self._nodes.urls)
        self._session = make_engine_session(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=ssl, keepalive_timeout=15, ttl_dns_cache=60, socket_factory=make_engine_socket
            ),
            response_class=_EngineResponse,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=262_144,
            middlewares=() if signer is None else (signer,),
        )
        # aiohttp would send a PUT or a DELETE again when the engine closes the connection, and has no public switch for it.
        self._session._retry_connection = False

    async def send(
        self, method: str, path: str, query_string: str, headers: Headers, body: bytes | AsyncIterator[bytes] | None
    ) -> Reply:
        """Forward a request and return the reply, whose body is not read yet. Raises UpstreamDown."""
        if self._signer is not None:
            return await self._send_signed(method, path, query_string, drop_account_headers(headers), body)
        return await self._send(method, path, query_string, headers, body)

    async def _send_signed(
        self, method: str, path: str, query_string: str, headers: Headers, body: bytes | AsyncIterator[bytes] | None
    ) -> Reply:
        """Do the same as `send`, after the whole body has come."""
        if not isinstance(body, AsyncIterator):
            return await self._send(method, path, query_string, headers, body)
        announced_bytes = read_content_length(headers)
        try:
            if announced_bytes is not None and announced_bytes > MAX_BODY_BYTES:
                raise BodyTooLarge
            spooled_body = await spool_body(_check_size(body, announced_bytes))
        except BodyTooLarge:
            reason = f"the body has more than {MAX_BODY_BYTES} bytes; send less at once"
            raise UpstreamDown(413, reason, kind="querylift_bad_request") from None
        except ConnectionError as error:
            raise UpstreamDown(400, str(error), kind="querylift_bad_request") from error
        headers = [*headers, (CONTENT_HASH_HEADER.encode(), spooled_body.content_hash.encode())]
        try:
            return await self._send(method, path, query_string, headers, spooled_body)
        finally:
            spooled_body.close()

    async def _send(
        self,
        method: str,
        path: str,
        query_string: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | SpooledBody | None,
    ) -> Reply:
        target = f"{path}?{query_string}" if query_string else path
        has_whole_body = not isinstance(body, AsyncIterator)
        forwarded_headers = select_forwarded_headers(headers, has_whole_body=has_whole_body)
        if isinstance(body, AsyncIterator):
            body = _check_size(body, read_content_length(headers))
        try:
            return Reply(await self._request_with_retry(method, path, target, forwarded_headers, body))
        except CredentialsUnavailable as error:
            raise UpstreamDown(502, "there are no AWS credentials to sign the request with") from error
        except aiohttp.ClientConnectorError as error:
            raise UpstreamDown(502, f"the engine does not accept connections: {error.strerror or error}") from error
        except TimeoutError as error:
            raise UpstreamDown(504, "the engine could not be reached in time") from error
        except aiohttp.ClientResponseError as error:
            raise UpstreamDown(502, f"the engine's answer cannot be read: {error.message}") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamDown(502, f"the engine closed the connection: {type(error).__name__}") from error

    def leaves_base_path(self, path: str) -> bool:
        """Whether `path` could lead out of the path of the engine's URL, by `..` in it, even if that is escaped twice."""
        if not self._has_base_path or "." not in (decoded_path := unquote(unquote(path))):
            return False
        return any(segment.partition(";")[0] == ".." for segment in re.split(r"[/\\]", decoded_path))

    async def find_node_failures(self, timeout_s: float) -> dict[str, str | None]:
        """Return for every node's URL why it serves no requests now, or None when it answers within `timeout_s`."""
        urls = self._nodes.urls
        failures = await asyncio.gather(*(self._find_node_failure(url, timeout_s) for url in urls))
        return dict(zip(urls, failures, strict=True))

    async def find_failure(self, timeout_s: float) -> str | None:
        """Return why the engine serves no requests now, or None when a node answers within `timeout_s`."""
        return join_failures(await self.find_node_failures(timeout_s))

    async def _find_node_failure(self, url: str, timeout_s: float) -> str | None:
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._session.get(url + "/", allow_redirects=False, timeout=timeout) as response:
                return f"the engine answers with status {response.status}" if response.status >= 500 else None
        except TimeoutError:
            return f"the engine does not answer within {timeout_s:g} seconds"
        except (aiohttp.ClientError, OSError) as error:
            return f"the engine cannot be reached: {error}"

    async def close(self) -> None:
        """Close every connection. An engine that takes nothing more is not waited for."""
        await self._nodes.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._session.close()

    async def _request_with_retry(
        self, method: str, path: str, target: str, headers: list[tuple[str, str]], body: Any
    ) -> aiohttp.ClientResponse:
        """Send a request to the first node that takes a connection. `target` is the path with the query string."""
        options: Any = {
            "headers": headers,
            "allow_redirects": False,
            "skip_auto_headers": find_headers_to_skip(headers),
        }

        node_url = ""

        async def request_node(url: str) -> aiohttp.ClientResponse:
            nonlocal node_url
            node_url = url
            full_url = URL(url + target, encoded=True)
            return await self._session.request(method, full_url, data=_wrap_large_body(body), **options)

        try:
            return await self._nodes.send(self._session, request_node)
        except aiohttp.ConnectionTimeoutError:
            if len(self._nodes.urls) > 1:
                raise
            # Nothing was sent yet, so a second attempt is safe. After a pause of the process every timer has run out.
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) or not _can_repeat(method, path, body):
                raise
            # The engine had just closed an idle connection. What only reads can be sent again, if possible to another node.
        return await self._nodes.send(self._session, request_node, last_url=node_url)


class _EngineResponse(aiohttp.ClientResponse):
    """A response that keeps its connection out of the pool when the engine may not have read the request."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        await super().start(connection)
        if self.status in _UNREAD_REQUEST_STATUSES and protocol is not None:
            if self.content.is_eof():
                protocol.close()  # it is in the pool already, from where only open connections are taken
            else:
                protocol.force_close()
        return self


class Reply:
    """The engine's reply. Status and headers are there at once, and the body is read as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = select_returned_headers(response.raw_headers)
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
        return await self.read_until(lambda _: False, limit_bytes)

    async def read_until(self, is_enough: Callable[[bytes], bool], limit_bytes: int) -> bytes:
        """Return the first bytes of the body, until `is_enough` says so of a new part. Raises UpstreamBroken.

        Reading also ends where the body ends, and after `limit_bytes`.
        """
        if self.is_small:
            body = await self.read_all()
            is_enough(body)
            return body
        parts = []
        size_bytes = 0
        async for chunk in self.iterate_chunks():
            parts.append(chunk)
            size_bytes += len(chunk)
            if is_enough(chunk) or size_bytes >= limit_bytes:
                break
        return b"".join(parts)

    async def iterate_chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the body as they arrive. Raises UpstreamBroken."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UpstreamBroken(type(error).__name__) from error


def make_engine_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket for a connection to the engine. The kernel closes it when the engine's machine is gone."""
    family, kind, protocol, _, _ = address
    engine_socket = socket.socket(family, kind, protocol)
    engine_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _DEAD_AFTER_S // 3),
        ("TCP_KEEPINTVL", _DEAD_AFTER_S // 9),
        ("TCP_KEEPCNT", 6),
        ("TCP_USER_TIMEOUT", _DEAD_AFTER_S * 1000),
    ):
        with contextlib.suppress(AttributeError, OSError):  # not every system has these options
            engine_socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return engine_socket


def join_failures(failures_by_url: Mapping[str, str | None]) -> str | None:
    """Return the failures of all nodes in one text, or None when a node has none. The only node is not named."""
    if None in failures_by_url.values():
        return None
    if len(failures_by_url) == 1:
        return next(iter(failures_by_url.values()))
    return "; ".join(f"{url}: {failure}" for url, failure in failures_by_url.items())


async def _check_size(body: AsyncIterator[bytes], announced_bytes: int | None) -> AsyncIterator[bytes]:
    """Yield the parts of `body`. Raise when they are fewer bytes than announced, which closes the engine's connection.

    The engine would otherwise take the next request on the connection for the rest of the body.
    """
    size_bytes = 0
    async for part in body:
        size_bytes += len(part)
        yield part
    if announced_bytes is not None and size_bytes < announced_bytes:
        raise ConnectionError(f"the body ended after {size_bytes} of {announced_bytes} bytes")


def _wrap_large_body(body: Any) -> Any:
    """Return a large body as a file, because aiohttp writes a file in pieces and without a warning."""
    if isinstance(body, SpooledBody):
        body = body.open()
    return io.BytesIO(body) if isinstance(body, bytes) and len(body) > SMALL_BYTES else body


def _can_repeat(method: str, path: str, body: Any) -> bool:
    """Whether a request can be sent twice: it reads only, and its body is not a stream."""
    reads_only = method in _SAFE_METHODS or match_search_route(method, path) is not None
    return reads_only and not isinstance(body, AsyncIterator)
