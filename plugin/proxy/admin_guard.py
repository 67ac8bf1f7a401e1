"""Decide whether the admin page answers a request: an operator's is answered, a web page's in a browser is not.

A web page can make its reader's browser send requests to an address that only the reader can reach. It can also point a
host name of its own at that address (DNS rebinding). Both leave marks in the headers, and a browser lets no page change
them: `Host`, `Origin` and `Sec-Fetch-Site`.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

JSON_MEDIA_TYPES = ("application/json", "application/x-ndjson")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status and the sentence for a request that is not answered."""

    status: int
    sentence: str


def check_token(headers: Mapping[bytes, bytes], token: str | None) -> Refusal | None:
    """Return a refusal unless `token` is None or the header `Authorization: Bearer TOKEN` carries it."""
    if token is None:
        return None
    expected = b"Bearer " + token.encode()
    if hmac.compare_digest(headers.get(b"authorization", b""), expected):
        return None
    return Refusal(401, "the admin page needs a token; send the header Authorization: Bearer ADMIN_TOKEN")


def check_browser_marks(headers: Mapping[bytes, bytes], known_hosts: frozenset[str]) -> Refusal | None:
    """Return a refusal when a web page of another site may have sent the request.

    `Host` must be an IP address, `localhost`, or one of `known_hosts`.
    """
    host_header = headers.get(b"host", b"").decode("latin-1")
    host = _read_host_name(f"//{host_header}")
    if not _is_ip_address(host) and host not in known_hosts | {"localhost"}:
        return Refusal(403, f"the header Host is {host_header!r}; add this name to admin_hosts, or use the IP address")
    origin = headers.get(b"origin", b"").decode("latin-1")
    if origin not in ("", f"http://{host_header}", f"https://{host_header}"):
        return Refusal(403, f"the request comes from a web page of {origin!r}; send it without the header Origin")
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return Refusal(403, "the request comes from a web page of another site; open the address itself")
    return None


def check_media_type(headers: Mapping[bytes, bytes]) -> Refusal | None:
    """Return a refusal unless the body is announced as JSON. A browser asks before a page may send that elsewhere."""
    media_type = headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip().lower()
    if media_type in JSON_MEDIA_TYPES:
        return None
    return Refusal(415, f"the header Content-Type is {media_type!r}; send the search as application/json")


def _read_host_name(url: str) -> str:
    """Return the host of `url` without port and brackets, in lower case, and "" when there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
