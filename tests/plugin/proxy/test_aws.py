"""`[aws]`: every request goes out with a signature that botocore computes alike from what the engine received."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.engine import Engine
from querylift.plugin.engine.access import build_engine_access
from querylift.plugin.engine.aws_credentials import AwsCredentials, load_credentials
from querylift.plugin.engine.facts import open_engine_facts
from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.engine_reader import EngineReader
from querylift.plugin.proxy.engine_check import check_settings_on_engine
from querylift.plugin.proxy.signed_request import MAX_BODY_BYTES
from querylift.plugin.settings import parse_settings
from tests.helpers.aws_stub import CREDENTIALS, REGION, demand_signatures, set_credentials
from tests.helpers.proxy_scenarios import BODY, RAW_BODY, run_with_proxy, send_search
from tests.helpers.raw_client import connect_raw, exchange_raw
from tests.helpers.upstream_stub import RunningProxy, StubEngine, answer_with, run_stub_engine

AWS: dict[str, Any] = {"region": REGION}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)


def _head(method: str, target: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: querylift:9280", *lines, "", ""]).encode()


JSON_TYPE = "Content-Type: application/json"
MSEARCH = b'{"index":"docs"}\n' + RAW_BODY + b"\n{}\n" + RAW_BODY + b"\n"
GZIPPED = gzip.compress(RAW_BODY)
REQUESTS: dict[str, bytes] = {
    "GET without a body": _head("GET", "/docs/_doc/1"),
    "the root": _head("GET", "/"),
    "a query": _head("GET", "/docs/_search?q=title:caf%C3%A9+au%20lait&size=10&pretty&sort=a:desc,b&x=~a*b(c)!'"),
    "parameters out of order, twice, without a name": _head("GET", "/_cat/indices?v&h=b&h=a&&a=%2B&=1"),
    "a list and a pattern": _head("GET", "/docs,more*/_count"),
    "an escaped list and date mathematics": _head("GET", "/docs%2Cmore/_count?x=%2c%7e"),
    "an escaped slash": _head("GET", "/%3Cdocs-%7Bnow%2Fd%7D%3E/_count"),
    "raw signs": _head("GET", "/docs/_doc/a:b@c$d;e=f&g+h~i"),
    "escaped unicode and spaces": _head("GET", "/docs/_doc/caf%C3%A9%20au%20lait"),
    "raw unicode": _head("GET", "/docs/_doc/café"),
    "bytes that are no text": _head("GET", "/docs/_doc/%FF%fe"),
    "two slashes and dots": _head("GET", "//docs/./_doc/../_doc/1//"),
    "an account and a signature of the client": _head(
        "GET", "/docs/_doc/1", "Authorization: Basic eDp5", "X-Amz-Date: 20200101T000000Z",
        "X-Amz-Content-Sha256: UNSIGNED-PAYLOAD", "X-Amz-Security-Token: t", "X-Amz-Target: u",
    ),
    "a search": _head("POST", "/docs/_search", f"Content-Length: {len(RAW_BODY)}", "Content-Type: application/json") + RAW_BODY,
    "a search by GET": _head("GET", "/docs/_search", f"Content-Length: {len(RAW_BODY)}", JSON_TYPE) + RAW_BODY,
    "an _msearch": _head("POST", "/_msearch", f"Content-Length: {len(MSEARCH)}", "Content-Type: application/x-ndjson") + MSEARCH,
    "a gzip body": _head(
        "POST", "/docs/_search", f"Content-Length: {len(GZIPPED)}", "Content-Encoding: gzip", "Content-Type: application/json"
    ) + GZIPPED,
    "an empty body": _head("POST", "/docs/_refresh", "Content-Length: 0"),
    "DELETE": _head("DELETE", "/docs/_doc/1"),
    "chunks": _head("POST", "/docs/_bulk", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
    "an expectation": _head("POST", "/docs/_doc", "Content-Length: 2", "Expect: nothing-known") + b"{}",
}  # fmt: skip


@pytest.mark.parametrize("service", ["es", "aoss"])
@pytest.mark.parametrize("name", REQUESTS)
def test_the_engine_gets_the_signature_that_botocore_computes_from_the_request(name: str, service: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await exchange_raw(proxy.port, REQUESTS[name])
        assert answer.status == 200, engine.requests[-1]
        (request,) = engine.requests
        if b"Basic" in REQUESTS[name]:
            assert b"basic" not in b"".join(value for _, value in request.headers).lower()
            assert request.get_header_values(b"x-amz-target") == []

    run_with_proxy(check, demand_signatures(service), aws=AWS | {"service": service})


def test_a_rewritten_search_is_signed_and_so_is_the_original_after_a_rejection() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy))[:2] == (200, "expanded")
        assert (await send_search(client, proxy, method="HEAD", path="/docs"))[0] == 200
        assert b"urlopen fetches" in engine.requests[0].body
        assert await proxy.application.upstream.find_failure(5) is None

    run_with_proxy(check, demand_signatures(), aws=AWS)

    async def check_rejected(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy))[:2] == (200, "error;rejected")
        assert [request.body == RAW_BODY for request in engine.requests] == [False, True]

    async def reject_rewrites(request: Any, writer: asyncio.StreamWriter) -> None:
        status = "400 Bad Request" if b"urlopen" in request.body else "200 OK"
        await answer_with(b'{"_shards":{"failed":0},"hits":{"hits":[]}}', status=status)(request, writer)

    run_with_proxy(check_rejected, demand_signatures(answer=reject_rewrites), aws=AWS)


# -- bodies of any size -------------------------------------------------------------------------------------------------


def test_a_streamed_body_is_signed_whole_from_a_file_that_is_gone_afterwards() -> None:
    body = bytes(range(256)) * 40_000

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for data in (stream(), io.BytesIO(body)):
            async with client.post(f"{proxy.url}/docs/_bulk", data=data) as answer:
                assert answer.status == 200, await answer.text()
            assert engine.requests[-1].body == body
            assert engine.requests[-1].get_header_values(b"content-length") == [b"10240000"]
        files = [path for path in Path("/proc/self/fd").iterdir() if "querylift-body" in str(path.resolve())]
        assert files == []

    run_with_proxy(check, demand_signatures(), aws=AWS)


def test_an_engine_that_is_down_or_answers_early_leaves_no_file_open() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.post(f"{proxy.url}/early", data=io.BytesIO(b"x" * 5_000_000)) as answer:
            assert answer.status == 403

    run_with_proxy(check, demand_signatures(), aws=AWS)

    async def check_down(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.post(f"{proxy.url}/_bulk", data=io.BytesIO(b"x" * 5_000_000)) as answer:
            assert answer.status == 502

    run_with_proxy(check_down, aws=AWS, engine="http://127.0.0.1:9")


def test_a_client_that_waits_for_permission_to_send_its_body_gets_it() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([_head("POST", "/_bulk", "Content-Length: 5", "Expect: 100-continue")])
            permission = await raw.read_answer()
            assert permission is not None and permission.status == 100
            await raw.send_segments([b"hello"])
            answer = await raw.read_answer()
            assert answer is not None and answer.status == 200
        assert engine.requests[0].body == b"hello"

    run_with_proxy(check, demand_signatures(), aws=AWS)


def test_a_body_larger_than_the_service_takes_is_refused_before_it_is_read() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await exchange_raw(proxy.port, _head("POST", "/_bulk", f"Content-Length: {MAX_BODY_BYTES + 1}"))
        assert answer.status == 413
        assert json.loads(answer.body)["error"]["reason"] == (
            "the body has more than 104857600 bytes; send less at once"
        )
        assert engine.requests == []

    run_with_proxy(check, demand_signatures(), aws=AWS)


def test_a_client_that_leaves_in_the_middle_of_its_body_sends_nothing() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([_head("POST", "/_bulk", "Content-Length: 1000000"), b"x" * 500_000])
            await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            while proxy.server.server_state.connections:
                await asyncio.sleep(0.01)
        assert engine.requests == []

    run_with_proxy(check, demand_signatures(), aws=AWS)


# -- Querylift's own requests -------------------------------------------------------------------------------------------


def test_querylifts_own_requests_are_signed(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with run_stub_engine(demand_signatures()) as engine, asyncio.timeout(20):
            settings = parse_settings({"engine": f"http://127.0.0.1:{engine.port}", "aws": AWS, "index": {"a*": {}}})
            await check_settings_on_engine(settings)
            async with open_engine_facts(settings, timeout_s=5) as facts:
                assert (await facts.get("/a,b*/_field_caps?fields=a.*,b&x=y z"))[0] == 200
            reader = EngineReader(settings.engine, build_engine_access(settings))
            await reader.start()
            assert await reader.search_documents("docs,more*", dict(BODY)) == []
            await reader.close()

            def use_opensearch_client() -> None:
                with Engine(settings) as own_client:
                    own_client.call("POST", "/a,b*/_search", dict(BODY), params={"q": "title:x", "v": "a,b"})

            await asyncio.to_thread(use_opensearch_client)

    asyncio.run(main())
    assert [message for message in caplog.messages if "refuses" in message or "status 403" in message] == []


def test_an_account_that_the_service_refuses_is_a_warning_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")

    async def main() -> str:
        async with run_stub_engine(demand_signatures()) as engine:
            settings = parse_settings({"engine": f"http://127.0.0.1:{engine.port}", "aws": AWS})
            await check_settings_on_engine(settings)
            return settings.engine[0]

    url = asyncio.run(main())
    assert f": the engine at {url} refuses the AWS account (status 403: the signature is not" in caplog.messages[0]
    assert caplog.messages[0].endswith("check aws.region, aws.service and what the account may do")


# -- credentials --------------------------------------------------------------------------------------------------------


def test_credentials_that_end_are_renewed_beside_the_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that gives credentials is one of botocore's sources. Here it counts how often it was asked."""
    set_credentials(monkeypatch, None)
    script = tmp_path / "give.py"
    script.write_text(
        "import datetime, json, pathlib\n"
        f"asked = pathlib.Path({str(tmp_path / 'asked')!r})\n"
        "count = int(asked.read_text()) + 1 if asked.exists() else 1\n"
        "asked.write_text(str(count))\n"
        "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=12 if count < 3 else 60)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'key-{count}', 'SecretAccessKey': 's', 'SessionToken': 't',"
        " 'Expiration': end.isoformat()}))\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[profile lift]\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    now_s = 0.0

    async def main() -> list[str]:
        nonlocal now_s
        source = AwsCredentials("lift", lambda: now_s)
        await source.start()
        keys = []
        for now_s in (1, 59, 61, 61.5, 700, 701):
            keys.append((await source.get()).access_key)
            if now_s == 61:
                while (await source.get()).access_key != "key-3":
                    await asyncio.sleep(0.01)
        return keys

    # botocore renews at once what ends within 15 minutes, so the program is asked again when credentials are taken.
    assert asyncio.run(main()) == ["key-2", "key-2", "key-2", "key-3", "key-3", "key-3"]


def test_without_credentials_serve_stops_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch, None)
    (tmp_path / "querylift.toml").write_text('[aws]\nregion = "eu-central-1"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [sys.executable, "-m", "querylift", "serve"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (
        2,
        "querylift: aws.region is set, and there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or give this machine or container a role\n",
    )


def test_a_profile_that_is_not_there_is_told() -> None:
    with pytest.raises(SettingsError) as caught:
        load_credentials("lift")
    assert str(caught.value) == (
        "aws.profile is 'lift', which the configuration of AWS on this machine does not have; correct the name"
    )


def test_half_of_the_credentials_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        SettingsError, match=r"^the AWS credentials cannot be fetched \(Partial credentials found in env"
    ):
        load_credentials(None)
    assert CREDENTIALS.secret_key not in str(load_credentials)


def test_settings_without_aws_can_be_read_from_their_own_values() -> None:
    """The options of a command are put over the settings in this way."""
    values = parse_settings({}).model_dump()
    assert parse_settings(values).aws.region is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"aws": {"region": "Frankfurt"}}, "aws.region is 'Frankfurt': name a region of AWS, such as eu-central-1"),
        ({"aws": {"service": "es"}}, "aws is {'service': 'es'}: region is missing; set aws.region, such as eu-central-1"),
        ({"aws": {"service": "aoss"}}, "aws is {'service': 'aoss'}: region is missing; set aws.region, such as eu-central-1"),
        ({"aws": {"region": REGION, "service": "s3"}}, "aws.service is 's3': input should be 'es' or 'aoss'"),
        (
            {"aws": AWS, "engine_username": "ann"},
            "engine_username is 'ann', and [aws] is set; remove one of them, because a request has one account only",
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build_engine_access(parse_settings(values))
    assert str(caught.value).removeprefix("settings: ") == sentence
