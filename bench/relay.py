"""A wire to an engine as long as one across a network: every answer comes some milliseconds later, and nothing is slower.

    python relay.py HOST PORT SECONDS LISTENING_FD

Bytes pass as they are, so connections stay open and any number of requests may be under way. All of the delay is put on the
answers, which a client that waits for them cannot tell from half of it each way. What arrives later leaves later by as much, so
a long answer waits once. Opening a connection, which a client that keeps it does once, costs no round trip.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

CHUNK = 1 << 18


@contextmanager
def relay_to(engine_url: str, *, round_trip_s: float) -> Iterator[str]:
    """The URL of a relay to the engine, in a process of its own: in the client's it would wait for the client's work."""
    parts = urlsplit(engine_url)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, number = listening.getsockname()[1], listening.fileno()
        given = [parts.hostname or "", str(parts.port or 80), str(round_trip_s), str(number)]
        process = subprocess.Popen([sys.executable, __file__, *given], stdin=subprocess.DEVNULL, pass_fds=[number])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def _serve(host: str, port: int, delay_s: float, listening: socket.socket) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_connection(host, port)
        with suppress(ConnectionError):
            await asyncio.gather(_pass(reader, engine_writer, 0), _pass(engine_reader, writer, delay_s))

    server = await asyncio.start_server(connected, sock=listening)
    await server.serve_forever()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Write what is read, and the end of it, each `delay_s` after it came. Never drains: that would hold back what follows."""
    later = asyncio.get_running_loop().call_later
    try:
        while data := await reader.read(CHUNK):
            later(delay_s, writer.write, data)
    finally:
        later(delay_s, writer.close)


def _microseconds() -> asyncio.AbstractEventLoop:
    """A loop that waits by select(2): epoll's milliseconds are rounded up, which would make 1 of them nearly 2."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_microseconds) as runner:
        address, listening_fd = (sys.argv[1], int(sys.argv[2])), int(sys.argv[4])
        runner.run(_serve(*address, float(sys.argv[3]), socket.socket(fileno=listening_fd)))
