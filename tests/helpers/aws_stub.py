"""Amazon OpenSearch Service as a scripted engine: it takes requests with a right signature only."""

from __future__ import annotations

import asyncio
import os
import re
from hashlib import sha256
from urllib.parse import parse_qsl, urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from tests.helpers.upstream_stub import Handler, ReceivedRequest, answer_with

CREDENTIALS = ReadOnlyCredentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session-token")
REGION = "eu-central-1"


def set_credentials(monkeypatch: pytest.MonkeyPatch, credentials: ReadOnlyCredentials | None = CREDENTIALS) -> None:
    """Give these credentials by the environment, and none by any other way."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "no-such-file")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "no-such-file")
    if credentials is not None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key)
        monkeypatch.setenv("AWS_SESSION_TOKEN", credentials.token)


def find_signature_fault(
    request: ReceivedRequest, service: str, credentials: ReadOnlyCredentials = CREDENTIALS
) -> str | None:
    """Return what is wrong with the signature of a request, computed again from what was received. None when it is right.

    The query is read as its receiver reads it: decoded, and escaped again in the one way that AWS escapes.
    """
    headers = {name.decode().lower(): value.decode() for name, value in request.headers}
    pattern = r"AWS4-HMAC-SHA256 Credential=(\S+), SignedHeaders=(\S+), Signature=(\w+)"
    authorization = re.fullmatch(pattern, headers.get("authorization", ""))
    if authorization is None:
        return f"no signature in {headers.get('authorization')!r}"
    scope, names, signature = authorization.groups()
    if headers.get("x-amz-content-sha256") != sha256(request.body).hexdigest():
        return "x-amz-content-sha256 is not the hash of the body"
    unsigned = [name for name in headers if name.startswith("x-amz-") and name not in names.split(";")]
    if unsigned or "host" not in names.split(";"):
        return f"not signed: {unsigned}, signed: {names}"
    method, target, _ = request.start_line.decode("ascii").split(" ")
    parts = urlsplit(f"http://{headers['host']}{target}")
    again = AWSRequest(
        method,
        parts._replace(query="").geturl(),
        headers={name: headers[name] for name in names.split(";")},
        params=parse_qsl(parts.query, keep_blank_values=True),
    )
    again.context["timestamp"] = headers["x-amz-date"]
    signer = SigV4Auth(credentials, service, REGION)
    if scope != signer.scope(again):
        return f"the scope is {scope}"
    canonical_request = signer.canonical_request(again)
    if signature != signer.signature(signer.string_to_sign(again, canonical_request), again):
        return f"the signature is not the one of {canonical_request!r}"
    return None


def demand_signatures(service: str = "es", answer: Handler | None = None) -> Handler:
    """Return a handler that answers requests with a right signature as `answer` does, and others with status 403."""
    answer = answer or answer_with(b'{"hits":{"hits":[]}}', extra=b"content-type: application/json\r\n")

    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        if (fault := find_signature_fault(request, service)) is None:
            await answer(request, writer)
        else:
            body = b'{"message":"%s"}' % fault.encode().replace(b'"', b"'")
            json_header = b"content-type: application/json\r\n"
            await answer_with(body, status="403 Forbidden", extra=json_header)(request, writer)

    return handle
