"""Checks the URLs of the engine in the settings."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit


def check_engine_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """Return the URLs of an engine's nodes, without slashes at their ends. Raises ValueError.

    They may differ in host and port only. A password or a path that holds for one node would be wrong for another.
    """
    checked_urls = tuple(_check_engine_url(url) for url in urls) or (_check_engine_url(""),)
    first_url = checked_urls[0]
    for url in checked_urls:
        if checked_urls.count(url) > 1:
            raise ValueError(f"{url} stands there twice; remove one")
        if (urlsplit(url).scheme, urlsplit(url).path) != (urlsplit(first_url).scheme, urlsplit(first_url).path):
            raise ValueError(
                f"{first_url} and {url} differ in more than host and port; name the nodes of one engine, "
                "all with the same scheme and path"
            )
    return checked_urls


def _check_engine_url(url: str) -> str:
    parts = split_http_url(url, example="http://127.0.0.1:9200")
    if parts.query or parts.fragment:
        raise ValueError("leave out what follows ? or # in the URL")
    if parts.username or parts.password:
        raise ValueError("put the user and the password into engine_username and engine_password")
    return url.rstrip("/")


def split_http_url(url: str, *, example: str) -> SplitResult:
    """Return the parts of a URL with http or https, a host and perhaps a port. Raises ValueError."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port above 65535, or a bracket that is not closed
        has_host = False
    if not has_host or parts.scheme not in ("http", "https"):
        raise ValueError(f"use a URL like {example}")
    return parts
