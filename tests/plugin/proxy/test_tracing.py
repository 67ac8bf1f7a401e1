"""Traces: one span a search request, with its outcome and times; without an endpoint nothing is imported or sent."""

import asyncio
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.proxy_process import find_free_ports
from querylift.index_tools.proxy_process import run_proxy as run_proxy_process
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import JSON_HEADERS, RAW_BODY, run_with_proxy, send_search
from tests.helpers.trace_collector import TraceCollector, read_attributes, run_trace_collector
from tests.helpers.upstream_stub import RunningProxy, StubEngine, answer_with

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED_PARENT = PARENT[:-1] + "0"


@pytest.fixture
def collector() -> Iterator[TraceCollector]:
    with run_trace_collector() as collector:
        yield collector


def trace_searches(
    collector: TraceCollector,
    *requests: dict[str, Any],
    handler: Any = None,
    generator: ScriptedGenerator | None = None,
    sample_share: float = 1.0,
    **settings: Any,
) -> StubEngine:
    """Send requests through a proxy that traces, and return the engine with what it received."""
    engines: list[StubEngine] = []

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for request in requests:
            await send_search(client, proxy, **request)
        engines.append(engine)

    tracing = {"endpoint": collector.url, "sample_share": sample_share, "service_name": "shop-search"}
    run_with_proxy(check, handler, generator=generator, tracing=tracing, **settings)
    return engines[0]


def test_a_search_is_one_span_with_its_outcome_and_its_times(collector: TraceCollector) -> None:
    generator = ScriptedGenerator({"download a page": Expansion(text="urlopen")}, delay_s=0.05)
    trace_searches(collector, {}, {}, {"path": "/docs/_count"}, generator=generator)
    first, second = collector.spans
    assert (first.name, first.kind) == ("POST /{index}/_search", 2)  # SPAN_KIND_SERVER
    attributes = read_attributes(first)
    added_ms, generator_ms = attributes.pop("querylift.added_ms"), attributes.pop("querylift.generator_ms")
    assert added_ms >= generator_ms >= 50
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/{index}/_search",
        "http.response.status_code": 200,
        "url.path": "/docs/_search",
        "url.scheme": "http",
        "querylift.outcome": "expanded",
        "querylift.reason": "",
        "querylift.index": "docs",
        "querylift.searches": 1,
    }
    assert read_attributes(second)["querylift.outcome"] == "cached"
    assert {resource["service.name"] for resource in collector.resources} == {"shop-search"}
    assert set(collector.paths) == {"/v1/traces"}


@pytest.mark.parametrize("query_text", [False, True])
def test_the_query_is_in_the_span_only_if_the_log_settings_say_so(collector: TraceCollector, query_text: bool) -> None:
    trace_searches(collector, {}, log={"query_text": query_text})
    (span,) = collector.spans
    assert read_attributes(span).get("querylift.query") == ("download a page" if query_text else None)
    assert (b"download" in span.SerializeToString()) == query_text


def test_the_span_continues_the_client_s_trace_and_the_engine_gets_the_span_as_its_parent(
    collector: TraceCollector,
) -> None:
    headers = JSON_HEADERS | {"traceparent": PARENT, "tracestate": "shop=7"}
    engine = trace_searches(collector, {"headers": headers})
    (span,) = collector.spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    assert engine.requests[0].get_header_values(b"traceparent") == [
        f"00-{PARENT[3:35]}-{span.span_id.hex()}-01".encode()
    ]
    assert engine.requests[0].get_header_values(b"tracestate") == [b"shop=7"]


@pytest.mark.parametrize("index", ["docs", "elsewhere"])
def test_a_search_without_a_trace_begins_one_and_the_engine_gets_it(collector: TraceCollector, index: str) -> None:
    engine = trace_searches(collector, {"path": f"/{index}/_search"})
    (span,) = collector.spans
    assert span.parent_span_id == b""
    (header,) = engine.requests[0].get_header_values(b"traceparent")
    *ids, flags = header.decode().split("-")
    assert ids == ["00", span.trace_id.hex(), span.span_id.hex()]
    assert int(flags, 16) & 1, "the engine is told that the trace is kept"


def test_a_client_that_does_not_sample_is_not_sampled_and_a_share_of_nothing_sends_nothing(
    collector: TraceCollector,
) -> None:
    trace_searches(collector, {"headers": JSON_HEADERS | {"traceparent": UNSAMPLED_PARENT}})
    trace_searches(collector, {}, sample_share=0)
    assert collector.spans == []
    trace_searches(collector, {"headers": JSON_HEADERS | {"traceparent": PARENT}}, sample_share=0)
    assert len(collector.spans) == 1, "the client samples, so the whole trace is kept"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"traceparent", b"anything at all"), (b"tracestate", b"\xff\xfe=1")],
        [(b"traceparent", PARENT.encode()), (b"traceparent", PARENT.encode())],
        [(b"traceparent", b"ff-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"), (b"tracestate", b"=" * 5000)],
        [(b"tracestate", b"a=1"), (b"tracestate", b"b=2")],
    ],
)
def test_headers_that_are_no_trace_begin_a_new_one(
    collector: TraceCollector, headers: list[tuple[bytes, bytes]]
) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        head = b"POST /docs/_search HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(head + lines + b"content-length: %d\r\n\r\n" % len(RAW_BODY) + RAW_BODY)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert len(engine.requests[0].get_header_values(b"traceparent")) == 1

    run_with_proxy(check, tracing={"endpoint": collector.url})
    (span,) = collector.spans
    assert span.parent_span_id == b""


def test_an_msearch_is_one_span_with_the_number_of_its_searches(collector: TraceCollector) -> None:
    lines = [b'{"index":"docs"}', RAW_BODY, b'{"index":"docs"}', RAW_BODY, b'{"index":"x"}', RAW_BODY]
    trace_searches(collector, {"path": "/_msearch", "data": b"\n".join(lines) + b"\n"})
    (span,) = collector.spans
    attributes = read_attributes(span)
    assert (span.name, attributes["querylift.searches"]) == ("POST /_msearch", 3)
    assert (attributes["querylift.outcome"], attributes["querylift.index"]) == ("expanded", "several")


def test_a_failed_engine_is_an_error_of_the_span(collector: TraceCollector) -> None:
    trace_searches(collector, {}, engine="http://127.0.0.1:9")
    (span,) = collector.spans
    attributes = read_attributes(span)
    assert (attributes["http.response.status_code"], attributes["querylift.reason"]) == (502, "engine")
    assert span.status.code == 2  # STATUS_CODE_ERROR


def test_a_rewrite_that_the_engine_rejects_says_so_in_the_span(collector: TraceCollector) -> None:
    async def answer(request: Any, writer: asyncio.StreamWriter) -> None:
        await answer_with(status="400 Bad Request" if b"urlopen" in request.body else "200 OK")(request, writer)

    engine = trace_searches(collector, {}, handler=answer)
    (span,) = collector.spans
    assert read_attributes(span)["querylift.reason"] == "rejected"
    parents = {request.get_header_values(b"traceparent")[0] for request in engine.requests}
    assert len(engine.requests) == 2 and len(parents) == 1


def test_without_an_endpoint_the_client_s_headers_reach_the_engine_as_they_came() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        headers = JSON_HEADERS | {"Traceparent": "anything at all", "tracestate": "a=1,,b"}
        await send_search(client, proxy, headers=headers)
        assert engine.requests[0].get_header_values(b"traceparent") == [b"anything at all"]
        assert engine.requests[0].get_header_values(b"tracestate") == [b"a=1,,b"]

    run_with_proxy(check)


def _search_by_process(tmp_path: Path, settings: dict[str, Any], count: int) -> str:
    """Serve searches in a process of its own, end it, and return its log."""
    settings = {"engine": "http://127.0.0.1:9", "index": {"docs": {}}} | settings
    with run_proxy_process(settings) as proxy:
        for _ in range(count):
            request = urllib.request.Request(
                f"{proxy.url}/docs/_search", RAW_BODY, {"Content-Type": "application/json"}
            )
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=20)
            caught.value.close()
        proxy.process.terminate()
        assert proxy.process.wait(15) == 0
        return proxy.log.read_text()


def test_a_collector_that_is_down_fails_no_search_and_fills_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    (port,) = find_free_ports(1)
    log = _search_by_process(tmp_path, {"tracing": {"endpoint": f"http://127.0.0.1:{port}"}}, 20)
    lines = [line for line in log.splitlines() if "traces" in line]
    assert 1 <= len(lines) <= 2, lines  # one while serving, and perhaps one at the end
    assert "Traceback" not in log


def test_the_variables_of_opentelemetry_switch_nothing_on_and_add_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: TraceCollector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "of-the-environment")
    _search_by_process(tmp_path, {}, 1)
    assert collector.spans == []
    _search_by_process(tmp_path, {"tracing": {"endpoint": collector.url}}, 1)
    assert len(collector.spans) == 1
    assert collector.headers[0]["authorization"] == "Bearer s3cret"
    assert collector.resources[0]["service.name"] == "querylift"


def test_nothing_of_opentelemetry_is_imported_without_an_endpoint() -> None:
    code = (
        "import asyncio, sys\n"
        "from querylift.plugin.proxy.server import open_proxy\n"
        "from querylift.plugin.settings import Settings\n"
        "async def main():\n"
        "    async with open_proxy(Settings()): pass\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'requests'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named_with_its_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from querylift.plugin.errors import MissingExtra\n"
        "try:\n"
        "    import querylift.plugin.proxy.tracing\n"
        "except MissingExtra as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("pip install '.[otel]'")


@pytest.mark.parametrize(
    ("tracing", "sentence"),
    [
        ({"endpoint": "collector:4318"}, "tracing.endpoint is 'collector:4318': use a URL like http://collector:4318"),
        (
            {"endpoint": "http://ann:secret@collector"},
            "tracing.endpoint is given: put the key into the variable OTEL_EXPORTER_OTLP_HEADERS; a URL is shown in logs",
        ),
        ({"sample_share": 2}, "tracing.sample_share is 2: input should be less than or equal to 1"),
        ({"service_name": ""}, "tracing.service_name is '': string should have at least 1 character"),
    ],
)
def test_a_wrong_value_stops_serve_with_one_sentence(tracing: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"tracing": tracing})
    assert str(caught.value) == f"settings: {sentence}"


def test_an_endpoint_with_the_path_of_traces_is_the_same_endpoint() -> None:
    endpoints = [f"http://c:4318{path}" for path in ("", "/", "/v1/traces")]
    assert {parse_settings({"tracing": {"endpoint": url}}).tracing.endpoint for url in endpoints} == {"http://c:4318"}
