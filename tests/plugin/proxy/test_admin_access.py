"""The admin page answers operators. It answers no web page, and nobody without the token when one is set."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from querylift.plugin.expansion import Expansion
from querylift.plugin.proxy.admin import Admin
from querylift.plugin.proxy.settings_reload import reload_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import BODY
from tests.helpers.upstream_stub import find_port, run_proxy, serve_application

EXPLAIN = "/_querylift/explain?index=docs&field=text&q=download+a+page"
JSON = {"Content-Type": "application/json"}
Answer = tuple[int, dict[str, Any]]


async def _ask(port: int, path: str, headers: dict[str, str], body: str | None) -> tuple[int, str]:
    method = "GET" if body is None else "POST"
    url = f"http://127.0.0.1:{port}{path}"
    async with aiohttp.request(method, url, data=body, headers=headers) as answer:
        return answer.status, await answer.text()


def ask_admin_page(
    path: str, headers: dict[str, str] | None = None, *, body: str | None = None, **settings: Any
) -> tuple[int, str]:
    """Return status and body of one answer of the admin page of a proxy with these settings."""
    generator = ScriptedGenerator({"download a page": Expansion(text="urlopen fetches")})

    async def main() -> tuple[int, str]:
        async with (
            run_proxy("http://127.0.0.1:9", generator, **settings) as proxy,
            serve_application(Admin(proxy.application)) as server,
        ):
            return await _ask(find_port(server), path, headers or {}, body)

    return asyncio.run(main())


def test_an_operator_gets_an_explanation_by_ip_address() -> None:
    status, text = ask_admin_page(EXPLAIN)
    assert (status, json.loads(text)["expansion"]["text"]) == (200, "urlopen fetches")


def test_an_operator_gets_an_explanation_of_a_body_that_is_json() -> None:
    status, text = ask_admin_page("/_querylift/explain?index=docs", JSON, body=json.dumps(BODY))
    assert (status, json.loads(text)["expansion"]["text"]) == (200, "urlopen fetches")


@pytest.mark.parametrize("host", ["localhost", "localhost:9281", "[::1]:9281", "10.1.2.3", "QUERYLIFT:9281"])
def test_localhost_an_ip_address_and_a_host_of_the_settings_are_known(host: str) -> None:
    assert ask_admin_page(EXPLAIN, {"Host": host}, admin_hosts=["querylift"])[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9281", "", "[::1", "localhost.evil.example"])
def test_another_host_name_is_refused_because_a_web_page_may_own_it(host: str) -> None:
    status, text = ask_admin_page(EXPLAIN, {"Host": host})
    assert status == 403
    assert json.loads(text)["error"] == (
        f"the header Host is '{host}'; add this name to admin_hosts, or use the IP address"
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[", "Host": "127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_web_page_of_another_site_gets_no_explanation(headers: dict[str, str]) -> None:
    status, text = ask_admin_page(EXPLAIN, headers)
    assert status == 403
    assert "web page" in json.loads(text)["error"]
    assert "urlopen" not in text


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_a_body_that_a_web_page_can_send_without_asking_is_refused(media_type: str) -> None:
    status, text = ask_admin_page("/_querylift/explain?index=docs", {"Content-Type": media_type}, body=json.dumps(BODY))
    assert status == 415
    assert (
        json.loads(text)["error"] == f"the header Content-Type is '{media_type}'; send the search as application/json"
    )


@pytest.mark.parametrize("path", ["/metrics", EXPLAIN])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer no"}, {"Authorization": "Basic c2VjcmV0"}])
def test_metrics_and_explanations_need_the_token_of_the_settings(path: str, headers: dict[str, str]) -> None:
    status, text = ask_admin_page(path, headers, admin_token="secret")
    assert status == 401
    assert "Authorization: Bearer ADMIN_TOKEN" in json.loads(text)["error"]
    assert "secret" not in text


@pytest.mark.parametrize("path", ["/metrics", EXPLAIN])
def test_the_token_of_the_settings_opens_metrics_and_explanations(path: str) -> None:
    assert ask_admin_page(path, {"Authorization": "Bearer secret"}, admin_token="secret")[0] == 200


def test_health_needs_no_token_and_no_known_host() -> None:
    assert ask_admin_page("/_querylift/health", {"Host": "balancer.example"}, admin_token="secret")[0] in (200, 503)


def test_metrics_need_no_known_host() -> None:
    assert ask_admin_page("/metrics", {"Host": "querylift.monitoring.svc"})[0] == 200


@pytest.mark.parametrize(
    ("changes", "status"), [({"admin_token": "other"}, 401), ({"admin_hosts": []}, 403), ({"enabled": True}, 200)]
)
def test_a_reloaded_token_or_host_counts_for_the_next_request(changes: dict[str, Any], status: int) -> None:
    headers = {"Authorization": "Bearer secret", "Host": "querylift"}

    async def main() -> int:
        async with (
            run_proxy(
                "http://127.0.0.1:9", ScriptedGenerator({}), admin_token="secret", admin_hosts=["querylift"]
            ) as proxy,
            serve_application(Admin(proxy.application)) as server,
        ):
            assert (await _ask(find_port(server), EXPLAIN, headers, None))[0] == 200
            settings = proxy.application.settings
            new_settings = type(settings).model_validate(settings.model_dump() | changes)
            await reload_settings(proxy.application, lambda: new_settings)
            return (await _ask(find_port(server), EXPLAIN, headers, None))[0]

    assert asyncio.run(main()) == status
