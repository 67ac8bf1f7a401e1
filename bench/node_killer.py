"""Kill a node of the engine in the middle of its work, and start it again with the same data and on the same port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from querylift.index_tools.node.local_node import run_temporary_node
from querylift.index_tools.node.process import is_healthy
from querylift.plugin.errors import EngineError

_PORTS = range(9210, 9300)
"""The engine's runner takes no port above these."""
_START_S = 60


@dataclass
class KilledNode:
    """A node with its URL and its process. `command` starts it again."""

    url: str
    pid: int
    command: list[str]
    log: Path
    kills: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def kill(self) -> None:
        """End the node at once, with all that it was doing."""
        os.kill(self.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.kills += 1

    def start(self) -> None:
        """Start the node again. It answers some seconds later."""
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        self.pid = self.process.pid

    def end(self) -> None:
        """End the node for good."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def run_nodes(count: int) -> Iterator[list[KilledNode]]:
    """Run nodes that know nothing of each other until the block ends. Several nodes get ports on which to start again."""
    with ExitStack() as stack:
        nodes = []
        for _ in range(count):
            node = stack.enter_context(run_temporary_node())
            command = Path(f"/proc/{node.pid}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
            killed_node = KilledNode(node.url, node.pid, command, node.log)
            nodes.append(killed_node)
            if count > 1:
                stack.callback(killed_node.end)
                _move_to_fixed_port(killed_node)
        yield nodes


def _move_to_fixed_port(node: KilledNode) -> None:
    port = _find_free_port(_PORTS)
    # The runner adds the number of the node, which is 1.
    node.command[node.command.index("-baseHttpPort") + 1] = str(port - 1)
    node.kill()
    node.start()
    node.url, node.kills = f"http://127.0.0.1:{port}", 0
    deadline_s = time.monotonic() + _START_S
    while not is_healthy(node.url):
        if time.monotonic() > deadline_s:
            raise EngineError(f"the node at {node.url} does not start again; its log is {node.log}")
        time.sleep(0.2)


def _find_free_port(ports: Iterable[int]) -> int:
    """Return the first port on which nothing listens."""
    for port in ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise EngineError("no port from 9210 to 9299 is free; end a program that listens there")


async def kill_nodes_in_turn(nodes: Sequence[KilledNode], *, end_s: float, every_s: float) -> None:
    """Kill a node, start it again, and go on to the next one `every_s` later, but never before it is healthy."""
    turn = 0
    while time.monotonic() + every_s < end_s:
        await asyncio.sleep(every_s)
        while not all([await asyncio.to_thread(is_healthy, node.url) for node in nodes]):
            if time.monotonic() > end_s:
                return
            await asyncio.sleep(0.2)
        node = nodes[turn % len(nodes)]
        await asyncio.to_thread(node.kill)
        node.start()
        turn += 1
