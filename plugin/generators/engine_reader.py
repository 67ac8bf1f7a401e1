"""Reads from the engine for generators: the hits of a search, and the terms of documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

from querylift.plugin.engine.access import ANONYMOUS_ACCESS, EngineAccess
from querylift.plugin.engine.nodes import CONNECT_TIMEOUT_S, EngineNodes
from querylift.plugin.errors import GeneratorError

_TERM_VECTOR_OPTIONS = {"term_statistics": True, "field_statistics": True, "positions": False, "offsets": False}


class EngineReader:
    """Connections to the engine at the URL `engine`, or at the URLs of its nodes. Every failure is a GeneratorError."""

    def __init__(self, engine: str | Iterable[str], access: EngineAccess = ANONYMOUS_ACCESS) -> None:
        self._nodes = EngineNodes(engine)
        self.engine_digest = self._nodes.digest
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the connection pool."""
        timeout = aiohttp.ClientTimeout(total=10, sock_connect=CONNECT_TIMEOUT_S)
        self._session = self._access.open_session(timeout=timeout)

    async def search_documents(self, index: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the hits of a search that have a score, best first and without their sources."""
        answer = await self._post_json(f"/{quote(index, safe=',*')}/_search", {**body, "_source": False})
        return [hit for hit in answer.get("hits", {}).get("hits", []) if hit.get("_score") is not None]

    async def fetch_term_vectors(self, hits: Iterable[Mapping[str, Any]], field: str) -> list[dict[str, Any]]:
        """Return the term vectors of `field` in each hit, with statistics. Their order is the engine's own."""
        docs = []
        for hit in hits:
            routing = {"routing": hit["_routing"]} if "_routing" in hit else {}
            docs.append(
                {"_index": hit["_index"], "_id": hit["_id"], **routing, "fields": [field]} | _TERM_VECTOR_OPTIONS
            )
        answer = await self._post_json("/_mtermvectors", {"docs": docs})
        return [doc for doc in answer.get("docs", []) if isinstance(doc, dict)]

    async def close(self) -> None:
        """Close the connections."""
        await self._nodes.close()
        if self._session is not None:
            await self._session.close()

    async def _post_json(self, path: str, body: Any) -> dict[str, Any]:
        session = self._session
        if session is None:
            raise GeneratorError("the engine's connections are not open; call start() first")
        headers = {"Content-Type": "application/json", "X-Querylift": "off"}
        data = json.dumps(body)

        async def post_to_node(url: str) -> Any:
            async with session.post(url + path, data=data, headers=headers, allow_redirects=False) as response:
                if response.status != 200:
                    raise GeneratorError(f"the engine answered the generator's request with status {response.status}")
                return await response.json(content_type=None)

        try:
            answer = await self._nodes.send(session, post_to_node)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise GeneratorError(
                f"the engine did not answer the generator's request: {type(error).__name__}"
            ) from error
        return answer if isinstance(answer, dict) else {}
