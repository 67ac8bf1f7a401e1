"""Where expansions made ahead of traffic are kept: the proxy's cache, or a table for machines without a model."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from querylift.plugin.cache import Cache, FileCache, RedisCache, decode, encode, key_of
from querylift.plugin.errors import DataError, GeneratorError, QueryliftError, SettingsError
from querylift.plugin.expansion import PROMPT_VERSION, Expansion, clean_prose, clean_query, from_words
from querylift.plugin.generators.base import Ask, Generator
from querylift.plugin.settings import CacheSettings
from querylift.plugin.warming.precompute import Sleep

_WRITE_AGAIN_S = (0.0, 0.1, 1.0, 5.0)
_REDIS_TIMEOUT_S = 5.0
_CUT_OFF = re.compile(r" (?=[^\w\s])")


def check_outlives(cache: CacheSettings) -> None:
    """Raise SettingsError where what is kept ends with the process, or where it would be is not said."""
    if cache.url is None and cache.file is None:
        raise SettingsError(
            "the cache is the memory of one process, and what is made would end with this one; name a file that serve "
            "reads too as cache.file, or a Valkey or Redis as cache.url"
        )
    if cache.url is not None and cache.file is not None:
        raise SettingsError("cache.url and cache.file are both set; use one of the two")


@contextlib.asynccontextmanager
async def cache_store(cache: CacheSettings, generator: Generator) -> AsyncIterator[CacheStore]:
    """The proxy's cache as a store, seen to work; closed on exit. Raises SettingsError."""
    async with opened(cache) as writes, opened(cache, size=1) as reads:
        await writes.set("warming", "1", ttl_s=10)
        if await reads.get("warming") is None:
            named = "cache.url" if cache.url is not None else f"cache.file ({cache.file})"
            raise SettingsError(f"{named} does not keep what is written to it; mend it, or name another")
        yield CacheStore(generator, writes=writes, reads=reads, ttl_s=cache.ttl_s)


@contextlib.asynccontextmanager
async def opened(settings: CacheSettings, *, size: int | None = None) -> AsyncIterator[Cache]:
    """The proxy's cache, with its memory in front of a file or another `size` of it; closed on exit."""
    check_outlives(settings)
    cache: Cache
    if settings.file is not None:
        cache = FileCache(settings.file, size or settings.size, time.monotonic)
    else:
        url = settings.url.get_secret_value() if settings.url is not None else ""
        # In the proxy a slow cache is a miss; here it is worth the wait.
        cache = RedisCache(url, time.monotonic, timeout_s=_REDIS_TIMEOUT_S, rest_s=0)
    try:
        yield cache
    finally:
        await cache.close()


class CacheStore:
    """The proxy's cache, by its keys. What is written must be found by `reads`: a cache says nothing of a failure.

    `reads` is a second one, since the memory in front of a cache file knows nothing of what the file took.
    """

    def __init__(
        self, generator: Generator, *, writes: Cache, reads: Cache, ttl_s: float, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._generator = generator
        self._writes = writes
        self._reads = reads
        self._ttl_s = ttl_s
        self._sleep = sleep

    async def has(self, ask: Ask) -> bool:
        """Whether the cache answers `ask`, be it with nothing to add."""
        return (await kept(self._reads, key_of(self._generator, ask)))[0]

    async def keep(self, ask: Ask, expansion: Expansion | None) -> None:
        """Write to the cache for its ttl_s. Raises QueryliftError where that does not succeed for a while."""
        key, value = key_of(self._generator, ask), encode(expansion)
        for pause_s in _WRITE_AGAIN_S:
            await self._sleep(pause_s)
            await self._writes.set(key, value, ttl_s=self._ttl_s)
            if await self._reads.get(key) == value:
                return
        raise QueryliftError(
            "the cache takes nothing more: it is full or gone; mend that and go on with the same command"
        )


async def kept(cache: Cache, key: str) -> tuple[bool, Expansion | None]:
    """Whether the cache has a readable entry at `key`, and what it holds."""
    value = await cache.get(key)
    if value is None:
        return False, None
    try:
        return True, decode(value)
    except ValueError:
        return False, None


def table_key(ask: Ask) -> str:
    """What a table looks `ask` up by: letter case and white space aside."""
    return clean_query(ask.text).casefold()


def table_row(query: str, expansion: Expansion) -> dict[str, Any] | None:
    """The row that a table reads back as `expansion`, word for word; None where there is none.

    A table cleans its texts as a large model's prose. That alters one in a few thousand of a parsed text: "okay here" at
    its beginning is taken for a lead-in, which a sign in front prevents; and where a long run of Thai was cut in two,
    the second half may begin with a vowel sign and lose it, unless it is put back in its place.
    """
    texts = (expansion.text, "_ " + _CUT_OFF.sub("", expansion.text))
    rows = [expansion.to_json()] if expansion.terms else [{"text": text} for text in texts]
    return next(({"query": query, **row} for row in rows if _as_read(row) == expansion), None)


def _as_read(row: Mapping[str, Any]) -> Expansion | None:
    """What `querylift.plugin.generators.table` makes of a row."""
    if "text" in row:
        return from_words(clean_prose(row["text"]))
    try:
        return Expansion.from_json(row)
    except ValueError:
        return None


class TableStore:
    """A table under way: `OUT.part`, which is only ever appended to; `finish` makes the table of it.

    The first line of the part says whose words these are. A row without words stands for a query to which there is
    nothing to add. `cache`, if any, is read. Raises SettingsError, DataError where the part cannot be gone on with.
    """

    def __init__(self, out: Path, generator: Generator, *, cache: Cache | None = None) -> None:
        self.out = out
        self.part = part_of(out)
        self._generator = generator
        self._cache = cache
        self._maker = _maker(generator)
        self._at: dict[str, int] = {}
        try:
            self._file = self.part.open("ab", buffering=0)
        except OSError as error:
            raise SettingsError(f"{self.part} cannot be written: {error.strerror}; name another --out") from None
        try:
            self._end = self._go_on()
        except BaseException:
            self.close()
            raise

    async def has(self, ask: Ask) -> bool:
        """Whether the part holds what is made for `ask`; it takes it over where only the cache does."""
        if table_key(ask) in self._at:
            return True
        if self._cache is None:
            return False
        found, expansion = await kept(self._cache, key_of(self._generator, ask))
        if found:
            await self.keep(ask, expansion)
        return found

    async def keep(self, ask: Ask, expansion: Expansion | None) -> None:
        """Append to the part. Raises GeneratorError where no row reads back as `expansion`."""
        if _maker(self._generator) != self._maker:
            raise QueryliftError("the model was replaced under way, and a table holds one model's words; begin anew")
        query = clean_query(ask.text)
        row = {"query": query} if expansion is None else table_row(query, expansion)
        if row is None:
            raise GeneratorError("a table would not give the words back as they are")
        self._at[table_key(ask)] = self._append(row)

    def finish(self, asks: Iterable[Ask], *, whole: bool) -> int:
        """Write the table with the rows for `asks`, in their order; how many have words. A `whole` one needs no part."""
        new = self.out.with_name(self.out.name + ".new")
        try:
            with (
                self.part.open("rb") as part,
                gzip.open(new, "wb") if self.out.suffix == ".gz" else new.open("wb") as table,
            ):
                rows = [row for row in (_row_at(part, self._at.get(table_key(ask))) for ask in asks) if row]
                table.writelines(rows)
            os.replace(new, self.out)
            if whole:
                self.part.unlink()
        except OSError as error:
            raise SettingsError(f"{self.out} cannot be written: {error.strerror}; name another --out") from None
        return len(rows)

    def close(self) -> None:
        """Close the part."""
        self._file.close()

    def _append(self, row: Mapping[str, Any]) -> int:
        """Where in the part the row begins."""
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)  # another row may still fit, and must not stand behind half of this one
            raise QueryliftError(
                f"{self.part} takes nothing more: {error.strerror}; mend that and go on with the same command"
            ) from None
        at, self._end = self._end, self._end + len(line)
        return at

    def _go_on(self) -> int:
        """Take in what an earlier run wrote, less a last line that it did not come to the end of; where it ends."""
        end = 0
        with self.part.open("rb") as part:
            for number, line in enumerate(part, 1):
                if not line.endswith(b"\n"):
                    break
                row = _object(line, self.part, number)
                if number == 1 and row != self._maker:
                    raise SettingsError(
                        f"{self.part} was begun with another model or prompt; go on with that one, delete the file to "
                        "begin anew, or name another --out"
                    )
                if number > 1:
                    self._at[table_key(Ask(str(row.get("query"))))] = end
                end += len(line)
        self._file.truncate(end)
        self._end = end
        if not end:
            self._append(self._maker)
        return self._end


def part_of(out: Path) -> Path:
    """The file beside `out` that holds what was made of it so far."""
    return out.with_name(out.name + ".part")


def _maker(generator: Generator) -> dict[str, str]:
    return {"generator": generator.identity, "prompt": PROMPT_VERSION}


def _row_at(part: BinaryIO, at: int | None) -> bytes | None:
    """The row that begins there; None where there is none, or none with words."""
    if at is None:
        return None
    part.seek(at)
    line = part.readline()
    return line if len(json.loads(line)) > 1 else None


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DataError(path, number, "this line is none that export-table wrote; delete the file to begin anew")
    return row
