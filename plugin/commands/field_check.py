"""Ask the engine whether an index has the fields that a search names. A search on missing fields finds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import quote

import aiohttp

from querylift.plugin.errors import EngineError
from querylift.plugin.generators.factory import build_basic_auth, build_ssl_context
from querylift.plugin.settings import Settings

_TIMEOUT_S = 5


async def find_missing_fields(settings: Settings, index: str, fields: Sequence[str]) -> tuple[str, ...]:
    """Return those of `fields` that no index of the expression `index` has. A field may have wildcards, but no boost.

    Raises EngineError when the engine cannot tell, for example because there is no such index.
    """
    url = f"{settings.engine}/{quote(index, safe=',*')}/_field_caps"
    try:
        async with (
            aiohttp.ClientSession(
                auth=build_basic_auth(settings),
                connector=aiohttp.TCPConnector(ssl=build_ssl_context(settings)),
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            ) as session,
            session.get(url, params={"fields": ",".join(fields)}) as response,
        ):
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise EngineError(f"no search engine answers at {settings.engine} ({type(error).__name__})") from error
    if response.status == 404:
        raise EngineError(f"{settings.engine} has no index {index}")
    if response.status != 200 or not isinstance(answer, dict):
        raise EngineError(f"{settings.engine} answered with status {response.status}")
    known_fields = answer.get("fields", {})
    return tuple(name for name in fields if not any(fnmatchcase(known, name) for known in known_fields))
