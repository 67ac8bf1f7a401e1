"""Checks whether an index is still the one that an expander was built from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from querylift.plugin.engine.access import ANONYMOUS_ACCESS, EngineAccess
from querylift.plugin.engine.nodes import CONNECT_TIMEOUT_S, EngineNodes
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import FieldGroup, SourceIndex

_log = logging.getLogger("querylift")
_MAX_COUNT_CHANGE = 0.1
"""Share of the documents by which an index may grow or shrink before its expander should be built again."""


class IndexChecker:
    """Compares the index at the engine with the index that an expander was built from."""

    def __init__(self, engine: str | Iterable[str], access: EngineAccess = ANONYMOUS_ACCESS) -> None:
        self._nodes = EngineNodes(engine)
        self._access = access

    async def check_index(self, source: SourceIndex, folder: Path) -> None:
        """Log a warning when the document count has changed. Raises SettingsError when the analyzer has changed.

        An engine that does not answer gives a warning.
        """
        timeout = aiohttp.ClientTimeout(total=10, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._access.open_session(timeout=timeout) as session:
                terms_by_field = [
                    (group.names[0], group.probe, await self._analyze_probe(session, source, group))
                    for group in source.list_groups(terms=0)
                ]
                count = await self._call_engine(session, "GET", source.index, "_count")
        except (TimeoutError, aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            _log.warning("cannot check whether %s still matches the expander %s: %s", source.index, folder, error)
            return
        finally:
            await self._nodes.close()
        for field, probe, terms_by_word in terms_by_field:
            for word, expected_terms in probe.items():
                terms = terms_by_word.get(word, ())
                if terms != expected_terms:
                    raise SettingsError(
                        f"the analyzer of {field} on {source.index} makes {_join_terms(terms)} of {word!r}, "
                        f"but made {_join_terms(expected_terms)} when {folder} was built; build the expander again"
                    )
        change = abs(int(count["count"]) - source.in_index)
        if change > _MAX_COUNT_CHANGE * source.in_index:
            _log.warning(
                "%s holds %s documents now, but held %s when the expander %s was built; build the expander again",
                *(source.index, count["count"], source.in_index, folder),
            )

    async def _analyze_probe(
        self, session: aiohttp.ClientSession, source: SourceIndex, group: FieldGroup
    ) -> dict[str, tuple[str, ...]]:
        """Return the terms that the analyzer of a group makes of each word of its probe."""
        words = list(group.probe)
        if not words:
            return {}
        body = {"field": group.names[0], "text": words}
        answer = await self._call_engine(session, "POST", source.indices[0], "_analyze", body)
        return group_terms_by_text(words, answer["tokens"])

    async def _call_engine(
        self, session: aiohttp.ClientSession, method: str, index: str, api: str, body: Any = None
    ) -> Any:
        headers = {"Content-Type": "application/json", "X-Querylift": "off"}
        path = f"/{quote(index, safe=',*')}/{api}"
        data = json.dumps(body) if body else None

        async def ask_node(url: str) -> Any:
            async with session.request(
                method, url + path, data=data, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise ValueError(f"the engine answered {api} with status {response.status}")
                return await response.json(content_type=None)

        return await self._nodes.send(session, ask_node)


def group_terms_by_text(texts: Sequence[str], tokens: Sequence[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the terms of each of `texts`, from the `tokens` that one `_analyze` request made of all of them.

    Offsets count UTF-16 units. They run on from one text to the next, with a gap of one.
    """
    terms_by_text: dict[str, list[str]] = {text: [] for text in texts}
    ends, end = [], 0
    for text in texts:
        end += len(text.encode("utf-16-le")) // 2
        ends.append(end)
        end += 1
    position = 0
    for token in sorted(tokens, key=lambda token: int(token["start_offset"])):
        while position < len(ends) and token["start_offset"] >= ends[position]:
            position += 1
        if position == len(ends):
            break
        terms_by_text[texts[position]].append(str(token["token"]))
    return {text: tuple(terms) for text, terms in terms_by_text.items()}


def _join_terms(terms: Sequence[str]) -> str:
    return " ".join(terms) or "nothing"
