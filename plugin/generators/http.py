"""An OpenAI-compatible endpoint: vLLM, llama-server or a hosted model, through POST /chat/completions."""

from __future__ import annotations

from typing import Any

import aiohttp

from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import MAX_TOKENS, PROMPT_VERSION, Expansion, messages, parse
from querylift.plugin.generators.base import Ask


class HttpGenerator:
    """Asks the endpoint under `url` (…/v1), greedily. Cut at the first line by the parser, as every model's output is."""

    reads_index = False

    def __init__(self, url: str, *, model: str, api_key: str | None = None, max_seconds: float = 10) -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=max_seconds)
        self._session: aiohttp.ClientSession | None = None
        self.identity = f"http:{url}:{model}:{PROMPT_VERSION}"

    async def start(self) -> None:
        """Open the connection pool. The endpoint may come up later."""
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)

    async def expand(self, ask: Ask) -> Expansion | None:
        """The model's passage as words."""
        body = {
            "model": self._model,
            "messages": messages(ask.text),
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
        }
        return parse(_content(await self._post(body)), query=ask.text)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, body: dict[str, Any]) -> Any:
        if self._session is None:
            raise GeneratorError("the endpoint's connections are not open; call start() first")
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    raise GeneratorError(f"{self._url} answered with status {response.status}")
                return await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise GeneratorError(f"{self._url} did not answer: {type(error).__name__}") from error


def _content(answer: Any) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise GeneratorError("the endpoint's answer is no chat completion") from None
    return content if isinstance(content, str) else ""
