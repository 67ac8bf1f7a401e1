"""Facts about the engine that are asked for once: whether it answers, and which indices and fields it has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

import aiohttp

from querylift.plugin.engine.access import build_engine_access
from querylift.plugin.engine.nodes import EngineNodes
from querylift.plugin.settings import Settings


class EngineUnclear(Exception):
    """The engine did not say what was asked. The message says why."""


class QuestionRefused(EngineUnclear):
    """The engine answered, but not what was asked."""


@asynccontextmanager
async def open_engine_facts(settings: Settings, *, timeout_s: float) -> AsyncIterator[EngineFacts]:
    """Yield the facts of the engine in the settings, asked with the account of the settings."""
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(settings.engine_connect_timeout_s, timeout_s / 2))
    access = build_engine_access(settings)
    async with access.open_session(headers={"X-Querylift": "off"}, timeout=timeout) as session:
        nodes = EngineNodes(settings.engine)
        try:
            yield EngineFacts(session, nodes)
        finally:
            await nodes.close()


async def find_answering_url(settings: Settings, *, timeout_s: float) -> str:
    """Return the URL of a node that answers. It is the first one where there is only one, or where none answers."""
    if len(settings.engine) > 1:
        for url in settings.engine:
            node_settings = settings.model_copy(update={"engine": (url,)})
            async with open_engine_facts(node_settings, timeout_s=timeout_s) as node:
                with suppress(EngineUnclear):
                    await node.get("/")
                    return url
    return settings.engine[0]


class EngineFacts:
    """Asks the engine what it has. Raises EngineUnclear."""

    def __init__(self, session: aiohttp.ClientSession, nodes: EngineNodes) -> None:
        self._session = session
        self._nodes = nodes

    async def get(self, path: str) -> tuple[int, Any]:
        """Return the status of a GET request, and the answer when it is JSON."""

        async def ask_node(url: str) -> tuple[int, Any]:
            async with self._session.get(url + path, allow_redirects=False) as answer:
                is_json = "json" in answer.content_type
                return answer.status, await answer.json(content_type=None) if is_json else None

        try:
            return await self._nodes.send(self._session, ask_node)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise EngineUnclear(f"the engine at {', '.join(self._nodes.urls)} does not answer ({reason})") from None

    async def find_fields(self, index: str, fields: Iterable[str]) -> set[str] | None:
        """Return those of `fields` that the index has, with their sub-fields. None when there is no such index.

        A field may be a pattern.
        """
        names = ",".join(f"{name},{name}.*" for name in (quote(field, safe="*") for field in fields))
        path = f"/{quote(index, safe=',*')}/_field_caps?fields={names}&allow_no_indices=false"
        status, answer = await self.get(path)
        if status == 404:
            return None
        if status != 200 or not isinstance(answer, dict):
            raise QuestionRefused(f"the engine answered with status {status} about the index {index!r}")
        return set(answer.get("fields", {}))

    async def list_index_names(self) -> set[str]:
        """Return all names under which documents can be searched; none when the account may not see them."""
        status, answer = await self.get("/_resolve/index/*")
        if status != 200 or not isinstance(answer, dict):
            return set()
        entries = [entry for kind in ("indices", "aliases", "data_streams") for entry in answer.get(kind, [])]
        return {str(entry["name"]) for entry in entries}


def has_field(existing_fields: Iterable[str], field: str) -> bool:
    """Whether `field`, a sub-field of it, or a field that it matches as a pattern is among the existing ones."""
    return any(fnmatchcase(name, field) or name.startswith(f"{field}.") for name in existing_fields)
