"""The fast expander's form `cluster`: the engine's own vector field finds the nearest documents.

The folder holds a search that the team wrote, with a placeholder for the query's vector. The hits' terms are weighed as
in `querylift.plugin.fast_expander.neighbours_weigher`, with two differences: the hit's score replaces the cosine, and document
counts are those of the shard.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querylift.plugin.engine.access import ANONYMOUS_ACCESS, EngineAccess
from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion, expansion_from_terms, normalize_query
from querylift.plugin.fast_expander.endpoint_encoder import EndpointQueryEncoder, open_query_endpoint
from querylift.plugin.fast_expander.expander_folder import (
    ExpanderRecord,
    check_files,
    compute_expander_identity,
    read_expander_record,
)
from querylift.plugin.fast_expander.nearest_documents import limit_nearest_documents, weigh_documents
from querylift.plugin.fast_expander.term_filter import compute_document_limit, is_usable_term
from querylift.plugin.fast_expander.text_encoder import TextEncoder, open_text_encoder
from querylift.plugin.generation_meter import GenerationMeter
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.bounded_executor import BoundedExecutor
from querylift.plugin.generators.engine_reader import EngineReader
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector

SEARCH_FILE = "search.json"
VECTOR_PLACEHOLDER, QUERY_PLACEHOLDER = "{{vector}}", "{{query}}"


@dataclass(frozen=True, slots=True)
class _ClusterModel:
    """What a folder of the form `cluster` holds, loaded."""

    record: ExpanderRecord
    encoder: TextEncoder
    search_template: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _OpenCluster:
    """A model that can answer requests. `endpoint` is None when the folder holds the encoder."""

    model: _ClusterModel
    executor: BoundedExecutor
    endpoint: EndpointQueryEncoder | None

    async def encode_query(self, query: str) -> Vector:
        """Return the vector of a query: shape (width,). Raises GeneratorError."""
        if self.endpoint is not None:
            return await self.endpoint.encode_query(query)
        return await self.executor.run(self.model.encoder.encode_query, query)


class ClusterExpanderGenerator:
    """Expands queries with the vector search in `folder`.

    The engine at the URL `engine`, or at the URLs of its nodes, runs that search.
    """

    reads_index = True

    def __init__(
        self,
        folder: Path,
        engine: str | Iterable[str],
        *,
        threads: int = 1,
        max_pending: int = 64,
        access: EngineAccess = ANONYMOUS_ACCESS,
        endpoint: EncoderEndpointSettings | None = None,
    ) -> None:
        self._folder = folder
        self._endpoint_settings = endpoint
        self._engine = EngineReader(engine, access)
        self.uses_account = bool(access.headers)
        self._threads = threads
        self._max_pending = max_pending
        self._opened: _OpenCluster | None = None
        self.meter = GenerationMeter()
        self.identity = f"expander:{folder.name}"

    async def start(self) -> None:
        """Load the folder and open the connections. Raises SettingsError, MissingExtra."""
        model = await asyncio.to_thread(_open_cluster_model, self._folder)
        endpoint = await open_query_endpoint(model.record, self._endpoint_settings)
        executor = BoundedExecutor(
            self._threads,
            max_pending=self._max_pending,
            report_waiting=lambda change: self.meter.add_waiting(change),
        )
        self._opened = _OpenCluster(model, executor, endpoint)
        self.identity = f"{compute_expander_identity(self._folder)}:{self._engine.engine_digest}"
        await self._engine.start()

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the terms for `request`, or None when there are none. Raises GeneratorError."""
        if self._opened is None:
            raise GeneratorError("the expander is not open; call start() first")
        opened, model = self._opened, self._opened.model
        if mismatch := model.record.source.explain_mismatch(request.index):
            raise GeneratorError(f"the expander {self._folder} {mismatch}")
        query = normalize_query(request.text)
        if not query:
            return None
        with opened.executor.count_request():
            vector = await opened.encode_query(query)
            if not vector.any():
                return None
            body = fill_template(model.search_template, query, vector.tolist())
            return await self._search_neighbours(model.record, body, request.index)

    async def close(self) -> None:
        """Close the connections and end the threads."""
        opened, self._opened = self._opened, None
        await self._engine.close()
        if opened is not None:
            if opened.endpoint is not None:
                await opened.endpoint.close()
            await opened.executor.close()

    async def _search_neighbours(self, record: ExpanderRecord, body: Mapping[str, Any], index: str) -> Expansion | None:
        """Run the vector search, and return its hits and the heaviest terms of the first ones."""
        field, shape = record.source.field, record.shape
        nearest_count = limit_nearest_documents(record.source.in_index)
        near_hits = await self._engine.search_documents(index, {**body, "size": max(shape.documents, nearest_count)})
        if not near_hits:
            return None
        documents = weigh_documents((hit["_id"] for hit in near_hits[:nearest_count]), record.score_scale)
        hits = near_hits[: shape.documents]
        vectors = await self._engine.fetch_term_vectors(hits, field)
        scores = {(hit["_index"], hit["_id"]): float(hit["_score"]) for hit in hits}
        weights = weigh_terms(vectors, scores, field=field, temperature=shape.temperature)
        heaviest = sorted(weights.items(), key=lambda entry: (-entry[1], entry[0]))[: shape.terms]
        expansion = expansion_from_terms(((term, weight**shape.power) for term, weight in heaviest), field=field)
        return replace(expansion, documents=documents) if expansion else Expansion(documents=documents)


def weigh_terms(
    vectors: Iterable[Mapping[str, Any]], scores: Mapping[tuple[str, str], float], *, field: str, temperature: float
) -> dict[str, float]:
    """Return the weight of every usable term that is above zero.

    A weight is the sum over documents of exp((score - best score) / temperature) x sqrt(tf / length) x idf. `vectors` are
    the `docs` of `_mtermvectors` with statistics. `scores` are the hits' scores by index and document id.
    """
    best_score = max(scores.values(), default=0.0)
    weights: defaultdict[str, float] = defaultdict(float)
    for document in vectors:
        field_vector = document.get("term_vectors", {}).get(field, {})
        terms = field_vector.get("terms", {})
        length = sum(statistics.get("term_freq", 0) for statistics in terms.values()) or 1
        index_size = field_vector.get("field_statistics", {}).get("doc_count", 0)
        score = scores.get((document.get("_index", ""), document.get("_id", "")), -math.inf)
        document_weight = math.exp((score - best_score) / temperature)
        for term, statistics in terms.items():
            document_frequency = statistics.get("doc_freq", 1)
            if is_usable_term(term) and document_frequency <= compute_document_limit(index_size):
                idf = math.log(1 + (index_size - document_frequency + 0.5) / (document_frequency + 0.5))
                weights[term] += document_weight * math.sqrt(statistics.get("term_freq", 0) / length) * idf
    return {term: weight for term, weight in weights.items() if weight > 0}


def fill_template(template: Any, query: str, vector: list[float]) -> Any:
    """Return the search with the query and its vector in place of their placeholders."""
    if isinstance(template, str):
        return vector if template == VECTOR_PLACEHOLDER else template.replace(QUERY_PLACEHOLDER, query)
    if isinstance(template, Mapping):
        return {key: fill_template(value, query, vector) for key, value in template.items()}
    return [fill_template(value, query, vector) for value in template] if isinstance(template, list) else template


def read_search_template(path: Path) -> dict[str, Any]:
    """Read a search that holds the vector's placeholder. Raises SettingsError."""
    try:
        search = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read as JSON ({error}); write a search with {VECTOR_PLACEHOLDER} in it"
        ) from None
    if not isinstance(search, dict) or f'"{VECTOR_PLACEHOLDER}"' not in json.dumps(search):
        raise SettingsError(
            f'{path} is not a search with a vector; put "{VECTOR_PLACEHOLDER}" where the vector belongs'
        )
    return search


def _open_cluster_model(folder: Path) -> _ClusterModel:
    record = read_expander_record(folder)
    check_files(folder, record)
    return _ClusterModel(record, open_text_encoder(folder, record), read_search_template(folder / SEARCH_FILE))
