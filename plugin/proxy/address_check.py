"""Checks of `listen`, `admin` and `engine` that take no time, before anything is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings, split_address

_BACKLOG = 2048
"""Connections that may wait until a worker takes them, as many as uvicorn allows."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


async def check_addresses(settings: Settings) -> None:
    """Raise SettingsError when an address is in use, or when the engine's URL leads back to this proxy."""
    await _check_engine_is_elsewhere(settings)
    async with contextlib.AsyncExitStack() as stack:  # all at once, so that two equal addresses are noticed too
        for address in filter(None, (settings.listen, settings.admin)):
            await stack.enter_async_context(occupy_address(address))


@contextlib.asynccontextmanager
async def occupy_address(address: str) -> AsyncIterator[None]:
    """Listen on an address during the block. Raises SettingsError when that is not possible."""
    host, port = split_address(address)
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
    except OSError as error:
        raise _describe_listen_error(address, error) from None
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


def bind_address(address: str) -> list[socket.socket]:
    """Return sockets that listen on all IP addresses of an address. Raises SettingsError when that is not possible."""
    host, port = split_address(address)
    sockets: list[socket.socket] = []
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in dict.fromkeys(entries):
            listener = socket.socket(family, kind, protocol)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(place)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
    except OSError as error:
        for listener in sockets:
            listener.close()
        raise _describe_listen_error(address, error) from None
    return sockets


def _describe_listen_error(address: str, error: OSError) -> SettingsError:
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return SettingsError(f"cannot listen on {address}: {reason}; name another address")


async def _check_engine_is_elsewhere(settings: Settings) -> None:
    """Raise SettingsError when a request to the engine would come back to `listen` or `admin`, again and again."""
    for url in settings.engine:
        await _check_node_is_elsewhere(url, settings)


async def _check_node_is_elsewhere(node_url: str, settings: Settings) -> None:
    url = urlsplit(node_url)
    engine_port = url.port or _DEFAULT_PORTS[url.scheme]
    engine_addresses = await _resolve(url.hostname or "", engine_port)
    for name, address in (("listen", settings.listen), ("admin", settings.admin)):
        if address is None:
            continue
        host, port = split_address(address)
        own_addresses = await _resolve(host, port)
        if port == engine_port and any(_is_covered(engine, own_addresses) for engine in engine_addresses):
            raise SettingsError(
                f"engine is {node_url!r}, and {name} is {address!r}: Querylift would forward to itself; "
                "name the address of the engine, or listen on another port"
            )


async def _resolve(host: str, port: int) -> set[str]:
    """Return the IP addresses of a host. There are none when its name is unknown here."""
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {str(entry[4][0]).partition("%")[0] for entry in entries}


def _is_covered(address: str, own_addresses: set[str]) -> bool:
    """Whether a connection to `address` reaches a socket that listens on one of `own_addresses`."""
    if ipaddress.ip_address(address).is_unspecified:  # a connection to 0.0.0.0 goes to this machine
        loopback = "127.0.0.1" if ":" not in address else "::1"
        return address in own_addresses or _is_covered(loopback, own_addresses)
    listens_everywhere = any(ipaddress.ip_address(own).is_unspecified for own in own_addresses)
    return address in own_addresses or (listens_everywhere and _is_of_this_machine(address))


def _is_of_this_machine(address: str) -> bool:
    """Whether a network interface of this machine has the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
