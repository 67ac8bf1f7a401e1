"""The fast expander: terms of the team's own index, by one pass of a small encoder. `querylift expander build` makes one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from querylift.plugin.errors import Busy, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion, clean_query, from_terms
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.fast_expander.folder import About, Source, check_files, identity_of, read_about
from querylift.plugin.fast_expander.index_check import Connection
from querylift.plugin.fast_expander.neighbours import Neighbours
from querylift.plugin.fast_expander.term_matrix import Matrix
from querylift.plugin.fast_expander.vocabulary import Vocabulary
from querylift.plugin.generators.base import Ask

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.vocabulary import Array


class Weigher(Protocol):
    """One form of expander: from a query's vector to numbers of terms and their weights, heaviest first."""

    def weigh(self, vector: Vector) -> tuple[Array, Array]: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What an expander's folder holds, opened."""

    encoder: Encoder
    weigher: Weigher
    vocabulary: Vocabulary
    field: str

    def expand(self, text: str) -> Expansion | None:
        """The heaviest terms for `text`; None where it has none or cannot be read. Blocks for a millisecond or two."""
        vector = self.encoder.query(text)
        if not vector.any():
            return None
        numbers, weights = self.weigher.weigh(vector)
        words = [self.vocabulary[int(number)] for number in numbers]
        weighed = ((word.term, float(weight)) for word, weight in zip(words, weights, strict=True))
        return from_terms(weighed, field=self.field, surfaces=dict(words))


def open_parts(folder: Path) -> tuple[About, Parts]:
    """What `folder` says of itself, and its parts, checked. Raises SettingsError, MissingExtra."""
    about = read_about(folder)
    if about.form == "cluster":
        raise SettingsError(f"{folder} is of the form 'cluster', which asks an engine; build one of another form")
    check_files(folder, about)
    encoder = Encoder(folder, about.reading)
    weigher: Weigher
    if about.form == "neighbours":
        weigher = Neighbours(folder, about.shape, width=about.width)
    else:
        weigher = Matrix(folder, about.shape)
    return about, Parts(encoder, weigher, Vocabulary(folder), about.source.field)


class ExpanderGenerator:
    """Expands searches on the index that the expander in `folder` was built from, by `threads` at a time.

    At its start it asks `engine` whether the index is still the same: one that has changed is told as a warning, words that the
    analyzer makes other terms of are a SettingsError, and an engine that does not answer is none.
    """

    reads_index = True

    def __init__(
        self,
        folder: Path,
        engine: str,
        *,
        threads: int = 1,
        max_pending: int = 64,
        auth: aiohttp.BasicAuth | None = None,
        ssl: Any = True,
    ) -> None:
        self._folder = folder
        self._engine = Connection(engine, auth, ssl)
        self._threads = threads
        self._max_pending = max_pending
        self._pending = 0
        self._pool: ThreadPoolExecutor | None = None
        self._parts: Parts | None = None
        self._source: Source | None = None
        self.identity = f"expander:{folder.name}"

    async def start(self) -> None:
        """Open the folder and look at the index. Raises SettingsError, MissingExtra."""
        about, self._parts = await asyncio.to_thread(open_parts, self._folder)
        self._source = about.source
        self.identity = identity_of(self._folder)
        await self._engine.compare(about.source, self._folder)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="expander")

    async def expand(self, ask: Ask) -> Expansion | None:
        """The terms for `ask`, None where there are none. Raises GeneratorError."""
        if self._pool is None or self._parts is None or self._source is None:
            raise GeneratorError("the expander is not open; call start() first")
        if refused := self._source.refusal(ask.index):
            raise GeneratorError(f"the expander {self._folder} {refused}")
        text = clean_query(ask.text)
        if not text:
            return None
        if self._pending >= self._max_pending:
            raise Busy(f"{self._pending} requests already wait for the expander")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._parts.expand, text)
        finally:
            self._pending -= 1

    async def close(self) -> None:
        """End the threads."""
        pool, self._pool, self._parts = self._pool, None, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
