"""A thin client for OpenSearch and Elasticsearch, with the few calls that indexing and measuring need.

It uses opensearch-py's transport, which speaks to both. Every failure becomes an EngineError, one sentence with the
engine's own reason. A search that the engine refuses for its own sake is no failure but a `SearchRefusal`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from querylift.plugin.engine.access import build_signer, build_ssl_context
from querylift.plugin.engine.aws_credentials import load_credentials
from querylift.plugin.errors import EngineError, MissingExtra
from querylift.plugin.proxy.rejection import REJECTION_STATUSES
from querylift.plugin.settings import Settings

_IDS_PER_SEARCH = 1000
_MAX_HITS = 10_000
"""The most hits that an engine returns by default. Several indices may hold a document of the same id."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The name and version of an engine. `distribution` is "opensearch" or "elasticsearch"."""

    distribution: str
    version: str

    def __str__(self) -> str:
        name = "OpenSearch" if self.distribution == "opensearch" else "Elasticsearch"
        return f"{name} {self.version}"


@dataclass(frozen=True, slots=True)
class SearchRefusal:
    """The engine's reason for refusing one search, such as a query with too many clauses."""

    reason: str


class Engine:
    """A connection to the engine that the settings name."""

    def __init__(self, settings: Settings, *, timeout_s: float = 60) -> None:
        self.url = settings.engine_text
        self._client = _create_client(settings, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def read_info(self) -> EngineInfo:
        """Ask the engine for its name and version. Raise EngineError when no engine answers."""
        version = self.call("GET", "/").get("version", {})
        return EngineInfo(version.get("distribution", "elasticsearch"), version.get("number", "unknown"))

    def call(self, method: str, path: str, body: Any = None, *, params: Mapping[str, Any] | None = None) -> Any:
        """Send one request and return the decoded answer. `body` is a JSON value, or text with a JSON object on each line."""
        from opensearchpy.exceptions import OpenSearchException

        try:
            return self._client.transport.perform_request(method, path, params=dict(params or {}), body=body)
        except OpenSearchException as error:
            raise EngineError(_format_error(self.url, method, path, error)) from error

    def has_index(self, index: str) -> bool:
        """Return whether there is an index, alias or data stream of this name."""
        return bool(self.call("HEAD", f"/{index}"))

    def count_documents(self, index: str) -> int:
        """Return the number of documents that a search can find now."""
        return int(self.call("GET", f"/{index}/_count")["count"])

    def send_bulk_actions(
        self, actions: Iterable[dict[str, Any]], *, chunk_size: int = 500
    ) -> Iterator[tuple[bool, dict[str, Any]]]:
        """Send bulk actions chunk by chunk, and stream (ok, item) for each document.

        A chunk waits for the answer to the one before. After status 429 (too many requests) it is sent again later.
        """
        from opensearchpy import helpers
        from opensearchpy.exceptions import OpenSearchException

        try:
            yield from helpers.streaming_bulk(
                self._client,
                actions,
                chunk_size=chunk_size,
                max_chunk_bytes=8 * 1024 * 1024,
                max_retries=8,
                initial_backoff=1,
                max_backoff=30,
                raise_on_error=False,
            )
        except OpenSearchException as error:
            raise EngineError(_format_error(self.url, "POST", "/_bulk", error)) from error

    def search_many(self, index: str, bodies: Sequence[bytes]) -> list[dict[str, Any] | SearchRefusal]:
        """Return the answer to each of several searches, in their order.

        Raise EngineError when the engine failed on one of them for another reason than the search itself.
        """
        from opensearchpy.exceptions import OpenSearchException, RequestError

        lines = b"".join(b"{}\n" + body + b"\n" for body in bodies)
        path = f"/{index}/_msearch"
        try:
            answers = self._client.transport.perform_request("POST", path, body=lines.decode())["responses"]
        except RequestError as error:
            if len(bodies) == 1:
                return [SearchRefusal(extract_engine_reason(error.info))]
            # One body that the engine cannot parse makes it refuse them all.
            return [answer for body in bodies for answer in self.search_many(index, [body])]
        except OpenSearchException as error:
            raise EngineError(_format_error(self.url, "POST", path, error)) from error
        return [self._check_answer(index, answer) for answer in answers]

    def _check_answer(self, index: str, answer: dict[str, Any]) -> dict[str, Any] | SearchRefusal:
        if "error" not in answer:
            return answer
        reason = extract_engine_reason(answer)
        if is_refusal_status(answer.get("status")):
            return SearchRefusal(reason)
        raise EngineError(f"{self.url} failed on a search on {index} with status {answer.get('status')}: {reason}")

    def find_documents(
        self, index: str, doc_ids: Collection[str], *, fields: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """Return the documents that `index` has of `doc_ids`: their `fields` by id, {} for each without fields.

        `index` may be an alias or a pattern that stands for several indices.
        """
        documents: dict[str, dict[str, Any]] = {}
        ids = sorted(doc_ids)
        for start in range(0, len(ids), _IDS_PER_SEARCH):
            query = {"ids": {"values": ids[start : start + _IDS_PER_SEARCH]}}
            body = {"query": query, "size": _MAX_HITS, "_source": list(fields) or False}
            hits = self.call("POST", f"/{index}/_search", body)["hits"]["hits"]
            documents |= {hit["_id"]: hit.get("_source") or {} for hit in hits}
        return documents


def is_refusal_status(status: object) -> bool:
    """Whether an engine refuses the search itself with this status. 429 and 503 mean that it is overloaded."""
    return status in REJECTION_STATUSES


def _create_client(settings: Settings, timeout_s: float) -> Any:
    try:
        from opensearchpy import OpenSearch
    except ImportError:
        raise MissingExtra("opensearch-py", "index") from None
    ssl_context = build_ssl_context(settings)
    return OpenSearch(
        hosts=list(settings.engine),
        http_auth=_find_account(settings),
        ssl_context=None if ssl_context is True else ssl_context,
        timeout=timeout_s,
        max_retries=5,
        retry_on_timeout=False,
        retry_on_status=(502, 503, 504),
        http_compress=False,
    )


def _find_account(settings: Settings) -> Any:
    """Return `http_auth` for the client: user and password, a signer for AWS, or None. Raises SettingsError, MissingExtra."""
    if build_signer(settings) is not None:
        from opensearchpy import Urllib3AWSV4SignerAuth

        credentials = load_credentials(settings.aws.profile)
        return Urllib3AWSV4SignerAuth(credentials, settings.aws.region, settings.aws.service)
    if settings.engine_username is None:
        return None
    password = settings.engine_password
    return settings.engine_username, password.get_secret_value() if password else ""


def _format_error(url: str, method: str, path: str, error: Any) -> str:
    from opensearchpy.exceptions import ConnectionTimeout, SSLError

    cause = getattr(error, "info", None)
    status = getattr(error, "status_code", None)
    if isinstance(error, ConnectionTimeout):
        return f"{url} did not answer {method} {path} in time; check whether it is overloaded"
    if isinstance(error, SSLError) or (url.startswith("https:") and not isinstance(status, int)):
        return f"{url} cannot be reached over TLS: {cause}; check the URL, engine_ca_file and engine_client_cert"
    if not isinstance(status, int):
        return f"no search engine answers at {url}; start one with `querylift node up`, or name another with --engine"
    return f"{url} answered {method} {path} with status {status}: {extract_engine_reason(cause)}"


def extract_engine_reason(info: Any) -> str:
    """Return the reason in the engine's error JSON."""
    error = info.get("error") if isinstance(info, dict) else info
    if isinstance(error, dict):
        root_causes = error.get("root_cause") or [error]
        return str(root_causes[0].get("reason") or error.get("reason") or error.get("type"))
    return str(error)[:300] if error else "no reason given"


def make_index_action(index: str, doc_id: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bulk action that indexes one document."""
    return {"_op_type": "index", "_index": index, "_id": doc_id, "_source": dict(source)}


def encode_json(body: Any) -> bytes:
    """Return `body` as one line of JSON."""
    return json.dumps(body, separators=(",", ":")).encode()
