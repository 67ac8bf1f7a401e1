"""The fast expander's form `cluster`: the nearest documents come from the cluster's own vector field.

The query's vector goes into a search that the team wrote; the hits' terms are weighed as in `querylift.plugin.fast_expander.neighbours`, by score
in place of similarity and by the shard's own counts of documents.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp

from querylift.plugin.errors import Busy, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion, clean_query, from_terms
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.fast_expander.folder import About, check_files, identity_of, read_about
from querylift.plugin.fast_expander.term_filter import is_usable, most_documents
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.engine_reader import EngineReader

SEARCH = "search.json"
VECTOR, QUERY = "{{vector}}", "{{query}}"


class ClusterExpander:
    """Expands searches by the vector search in `folder`, which the engine at the URL `engine` answers."""

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
        self._engine = EngineReader(engine, auth=auth, ssl=ssl)
        self._where = hashlib.sha256(engine.encode()).hexdigest()[:8]
        self._threads = threads
        self._max_pending = max_pending
        self._pending = 0
        self._opened: tuple[About, Encoder, Any, ThreadPoolExecutor] | None = None
        self.identity = f"expander:{folder.name}"

    async def start(self) -> None:
        """Open the folder. Raises SettingsError, MissingExtra."""
        about, encoder, search = await asyncio.to_thread(_open, self._folder)
        self._opened = about, encoder, search, ThreadPoolExecutor(self._threads, thread_name_prefix="expander")
        self.identity = f"{identity_of(self._folder)}:{self._where}"
        await self._engine.start()

    async def expand(self, ask: Ask) -> Expansion | None:
        """The terms for `ask`, None where there are none. Raises GeneratorError."""
        if self._opened is None:
            raise GeneratorError("the expander is not open; call start() first")
        about, encoder, search, pool = self._opened
        if refused := about.source.refusal(ask.index):
            raise GeneratorError(f"the expander {self._folder} {refused}")
        text = clean_query(ask.text)
        if not text:
            return None
        if self._pending >= self._max_pending:
            raise Busy(f"{self._pending} requests already wait for the expander")
        self._pending += 1
        try:
            vector = await asyncio.get_running_loop().run_in_executor(pool, encoder.query, text)
            if not vector.any():
                return None
            return await self._terms(about, filled(search, text, vector.tolist()), ask.index)
        finally:
            self._pending -= 1

    async def close(self) -> None:
        """Close the connections and end the threads."""
        opened, self._opened = self._opened, None
        await self._engine.close()
        if opened is not None:
            await asyncio.to_thread(opened[3].shutdown, cancel_futures=True)

    async def _terms(self, about: About, body: Mapping[str, Any], index: str) -> Expansion | None:
        hits = await self._engine.first_documents(index, {**body, "size": about.shape.documents})
        if not hits:
            return None
        field = about.source.field
        vectors = await self._engine.term_vectors(hits, field)
        scores = {(hit["_index"], hit["_id"]): float(hit["_score"]) for hit in hits}
        weights = weigh(vectors, scores, field=field, temperature=about.shape.temperature)
        heaviest = sorted(weights.items(), key=lambda tw: (-tw[1], tw[0]))[: about.shape.terms]
        return from_terms(((term, weight**about.shape.power) for term, weight in heaviest), field=field)


def weigh(
    vectors: Iterable[Mapping[str, Any]], scores: Mapping[tuple[str, str], float], *, field: str, temperature: float
) -> dict[str, float]:
    """The sum over documents of exp((score - best score) / temperature) x sqrt(tf / length) x idf, by usable term.

    `vectors` are the `docs` of `_mtermvectors` with statistics, `scores` by index and id.
    """
    best = max(scores.values(), default=0.0)
    weights: defaultdict[str, float] = defaultdict(float)
    for doc in vectors:
        part = doc.get("term_vectors", {}).get(field, {})
        terms = part.get("terms", {})
        length = sum(facts.get("term_freq", 0) for facts in terms.values()) or 1
        documents = part.get("field_statistics", {}).get("doc_count", 0)
        share = math.exp((scores.get((doc.get("_index", ""), doc.get("_id", "")), -math.inf) - best) / temperature)
        for term, facts in terms.items():
            found_in = facts.get("doc_freq", 1)
            if is_usable(term) and found_in <= most_documents(documents):
                idf = math.log(1 + (documents - found_in + 0.5) / (found_in + 0.5))
                weights[term] += share * math.sqrt(facts.get("term_freq", 0) / length) * idf
    return {term: weight for term, weight in weights.items() if weight > 0}


def filled(template: Any, query: str, vector: list[float]) -> Any:
    """The search with the query's vector, and its words, where their placeholders stand."""
    if isinstance(template, str):
        return vector if template == VECTOR else template.replace(QUERY, query)
    if isinstance(template, Mapping):
        return {key: filled(inner, query, vector) for key, inner in template.items()}
    return [filled(inner, query, vector) for inner in template] if isinstance(template, list) else template


def read_search(path: Path) -> dict[str, Any]:
    """A search with a placeholder for the vector. Raises SettingsError."""
    try:
        search = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error}); write a search with {VECTOR} in it") from None
    if not isinstance(search, dict) or f'"{VECTOR}"' not in json.dumps(search):
        raise SettingsError(f'{path} is no search with "{VECTOR}" where the vector belongs')
    return search


def _open(folder: Path) -> tuple[About, Encoder, dict[str, Any]]:
    about = read_about(folder)
    check_files(folder, about)
    return about, Encoder(folder, about.reading), read_search(folder / SEARCH)
