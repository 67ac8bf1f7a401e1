"""Signs requests to Amazon OpenSearch Service (Signature Version 4), as a middleware of aiohttp's client.

It signs what is sent: the method, the path and the query, the host, and the body's SHA-256, which OpenSearch Serverless
demands. A body must be known as a whole before it is sent. `UNSIGNED-PAYLOAD` in its place is refused by the service.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import aiohttp
from yarl import URL

from querylift.plugin.engine.aws_credentials import AwsCredentials
from querylift.plugin.settings_tables.aws import AwsSettings

CONTENT_HASH_HEADER = "x-amz-content-sha256"
_UNRESERVED = "-_.~"
"""Besides letters and digits, what RFC 3986 section 2.3 leaves as it is. Everything else is escaped in what is signed."""


class AwsSigner:
    """Signs every request of the sessions that have it as a middleware. Raises MissingExtra."""

    def __init__(self, settings: AwsSettings) -> None:
        self._region = settings.region
        self._service = settings.service
        self._credentials = AwsCredentials(settings.profile)

    async def start(self) -> None:
        """Fetch the credentials. Raises SettingsError when there are none."""
        await self._credentials.start()

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Sign a request and send it. A header with the body's hash is taken as right. Raises CredentialsUnavailable."""
        credentials = await self._credentials.get()
        request.url = escape_strictly(request.url)
        if CONTENT_HASH_HEADER not in request.headers:
            body = await request.body.as_bytes() if request.body else b""
            request.headers[CONTENT_HASH_HEADER] = sha256(body).hexdigest()
        self._sign(request, credentials)
        return await handler(request)

    def _sign(self, request: aiohttp.ClientRequest, credentials: Any) -> None:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        signed_headers = {name: request.headers[name] for name in ("Host", CONTENT_HASH_HEADER)}
        signed_request = AWSRequest(request.method, str(request.url), headers=signed_headers)
        SigV4Auth(credentials, self._service, self._region).add_auth(signed_request)
        for name, value in signed_request.headers.items():
            request.headers[name] = value


def escape_strictly(url: URL) -> URL:
    """Return `url` with its path and query escaped as AWS escapes them, so that what is signed and what is sent are alike.

    It names the same: only the writing changes, such as %2C for a comma, and %20 for a plus sign in the query.
    """
    path = "/".join(_escape(part) for part in url.raw_path.split("/"))
    parameters = [parameter.partition("=") for parameter in url.raw_query_string.split("&") if parameter]
    query = "&".join(
        f"{_escape(name.replace('+', ' '))}={_escape(value.replace('+', ' '))}" for name, _, value in parameters
    )
    return URL.build(scheme=url.scheme, authority=url.raw_authority, path=path or "/", query_string=query, encoded=True)


def _escape(text: str) -> str:
    return quote(unquote_to_bytes(text), safe=_UNRESERVED)
