"""An encoder behind an OpenAI-compatible endpoint, such as text-embeddings-inference, vLLM or llama-server.

A build sends batches, and tries again when the endpoint is busy. A search asks once. No text of a query is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import aiohttp

from querylift.plugin.errors import EndpointError, GeneratorError, SettingsError
from querylift.plugin.fast_expander.embeddings import check_status, make_embeddings_body, read_embeddings
from querylift.plugin.fast_expander.expander_folder import EndpointRecord, ExpanderRecord
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.mapped_files import Array

    Fetch: TypeAlias = Callable[[aiohttp.ClientSession, Sequence[str]], Awaitable[Array]]

_log = logging.getLogger("querylift")
PROBE_TEXTS = (
    "a probe of the encoder",
    "Which harbour do ships reach first when they come from the north?",
    "ein Wort, une phrase, 一个词",
)
"""Texts whose vectors tell one model from another."""
MIN_PROBE_COSINE = 0.99
"""Least mean cosine of the probes with those of the record. Other hardware moves a vector less, another model more."""
_PROBE_INTERVAL_S = 60.0
RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 15.0)


class EmbeddingsClient:
    """Asks the endpoint of `record` for vectors of `width` numbers. None stands for any width.

    The URL of the settings goes before the record's, as an endpoint may have another address on another machine.
    """

    def __init__(self, record: EndpointRecord, settings: EncoderEndpointSettings, *, width: int | None) -> None:
        self.url = f"{(settings.url or record.url).rstrip('/')}/embeddings"
        self._record = record
        self._settings = settings
        self._width = width

    def open_session(self) -> aiohttp.ClientSession:
        """Return a session with the account of the settings."""
        key = self._settings.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=self._settings.max_seconds))

    async def fetch_query_vectors(self, session: aiohttp.ClientSession, texts: Sequence[str]) -> Array:
        """Return the vectors of queries: shape (texts, width), length 1. Raises EndpointError."""
        record = self._record
        return await self._fetch_vectors(session, texts, record.query_prefix, record.query_input_type)

    async def fetch_document_vectors(self, session: aiohttp.ClientSession, texts: Sequence[str]) -> Array:
        """Return the vectors of documents: shape (texts, width), length 1. Raises EndpointError."""
        record = self._record
        return await self._fetch_vectors(session, texts, record.document_prefix, record.document_input_type)

    async def _fetch_vectors(
        self, session: aiohttp.ClientSession, texts: Sequence[str], prefix: str, input_type: str
    ) -> Array:
        record = self._record
        # Half of a surrogate pair is no text to an endpoint.
        inputs = [prefix + text[: record.max_chars].encode(errors="replace").decode() for text in texts]
        body = make_embeddings_body(record.model, inputs, input_type)
        try:
            async with session.post(self.url, json=body, allow_redirects=False) as response:
                check_status(self.url, response.status, record.model)
                content = await response.read()
        except TimeoutError:
            raise EndpointError(
                f"{self.url} did not answer within {self._settings.max_seconds:g} s; raise encoder.max_seconds",
                is_temporary=True,
            ) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise EndpointError(
                f"{self.url} did not answer ({type(error).__name__}); start the endpoint, or correct its URL",
                is_temporary=True,
            ) from None
        return read_embeddings(self.url, content, count=len(texts), width=self._width)


class EndpointEncoder:
    """Encodes in batches, for a build or a training. Each call opens its own connections, so threads may share it.

    A request is repeated after each of `retry_delays_s` while the endpoint is busy or away. Raises EndpointError.
    """

    def __init__(
        self,
        record: EndpointRecord,
        settings: EncoderEndpointSettings,
        *,
        width: int | None = None,
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
    ) -> None:
        self._client = EmbeddingsClient(record, settings, width=width)
        self._retry_delays_s = retry_delays_s
        self._batch_size = settings.batch_size

    def encode_query(self, text: str) -> Vector:
        """Return the vector of a query: shape (width,), length 1."""
        return self.encode_queries([text], threads=1)[0]  # type: ignore[no-any-return]

    def encode_queries(self, texts: Sequence[str], *, threads: int) -> Array:
        """Return the vectors of queries: shape (texts, width), length 1. At most `threads` requests run at once."""
        return asyncio.run(self._fetch_batches(self._client.fetch_query_vectors, texts, threads))

    def encode_documents(self, texts: Sequence[str], *, threads: int) -> Array:
        """Return the vectors of documents: shape (texts, width), length 1. At most `threads` requests run at once."""
        return asyncio.run(self._fetch_batches(self._client.fetch_document_vectors, texts, threads))

    async def _fetch_batches(self, fetch: Fetch, texts: Sequence[str], threads: int) -> Array:
        import numpy as np

        limit = asyncio.Semaphore(threads)
        batches = [texts[start : start + self._batch_size] for start in range(0, len(texts), self._batch_size)]

        async def fetch_batch(batch: Sequence[str]) -> Array:
            async with limit:
                return await self._fetch_with_retries(fetch, session, batch)

        try:
            async with self._client.open_session() as session, asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetch_batch(batch)) for batch in batches]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return np.concatenate([task.result() for task in tasks])

    async def _fetch_with_retries(self, fetch: Fetch, session: aiohttp.ClientSession, texts: Sequence[str]) -> Array:
        for delay_s in self._retry_delays_s:
            try:
                return await fetch(session, texts)
            except EndpointError as error:
                if not error.is_temporary:
                    raise
            await asyncio.sleep(delay_s)
        return await fetch(session, texts)


class EndpointQueryEncoder:
    """Encodes the queries of searches. It checks, now and then, that the endpoint still has the model of the record.

    The check's texts travel with a query: with the first, with the first after a fault, and once a minute.
    """

    def __init__(
        self,
        record: EndpointRecord,
        settings: EncoderEndpointSettings,
        *,
        width: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = EmbeddingsClient(record, settings, width=width)
        self._record = record
        self._clock = clock
        self._next_check_s = 0.0
        """The time from which a query carries the probes."""
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the connections and check the model. An endpoint that is away gives a warning. Raises SettingsError."""
        self._session = self._client.open_session()
        try:
            await self._fetch_checked([])
        except EndpointError as error:
            if not error.is_temporary:
                await self.close()
                raise SettingsError(str(error)) from None
            _log.warning("the encoder is not there yet: %s", error)

    async def encode_query(self, text: str) -> Vector:
        """Return the vector of a query: shape (width,), length 1. Raises GeneratorError."""
        return (await self._fetch_checked([text]))[0]  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _fetch_checked(self, texts: Sequence[str]) -> Array:
        if self._session is None:
            raise GeneratorError("the encoder's connections are not open; call start() first")
        is_due = self._clock() >= self._next_check_s
        sent = [*texts, *self._record.probes] if is_due else texts
        try:
            vectors = await self._client.fetch_query_vectors(self._session, sent)
            if is_due:
                check_probes(self._client.url, self._record, vectors[len(texts) :])
        except EndpointError:
            self._next_check_s = 0.0
            raise
        if is_due:
            self._next_check_s = self._clock() + _PROBE_INTERVAL_S
        return vectors[: len(texts)]


async def open_query_endpoint(
    record: ExpanderRecord, settings: EncoderEndpointSettings | None
) -> EndpointQueryEncoder | None:
    """Return the started encoder of an expander whose vectors an endpoint makes; None for others. Raises SettingsError."""
    if record.endpoint is None:
        return None
    encoder = EndpointQueryEncoder(record.endpoint, settings or EncoderEndpointSettings(), width=record.width)
    await encoder.start()
    return encoder


def check_probes(url: str, record: EndpointRecord, vectors: Array) -> None:
    """Raise EndpointError when `vectors`, the probes' of today, are not those of the record."""
    import numpy as np

    expected = np.array(list(record.probes.values()), dtype=np.float32)
    cosine = float((expected * vectors).sum(axis=1).mean())
    if cosine < MIN_PROBE_COSINE:
        raise EndpointError(
            f"{url} answers with other vectors for {record.model!r} than when the expander was built (mean cosine "
            f"{cosine:.2f}); serve the model of that time, or build the expander again in another folder"
        )
