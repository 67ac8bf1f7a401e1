"""Random requests on a raw connection, cut anywhere: the engine must see exactly what the client sent."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.raw_client import connect_raw
from tests.helpers.upstream_stub import answer_with, run_proxy, run_stub_engine

UPGRADES = {
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "anything": b"Connection: keep-alive, upgrade\r\nUpgrade: x\r\n",
    "two": b"Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
}
SMUGGLED = b"DELETE /products HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    body: bytes
    is_chunked: bool
    upgrade: bytes

    def format_bytes(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: h\r\nX-Tag: t\r\n".encode() + self.upgrade
        if not self.is_chunked:
            return head + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body
        half = len(self.body) // 2
        chunks = [chunk for chunk in (self.body[:half], self.body[half:]) if chunk]
        framed_chunks = b"".join(b"%x;x=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed_chunks + b"0\r\nX-Tag: trailer\r\n\r\n"


_REQUESTS = st.builds(
    _Request,
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    path=st.sampled_from(["/docs/_search", "/_msearch", "/docs/_doc/1", "/_bulk", "/a%2Fb?q=%zz"]),
    body=st.one_of(st.binary(max_size=30), st.just(SMUGGLED), st.just(b"0\r\n\r\n" + SMUGGLED), st.just(b"\r\n" * 9)),
    is_chunked=st.booleans(),
    upgrade=st.sampled_from([b"", b"", *UPGRADES.values()]),
)


async def _send_all(port: int, segments: list[bytes], answer_count: int) -> None:
    async with connect_raw(port) as client, asyncio.timeout(20):
        await client.send_segments(segments)
        for _ in range(answer_count):
            answer = await client.read_answer()
            assert answer is not None and answer.status == 200


def check_requests_on_the_wire(max_examples: int) -> None:
    """Send so many random sequences of requests through a proxy. Raises AssertionError when the engine sees others."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        engine = runner.run(stack.enter_async_context(run_stub_engine(answer_with())))
        url = f"http://127.0.0.1:{engine.port}"
        proxy = runner.run(stack.enter_async_context(run_proxy(url, ScriptedGenerator({}))))

        @settings(max_examples=max_examples, deadline=None)
        @given(requests=st.lists(_REQUESTS, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 1500), max_size=6))
        def check_requests(requests: list[_Request], cuts: list[int]) -> None:
            wire = b"".join(request.format_bytes() for request in requests)
            edges = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
            engine.requests.clear()
            segments = [wire[start:end] for start, end in itertools.pairwise(edges)]
            runner.run(_send_all(proxy.port, segments, len(requests)))
            assert [(request.start_line, request.body) for request in engine.requests] == [
                (f"{request.method} {request.path} HTTP/1.1".encode(), request.body) for request in requests
            ]
            assert all(request.get_header_values(b"x-tag") == [b"t"] for request in engine.requests)

        check_requests()
        runner.run(stack.aclose())
