"""Whether an index is still as an expander knows it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.folder import Source

_log = logging.getLogger("querylift")
_CHANGED_SHARE = 0.1
"""An index that has grown or shrunk by more is worth a new expander."""


class Connection:
    """Asks the engine about the index that an expander was built from."""

    def __init__(self, engine: str, auth: aiohttp.BasicAuth | None, ssl: Any) -> None:
        self._engine = engine
        self._auth = auth
        self._ssl = ssl

    async def compare(self, source: Source, folder: Path) -> None:
        """Warn of an index that has changed. Raises SettingsError where its analyzer has."""
        connector, timeout = aiohttp.TCPConnector(ssl=self._ssl), aiohttp.ClientTimeout(total=10)
        try:
            async with aiohttp.ClientSession(auth=self._auth, connector=connector, timeout=timeout) as session:
                found = await self._terms(session, source)
                count = await self._call(session, "GET", source.index, "_count")
        except (TimeoutError, aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            _log.warning("whether %s is still as the expander %s has it is not known: %s", source.index, folder, error)
            return
        for word, terms in source.probe.items():
            if found.get(word, ()) != terms:
                raise SettingsError(
                    f"the analyzer of {source.field} on {source.index} makes {_listed(found.get(word, ()))} of {word!r}, "
                    f"and {_listed(terms)} when {folder} was built; build the expander again"
                )
        change = abs(int(count["count"]) - source.in_index)
        if change > _CHANGED_SHARE * source.in_index:
            _log.warning(
                "%s holds %s documents, and %s when the expander %s was built; build it again",
                *(source.index, count["count"], source.in_index, folder),
            )

    async def _terms(self, session: aiohttp.ClientSession, source: Source) -> dict[str, tuple[str, ...]]:
        """What the analyzer makes of each word of the probe."""
        words = list(source.probe)
        body = {"field": source.field, "text": words}
        answer = await self._call(session, "POST", source.indices[0], "_analyze", body) if words else {"tokens": []}
        return tokens_by_text(words, answer["tokens"])

    async def _call(self, session: aiohttp.ClientSession, method: str, index: str, what: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "X-Querylift": "off"}
        url = f"{self._engine}/{quote(index, safe=',*')}/{what}"
        async with session.request(method, url, data=json.dumps(body) if body else None, headers=headers) as response:
            if response.status != 200:
                raise ValueError(f"{what} was answered with status {response.status}")
            return await response.json(content_type=None)


def tokens_by_text(texts: Sequence[str], tokens: Sequence[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The terms of each of `texts`, out of the `tokens` that `_analyze` made of all of them.

    Offsets run on from text to text, one apart, in units of UTF-16.
    """
    made: dict[str, list[str]] = {text: [] for text in texts}
    ends, end = [], 0
    for text in texts:
        end += len(text.encode("utf-16-le")) // 2
        ends.append(end)
        end += 1
    at = 0
    for token in sorted(tokens, key=lambda one: int(one["start_offset"])):
        while at < len(ends) and token["start_offset"] >= ends[at]:
            at += 1
        if at == len(ends):
            break
        made[texts[at]].append(str(token["token"]))
    return {text: tuple(terms) for text, terms in made.items()}


def _listed(terms: Sequence[str]) -> str:
    return " ".join(terms) or "nothing"
