"""The admin page: metrics, three checks of health, and an explanation of what would be sent for one search."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from querylift.plugin.flow import Search, choose_explained_fields, explain_result, make_match_body
from querylift.plugin.proxy.admin_guard import Refusal, check_browser_marks, check_media_type, check_token
from querylift.plugin.proxy.admin_messages import METRICS_MEDIA_TYPE, read_body, send_answer
from querylift.plugin.proxy.application import Proxy
from querylift.plugin.proxy.asgi_types import Receive, Scope, Send
from querylift.plugin.proxy.health import HealthReporter

_EXPLAIN_PARAMETERS = ("index", "q", "field")
_PATHS = "/metrics, /_querylift/live, /_querylift/ready, /_querylift/health or /_querylift/explain"


class Admin:
    """ASGI application for operators: GET /metrics, GET /_querylift/live, /ready and /health, and the explanation.

    The explanation is GET or POST /_querylift/explain?index=NAME. The setting `admin_token` guards metrics and
    explanations. The checks of health are open, because they hold no query and no word.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        health = HealthReporter(proxy)
        self._health_reports = {
            "/_querylift/live": health.report_life,
            "/_querylift/ready": health.report_readiness,
            "/_querylift/health": health.report_health,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send_answer(send, *await self._build_answer(scope, receive))

    async def _build_answer(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        """Return status, media type and body."""
        if (make_report := self._health_reports.get(scope["path"])) is not None:
            status, report = await make_report()
            return status, "application/json", json.dumps(report).encode()
        if scope["path"] in ("/metrics", "/_querylift/explain") and (refusal := self._check_request(scope)) is not None:
            return refusal.status, "application/json", json.dumps({"error": refusal.sentence}).encode()
        if scope["path"] == "/metrics":
            return 200, METRICS_MEDIA_TYPE, self.proxy.journal.metrics.render()
        if scope["path"] == "/_querylift/explain":
            parameters = parse_qsl(scope["query_string"].decode("latin-1"))
            body = await read_body(receive, self.proxy.settings.max_body_bytes)
            if problem := _find_wrong_parameter(parameters, body):
                return 400, "application/json", json.dumps({"error": problem}).encode()
            explanation = await self._explain_search(parameters, body)
            return 200, "application/json", json.dumps(explanation).encode()
        error = f"{scope['path']} does not exist; use {_PATHS}"
        return 404, "application/json", json.dumps({"error": error}).encode()

    def _check_request(self, scope: Scope) -> Refusal | None:
        """Return why this request for metrics or for an explanation is not answered, or None."""
        settings = self.proxy.settings
        headers = dict(reversed(scope["headers"]))  # the first value of a repeated header
        token = settings.admin_token.get_secret_value() if settings.admin_token else None
        if (refusal := check_token(headers, token)) is not None or scope["path"] == "/metrics":
            return refusal
        if (refusal := check_browser_marks(headers, frozenset(settings.admin_hosts))) is not None:
            return refusal
        return check_media_type(headers) if scope["method"] == "POST" else None

    async def _explain_search(self, parameters: Sequence[tuple[str, str]], body: bytes) -> dict[str, Any]:
        """Explain the search in the request's body. Without a body, explain a plain search for the parameter `q`."""
        values = dict(parameters)
        settings = self.proxy.settings
        if not body:
            fields = [value for name, value in parameters if name == "field"]
            body = make_match_body(values["q"], *(fields or choose_explained_fields(settings, values.get("index"))))
        search = Search(values.get("index"), body, deadline_s=time.monotonic() + float(settings.llama.max_seconds))
        return explain_result(await self.proxy.expand(search), search)


def _find_wrong_parameter(parameters: Sequence[tuple[str, str]], body: bytes) -> str:
    """Return the sentence that refuses an unknown or a missing parameter, or "" when all is well."""
    names = [name for name, _ in parameters]
    known_names = ", ".join(_EXPLAIN_PARAMETERS)
    for name in names:
        if name not in _EXPLAIN_PARAMETERS:
            return f"{name!r} is not a parameter; use {known_names}, or send a search as the body"
    return "" if body or "q" in names else "q is missing; give the query as q, or send a search as the body"
