"""Raw bytes over 127 in a request line. The parser refuses them, and engines take them."""

from __future__ import annotations

import re
from enum import Enum
from urllib.parse import quote

_NOT_ASCII = re.compile(rb"[\x80-\xff]")


class _NextByte(Enum):
    """What the next byte from the client belongs to."""

    NEW_LINE = "a request line that has not begun"
    LINE = "a request line whose beginning was seen"
    OTHER = "headers, a body, or a line whose beginning came in the middle of other bytes"


class RequestLineEscaper:
    """Percent-encodes the bytes over 127 in request lines.

    Engines read each of these bytes as the Latin-1 character, so that character is what is encoded. A line whose
    beginning comes after other bytes, as with pipelined requests, is left as it is.
    """

    def __init__(self) -> None:
        self._next_byte = _NextByte.NEW_LINE

    def escape_line(self, data: bytes) -> bytes:
        """Return the bytes that came from the client, with the request line in them escaped."""
        if self._next_byte is _NextByte.OTHER:
            return data
        start = 0
        if self._next_byte is _NextByte.NEW_LINE:  # blank lines may come first
            start = len(data) - len(data.lstrip(b"\r\n"))
            if start == len(data):
                return data
        end = data.find(b"\n", start)
        self._next_byte = _NextByte.LINE if end < 0 else _NextByte.OTHER
        line = data if end < 0 else data[:end]
        return data if line.isascii() else _NOT_ASCII.sub(_encode_latin_1, line) + data[len(line) :]

    def begin_message(self) -> None:
        """Note that the parser has found the beginning of a request."""
        if self._next_byte is _NextByte.NEW_LINE:
            self._next_byte = _NextByte.OTHER

    def end_message(self) -> None:
        """Note that the parser has found the end of a request."""
        self._next_byte = _NextByte.NEW_LINE


def _encode_latin_1(match: re.Match[bytes]) -> bytes:
    return quote(match[0].decode("latin-1")).encode()
