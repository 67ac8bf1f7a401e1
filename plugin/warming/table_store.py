"""A table of expansions that is written while the model runs, for machines without a model."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from querylift.plugin.cache import Cache, cache_key
from querylift.plugin.errors import DataError, GeneratorError, QueryliftError, SettingsError
from querylift.plugin.expansion import PROMPT_VERSION, Expansion, clean_query, fold_query
from querylift.plugin.files import open_for_replacement
from querylift.plugin.generators.base import ExpansionRequest, Generator
from querylift.plugin.generators.table import read_table_expansion
from querylift.plugin.warming.cache_store import read_cached_expansion

_SPACE_BEFORE_MARK = re.compile(r" (?=[^\w\s])")


def make_table_key(request: ExpansionRequest) -> str:
    """Return the key by which a table finds a request."""
    return fold_query(request.text)


def make_table_row(query: str, expansion: Expansion) -> dict[str, Any] | None:
    """Return the row that a table reads back as exactly `expansion`, or None when no row does.

    A table cleans its texts like a large model's prose. That changes a few of the texts that a model wrote:
    "okay here" at the beginning counts as a lead-in, which a sign in front prevents. A long run of Thai is cut in two,
    and the second half may begin with a vowel sign and lose it; joining the two halves prevents that.
    """
    row = expansion.to_json()
    texts = (expansion.text, "_ " + _SPACE_BEFORE_MARK.sub("", expansion.text))
    rows = [row | {"text": text} for text in texts] if expansion.text else [row]
    return next(({"query": query, **row} for row in rows if _parse_table_row(row) == expansion), None)


def _parse_table_row(row: Mapping[str, Any]) -> Expansion | None:
    """Return the expansion that a table has in a row."""
    try:
        return read_table_expansion(row)
    except ValueError:
        return None


def get_part_path(out: Path) -> Path:
    """Return the file beside `out` that holds the rows of an unfinished table."""
    return out.with_name(out.name + ".part")


class TableStore:
    """An unfinished table. Rows are appended to `OUT.part`, and `write_table` makes the table from them.

    The first line of the part file names the generator. A row without words stands for a query to which there is nothing
    to add. Expansions in `cache` are copied. Raises SettingsError or DataError when the part file cannot be resumed.
    """

    def __init__(self, out: Path, generator: Generator, *, cache: Cache | None = None) -> None:
        self.out = out
        self.part_path = get_part_path(out)
        self._generator = generator
        self._cache = cache
        self._generator_row = _describe_generator(generator)
        self._row_offsets: dict[str, int] = {}
        self._end_offset = 0
        try:
            self._file = self.part_path.open("ab", buffering=0)
        except OSError as error:
            raise SettingsError(f"{self.part_path} cannot be written: {error.strerror}; name another --out") from None
        try:
            self._resume_part_file()
        except BaseException:
            self.close()
            raise

    async def has_answer(self, request: ExpansionRequest) -> bool:
        """Whether the part file answers the request. An answer that only the cache holds is copied first."""
        if make_table_key(request) in self._row_offsets:
            return True
        if self._cache is None:
            return False
        is_cached, expansion = await read_cached_expansion(self._cache, cache_key(self._generator, request))
        if is_cached:
            await self.save(request, expansion)
        return is_cached

    async def save(self, request: ExpansionRequest, expansion: Expansion | None) -> None:
        """Append a row to the part file. Raises GeneratorError when no row reads back as `expansion`."""
        if _describe_generator(self._generator) != self._generator_row:
            raise QueryliftError(
                "the model was replaced during the run, and a table holds one model's words; delete "
                f"{self.part_path} and start again"
            )
        query = clean_query(request.text)
        row = {"query": query} if expansion is None else make_table_row(query, expansion)
        if row is None:
            raise GeneratorError("a table would change the words of this expansion")
        self._row_offsets[make_table_key(request)] = self._append_row(row)

    def write_table(self, requests: Iterable[ExpansionRequest], *, is_complete: bool) -> int:
        """Write the table with the rows for `requests`, in their order, and return how many have words.

        When the table is complete, the part file is deleted.
        """
        with open_for_replacement(self.out, remedy="name another --out") as table, self.part_path.open("rb") as part:
            offsets = [self._row_offsets.get(make_table_key(request)) for request in requests]
            lines = [_read_line_with_words(part, offset) for offset in offsets if offset is not None]
            lines_with_words = [line for line in lines if line]
            table.writelines(lines_with_words)
        if is_complete:
            self.part_path.unlink()
        return len(lines_with_words)

    def close(self) -> None:
        """Close the part file."""
        self._file.close()

    def _append_row(self, row: Mapping[str, Any]) -> int:
        """Append a row and return the offset at which it begins."""
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            unwritten = memoryview(line)
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end_offset)  # a shorter row may still fit, and must not follow half a row
            raise QueryliftError(
                f"{self.part_path} cannot be extended: {error.strerror}; free some space and run the same command again"
            ) from None
        row_offset = self._end_offset
        self._end_offset += len(line)
        return row_offset

    def _resume_part_file(self) -> None:
        """Read the rows of an earlier run and cut off a last line that was not finished."""
        with self.part_path.open("rb") as part:
            for number, line in enumerate(part, 1):
                if not line.endswith(b"\n"):
                    break
                row = _parse_part_line(line, self.part_path, number)
                if number == 1 and row != self._generator_row:
                    raise SettingsError(
                        f"{self.part_path} was begun with another model or prompt; use that one again, delete the file to "
                        "start again, or name another --out"
                    )
                if number > 1:
                    key = make_table_key(ExpansionRequest(str(row.get("query"))))
                    self._row_offsets[key] = self._end_offset
                self._end_offset += len(line)
        self._file.truncate(self._end_offset)
        if not self._end_offset:
            self._append_row(self._generator_row)


def _describe_generator(generator: Generator) -> dict[str, str]:
    return {"generator": generator.identity, "prompt": PROMPT_VERSION}


def _read_line_with_words(part: BinaryIO, offset: int) -> bytes | None:
    """Return the line that begins at `offset`, or None when its row has no words."""
    part.seek(offset)
    line = part.readline()
    return line if len(json.loads(line)) > 1 else None


def _parse_part_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DataError(path, number, "export-table did not write this line; delete the file to start again")
    return row
