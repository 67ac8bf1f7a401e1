"""The generator `http`: an OpenAI-compatible endpoint, such as vLLM, llama-server or a hosted model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import aiohttp

from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import MAX_TOKENS, PROMPT_VERSION, Expansion, build_messages, parse_output
from querylift.plugin.files import compute_json_digest
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.chat_answer import AnswerRefused, OnlyThinking, read_chat_answer

_log = logging.getLogger("querylift")


class HttpGenerator:
    """Sends each query to POST `url`/chat/completions with temperature 0. `url` usually ends in /v1.

    The request sets no stop string: the parser cuts the output at its first line, as it does for every model. `extra_body`
    holds the keys that every request gets beside Querylift's own.
    """

    reads_index = False
    uses_account = False
    expected_s = 1.0

    def __init__(
        self,
        url: str,
        *,
        model: str,
        api_key: str | None = None,
        max_seconds: float = 10,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._extra_body = dict(extra_body or {})
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=max_seconds)
        self._session: aiohttp.ClientSession | None = None
        self.identity = f"http:{url}:{model}:{PROMPT_VERSION}"
        if self._extra_body:
            self.identity += f":{compute_json_digest(self._extra_body)[:16]}"

    async def start(self) -> None:
        """Open the connection pool. The endpoint need not run yet."""
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the words of the model's passage, or None when it has none or refuses. Raises GeneratorError."""
        body = {
            "model": self._model,
            "messages": build_messages(request.text),
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            **self._extra_body,
        }
        answer = await self._post_json(body)
        try:
            return parse_output(read_chat_answer(answer), query=request.text)
        except AnswerRefused as refusal:
            _log.warning("a query stays without an expansion: %s", refusal)
            return None
        except OnlyThinking as error:
            remedy = "set enable_thinking = false in [http], or name a model that does not think"
            raise GeneratorError(f"{error}; {remedy}") from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _post_json(self, body: dict[str, Any]) -> Any:
        if self._session is None:
            raise GeneratorError("the endpoint's connections are not open; call start() first")
        try:
            async with self._session.post(self._url, json=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise GeneratorError(f"{self._url} answered with status {response.status}")
                return await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise GeneratorError(f"{self._url} did not answer: {type(error).__name__}") from error
