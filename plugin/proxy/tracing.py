"""Traces of searches for OpenTelemetry. Nothing of this module is used, or imported, unless `tracing.endpoint` is set."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from querylift.plugin.broker import Answer, Question
from querylift.plugin.errors import MissingExtra
from querylift.plugin.flow import FlowResult, summarize_outcomes
from querylift.plugin.proxy.asgi_types import Scope
from querylift.plugin.proxy.responder import Responder
from querylift.plugin.proxy.routes import Route
from querylift.plugin.settings import Settings
from querylift.plugin.warning_pause import WarningPause

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    raise MissingExtra("opentelemetry-sdk", "otel") from None

_log = logging.getLogger("querylift")
_TRACE_HEADERS = (b"traceparent", b"tracestate")
CLOSE_S = 3.0
"""How long the end of the process waits for the last spans."""
_S_BETWEEN_WARNINGS = 60


class _TracedSearch:
    """What is known of the search request that the present task answers."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.results: list[FlowResult] = []
        self.index = ""
        self.added_s = 0.0
        self.waited_s = 0.0


_current_search: ContextVar[_TracedSearch | None] = ContextVar("querylift_traced_search", default=None)


class SearchTracer:
    """Makes one span for each search request, and sends the spans to `tracing.endpoint` from a thread of its own.

    A collector that does not answer costs searches nothing: spans wait in a bounded queue, and are dropped when it is full.
    """

    def __init__(self, settings: Settings) -> None:
        tracing = settings.tracing
        resource = Resource.create({"service.name": tracing.service_name})
        sampler = ParentBased(TraceIdRatioBased(tracing.sample_share))
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{tracing.endpoint}/v1/traces")))
        self._tracer = self._provider.get_tracer("querylift")
        self._propagator = TraceContextTextMapPropagator()
        self._shows_query = settings.log.query_text
        _quieten_library()

    def apply_settings(self, settings: Settings) -> None:
        """Show the text of queries in spans, or no longer, as `log.query_text` says."""
        self._shows_query = settings.log.query_text

    @contextmanager
    def trace_search(self, scope: Scope, route: Route, responder: Responder) -> Iterator[Scope]:
        """Yield the scope whose headers carry the span of this request to the engine. The span ends with the block.

        A fault of tracing is logged, and the search goes on without a span.
        """
        try:
            search = _TracedSearch(self._start_span(scope, route))
            traced_scope = {**scope, "headers": self._replace_trace_headers(scope["headers"], search.span)}
        except Exception:
            _log.exception("a search is not traced, because tracing has a fault")
            yield scope
            return
        token = _current_search.set(search)
        try:
            yield traced_scope
        finally:
            _current_search.reset(token)
            try:
                if search.span.is_recording():
                    self._describe_search(search, responder.status)
                search.span.end()
            except Exception:
                _log.exception("a span is lost, because tracing has a fault")

    def _start_span(self, scope: Scope, route: Route) -> Span:
        """Return the span of a request, as a child of the client's span if it names one."""
        method, route_path = scope["method"], f"/{{index}}/{route.api}" if route.index else f"/{route.api}"
        attributes = {
            "http.request.method": method,
            "http.route": route_path,
            "url.path": scope["raw_path"].decode("latin-1"),
            "url.scheme": scope["scheme"],
        }
        parent = self._propagator.extract(_read_trace_headers(scope["headers"]))
        name = f"{method} {route_path}"
        return self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER, attributes=attributes)

    def note_result(self, index_label: str, result: FlowResult, added_s: float) -> None:
        """Note what became of a search of the present request. An `_msearch` has several."""
        search = _current_search.get()
        if search is not None:
            search.results.append(result)
            search.index = index_label if search.index in ("", index_label) else "several"
            search.added_s = max(search.added_s, added_s)

    def time_answers(self, answer: Callable[[Question], Awaitable[Answer]]) -> Callable[[Question], Awaitable[Answer]]:
        """Return `answer` with its time noted for the span: the longest, where an `_msearch` has several."""

        async def answer_and_time(question: Question) -> Answer:
            started_s = time.perf_counter()
            try:
                return await answer(question)
            finally:
                if (search := _current_search.get()) is not None:
                    search.waited_s = max(search.waited_s, time.perf_counter() - started_s)

        return answer_and_time

    async def close(self) -> None:
        """Send the spans that wait, for a moment at most."""
        is_closed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(is_closed.set)

        # A thread of the loop's pool would hold up the end of the process for as long as the collector does not answer.
        threading.Thread(target=shut_down, daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_S):
                await is_closed.wait()
        except TimeoutError:
            _log.warning("the last traces were not sent before the end")

    def _replace_trace_headers(self, headers: list[tuple[bytes, bytes]], span: Span) -> list[tuple[bytes, bytes]]:
        """Return the headers with this span as the parent of whatever the engine does."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=set_span_in_context(span))
        kept_headers = [(name, value) for name, value in headers if name not in _TRACE_HEADERS]
        return kept_headers + [(name.encode(), value.encode()) for name, value in carrier.items()]

    def _describe_search(self, search: _TracedSearch, status: int | None) -> None:
        span = search.span
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None or status >= 500:
            span.set_status(StatusCode.ERROR)
        if not search.results:
            return
        outcome = summarize_outcomes(search.results)
        span.set_attribute("querylift.outcome", outcome.kind)
        span.set_attribute("querylift.reason", outcome.reason)
        span.set_attribute("querylift.index", search.index)
        span.set_attribute("querylift.searches", len(search.results))
        span.set_attribute("querylift.added_ms", round(search.added_s * 1000, 3))
        span.set_attribute("querylift.generator_ms", round(search.waited_s * 1000, 3))
        if self._shows_query and len(search.results) == 1 and search.results[0].query:
            span.set_attribute("querylift.query", search.results[0].query)


def _read_trace_headers(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return `traceparent` and `tracestate`. The parts of a repeated header are joined, as W3C Trace Context says."""
    carrier: dict[str, str] = {}
    for name, value in headers:
        if name in _TRACE_HEADERS:
            key, text = name.decode(), value.decode("latin-1")
            carrier[key] = f"{carrier[key]},{text}" if key in carrier else text
    return carrier


class _RareWarnings(logging.Handler):
    """Writes the first message of the library into our log, and others at most once a minute.

    While a collector is down, the library has one for each try and for each span that it drops.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._warning_pause = WarningPause(_S_BETWEEN_WARNINGS, time.monotonic)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message as one line without a traceback."""
        if self._warning_pause.take_turn():
            _log.warning("traces: %s", " ".join(record.getMessage().split()))


def _quieten_library() -> None:
    library_log = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _RareWarnings) for handler in library_log.handlers):
        library_log.addHandler(_RareWarnings())
        library_log.propagate = False
