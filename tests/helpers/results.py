"""Rows, seeds, a picture and the beginning of TABLE.toml, for tests of `querylift train report`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from querylift.trainer.results.records import SeedResult
from querylift.trainer.results.table_settings import RowSettings

PLAIN = {"q1": 0.2, "q2": 0.4, "q3": 0.6, "q4": 0.0}
TAUGHT = {"q1": 0.6, "q2": 0.8, "q3": 0.7, "q4": 0.1}
COLLECTION = '[[collection]]\nname = "tiny"\ncorpus = "tiny"\nindex = "results-test"\n'
ROWS = '[[row]]\nname = "no expansion"\n'


def create_rows(*names: str, **against: str) -> list[RowSettings]:
    """Return rows without a generator. `against` names the row that a row is compared with."""
    return [RowSettings(name=name, against=against.get(name)) for name in names]


def create_seed_results(*seeds: Mapping[str, float]) -> tuple[SeedResult, ...]:
    """Return a result for each seed, from nDCG@10 by query."""
    return tuple(SeedResult(per_query=seed, recall_at_100=0.5) for seed in seeds)


def create_png() -> bytes:
    """Return a picture of one white pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0\xff\xff\xff")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
