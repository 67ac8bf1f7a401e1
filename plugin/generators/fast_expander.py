"""The generator `expander`: terms of the searched index, chosen by a small encoder in one pass.

`querylift expander build` makes the folder that this generator loads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.plugin.engine.access import ANONYMOUS_ACCESS, EngineAccess
from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion, expansion_from_groups, normalize_query
from querylift.plugin.fast_expander.endpoint_encoder import EndpointQueryEncoder, open_query_endpoint
from querylift.plugin.fast_expander.expander_folder import (
    ExpanderRecord,
    SourceIndex,
    check_files,
    compute_expander_identity,
    read_expander_record,
)
from querylift.plugin.fast_expander.index_check import IndexChecker
from querylift.plugin.fast_expander.matrix_weigher import MatrixWeigher
from querylift.plugin.fast_expander.nearest_documents import weigh_documents
from querylift.plugin.fast_expander.neighbours_weigher import NeighboursWeigher
from querylift.plugin.fast_expander.text_encoder import TextEncoder, open_text_encoder
from querylift.plugin.fast_expander.vocabulary import Vocabulary
from querylift.plugin.fast_expander.weights import Weigher
from querylift.plugin.generation_meter import GenerationMeter
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.bounded_executor import BoundedExecutor
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.mapped_files import Array


@dataclass(frozen=True, slots=True)
class ExpanderModel:
    """The loaded contents of an expander's folder."""

    encoder: TextEncoder
    weigher: Weigher
    vocabulary: Vocabulary
    group_ends: Mapping[tuple[str, ...], int]
    """The fields of each group, and where the numbers of its terms end."""
    score_scale: float
    adds_documents: bool
    """False for a sample of the index: ids of a part of the documents would push down the others, which may be nearer."""

    def expand(self, text: str) -> Expansion | None:
        """Return terms and documents for `text`, or None when there are none. Blocks for one or two milliseconds.

        There are none when the encoder does not know the words of `text`.
        """
        return self.expand_vector(self.encoder.encode_query(text))

    def expand_vector(self, vector: Vector) -> Expansion | None:
        """Return terms and documents for the vector of a query, or None when there are none, as for a vector of zeros."""
        if not vector.any():
            return None
        weights = self.weigher.weigh(vector)
        first_number = 0
        groups = []
        for fields, end in self.group_ends.items():
            is_of_group = (weights.terms >= first_number) & (weights.terms < end)
            groups.append((fields, *self._read_terms(weights.terms[is_of_group], weights.term_weights[is_of_group])))
            first_number = end
        expansion = expansion_from_groups(groups)
        documents = weigh_documents(weights.document_ids, self.score_scale) if self.adds_documents else ()
        if expansion is None:
            return Expansion(documents=documents) if documents else None
        return replace(expansion, documents=documents)

    def _read_terms(self, numbers: Array, weights: Array) -> tuple[list[tuple[str, float]], dict[str, str]]:
        """Return (term, weight) of the terms of one group, and their surface words.

        With several groups, the heaviest term of each weighs 1. Their own weights depend on the lengths of the fields.
        """
        scale = float(weights.max(initial=0)) if len(self.group_ends) > 1 else 1.0
        words = [self.vocabulary[int(number)] for number in numbers]
        terms = [(word.term, float(weight) / scale) for word, weight in zip(words, weights, strict=True)]
        return terms, dict(words)


_preloaded_models: dict[Path, tuple[ExpanderRecord, ExpanderModel]] = {}


def preload_expander_model(folder: Path) -> None:
    """Load an expander for all processes that are forked from this one, which then share it. Raises SettingsError, MissingExtra.

    `open_expander_model` returns it until the folder is built again. An encoder on one thread starts no thread in this
    process. What asks an engine or an endpoint is loaded by each process itself.
    """
    record = read_expander_record(folder)
    if record.form != "cluster" and record.endpoint is None:
        _preloaded_models[folder.absolute()] = open_expander_model(folder)


def open_expander_model(
    folder: Path, endpoint: EncoderEndpointSettings | None = None
) -> tuple[ExpanderRecord, ExpanderModel]:
    """Check and load an expander's folder; return its record and its model. Raises SettingsError, MissingExtra.

    `endpoint` are the settings of an encoder behind an endpoint. It is not asked yet.
    """
    record = read_expander_record(folder)
    if record.form == "cluster":
        raise SettingsError(f"{folder} is of the form 'cluster', which asks an engine; build one of another form")
    preloaded = _preloaded_models.get(folder.absolute())
    if preloaded is not None and preloaded[0] == record:
        return preloaded
    check_files(folder, record)
    encoder = open_text_encoder(folder, record, endpoint)
    groups = record.source.list_groups(record.terms)
    group_ends = accumulate(group.terms for group in groups)
    end_by_fields = dict(zip((group.names for group in groups), group_ends, strict=True))
    weigher: Weigher
    if record.form == "neighbours":
        weigher = NeighboursWeigher(folder, record.shape, width=record.width, group_ends=[*end_by_fields.values()])
    else:
        weigher = MatrixWeigher(folder, record.shape)
    adds_documents = record.source.sample == 1
    model = ExpanderModel(encoder, weigher, Vocabulary(folder), end_by_fields, record.score_scale, adds_documents)
    return record, model


@dataclass(frozen=True, slots=True)
class _OpenExpander:
    """An expander that can answer requests. `endpoint` is None when the folder holds the encoder."""

    source: SourceIndex
    model: ExpanderModel
    executor: BoundedExecutor
    endpoint: EndpointQueryEncoder | None


class FastExpanderGenerator:
    """Expands searches on the index that the expander in `folder` was built from, on `threads` threads.

    When it starts, it compares the index at `engine` with the folder. A changed document count gives a warning, a changed
    analyzer a SettingsError. An engine that does not answer gives a warning too.
    """

    reads_index = True
    uses_account = False

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
        self._index_checker = IndexChecker(engine, access)
        self._threads = threads
        self._max_pending = max_pending
        self._opened: _OpenExpander | None = None
        self.meter = GenerationMeter()
        self.identity = f"expander:{folder.name}"

    async def start(self) -> None:
        """Load the folder and check the index. Raises SettingsError, MissingExtra."""
        record, model = await asyncio.to_thread(open_expander_model, self._folder)
        self.identity = compute_expander_identity(self._folder)
        await self._index_checker.check_index(record.source, self._folder)
        endpoint = await open_query_endpoint(record, self._endpoint_settings)
        executor = BoundedExecutor(
            self._threads,
            max_pending=self._max_pending,
            report_waiting=lambda change: self.meter.add_waiting(change),
        )
        self._opened = _OpenExpander(record.source, model, executor, endpoint)

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the terms for `request`, or None when there are none. Raises GeneratorError."""
        if self._opened is None:
            raise GeneratorError("the expander is not open; call start() first")
        opened = self._opened
        if mismatch := opened.source.explain_mismatch(request.index):
            raise GeneratorError(f"the expander {self._folder} {mismatch}")
        query = normalize_query(request.text)
        if not query:
            return None
        with opened.executor.count_request():
            if opened.endpoint is None:
                return await opened.executor.run(opened.model.expand, query)
            vector = await opened.endpoint.encode_query(query)
            return await opened.executor.run(opened.model.expand_vector, vector)

    async def close(self) -> None:
        """Close the connections and end the threads."""
        opened, self._opened = self._opened, None
        if opened is not None:
            if opened.endpoint is not None:
                await opened.endpoint.close()
            await opened.executor.close()
