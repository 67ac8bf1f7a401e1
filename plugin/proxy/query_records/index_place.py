"""Query records in an index of the engine, such as `ubi_queries`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp

from querylift.plugin.engine.access import ANONYMOUS_ACCESS, EngineAccess
from querylift.plugin.engine.nodes import CONNECT_TIMEOUT_S, EngineNodes
from querylift.plugin.proxy.query_records.record_queue import PlaceDown

_TIMEOUT_S = 30
_STATUSES_TO_TRY_AGAIN = frozenset({401, 403, 408, 429})
"""An account may get its rights back, and a busy engine recovers. So does one that answers with a status of 500 or more."""
_KEYWORD = {"type": "keyword", "ignore_above": 100}
MAPPING: Mapping[str, Any] = {
    "properties": {
        "application": _KEYWORD,
        "query_id": _KEYWORD,
        "client_id": _KEYWORD,
        "object_id_field": _KEYWORD,
        "timestamp": {"type": "date"},
        "user_query": {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}},
    }
}
"""The mapping of an index that did not exist. The engine's UBI plugin gives these fields the same types."""


class IndexPlace:
    """Adds lines to `index` on the engine at the URLs `engine`, by `_bulk`. An index that is not there is created.

    `access` has the account of the requests.
    """

    def __init__(self, engine: Sequence[str], index: str, *, access: EngineAccess = ANONYMOUS_ACCESS) -> None:
        self.name = f"the index {index}"
        self._nodes = EngineNodes(engine)
        self._index_path = f"/{quote(index, safe='')}"
        self._is_index_there = False
        self._session = access.open_session(
            headers={"X-Querylift": "off"},
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
        )

    async def write_lines(self, lines: Sequence[str]) -> tuple[int, str]:
        """Add the lines as documents. Return how many the engine refused, and why the first was. Raises PlaceDown."""
        await self._create_index_if_missing()
        body = "".join(f'{{"create":{{}}}}\n{line}\n' for line in lines).encode()
        status, answer = await self._send("POST", "/_bulk", body, "application/x-ndjson")
        if status in _STATUSES_TO_TRY_AGAIN or status >= 500:
            raise PlaceDown(f"the engine answered _bulk with status {status}")
        if status != 200 or not isinstance(answer, dict):
            return len(lines), f"the engine answered _bulk with status {status}"
        if not answer.get("errors"):
            return 0, ""
        errors = [
            item["create"].get("error") for item in answer.get("items", []) if item.get("create", {}).get("error")
        ]
        return len(errors), _describe_error(errors[0]) if errors else ""

    async def close(self) -> None:
        """Close the connections."""
        await self._nodes.close()
        await self._session.close()

    async def _create_index_if_missing(self) -> None:
        """Create the index when it is not there. If that fails, the engine does as it does with any new index."""
        if self._is_index_there:
            return
        status, _ = await self._send("HEAD", "", None, None)
        if status == 404:
            await self._send("PUT", "", json.dumps({"mappings": MAPPING}).encode(), "application/json")
        self._is_index_there = True

    async def _send(self, method: str, path: str, body: bytes | None, media_type: str | None) -> tuple[int, Any]:
        """Return status and answer; the answer is None when it is not JSON. Raises PlaceDown."""
        headers = {"Content-Type": media_type} if media_type else None

        async def ask_node(url: str) -> tuple[int, bytes]:
            async with self._session.request(
                method, url + self._index_path + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status, await response.read()

        try:
            status, content = await self._nodes.send(self._session, ask_node)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise PlaceDown(f"the engine did not answer ({type(error).__name__})") from error
        try:
            return status, json.loads(content) if content else None
        except ValueError:
            return status, None


def _describe_error(error: Any) -> str:
    """Return type and place of an engine's error. Its reason may quote the document, and so the query."""
    kind = error.get("type", "error") if isinstance(error, dict) else "error"
    cause = error.get("caused_by", {}).get("type", "") if isinstance(error, dict) else ""
    return f"{kind} ({cause})" if cause else str(kind)
