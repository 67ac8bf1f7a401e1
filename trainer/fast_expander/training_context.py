"""What every stage needs: the untrained expander with its documents, the engine, and the options of the training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import DocumentParts
from querylift.index_tools.fast_expander.neighbours_form import TermStatistics
from querylift.index_tools.fast_expander.terms_form import WeightedDocuments, load_weighted_documents
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import ExpanderRecord, check_files, read_expander_record
from querylift.plugin.fast_expander.text_encoder import TextEncoder, open_text_encoder
from querylift.trainer.candidates import Candidate
from querylift.trainer.fast_expander.term_targets import TermTargets
from querylift.trainer.rewards.labels import Labels

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array
    from querylift.plugin.settings import Settings
    from querylift.trainer.training_config import ExpanderTrainingOptions


@dataclass(frozen=True, slots=True)
class JudgedTrainingQueries:
    """Judged queries by id, their labels, and a teacher's candidates for some of them."""

    queries: Mapping[str, str]
    labels: Labels
    candidates: Sequence[Candidate] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingContext:
    """The untrained expander with its documents, the engine, and the options of the training.

    `term_numbers` holds the number of each term, and `document_keys` the key of each document by its number. `sources` are
    the fields that the texts of documents stand in. `tell` prints a line.
    """

    record: ExpanderRecord
    encoder: TextEncoder
    sources: Sequence[str]
    document_keys: Sequence[str]
    documents: WeightedDocuments
    term_numbers: Mapping[str, int]
    idf: Array
    targets: TermTargets
    engine: Engine
    settings: Settings
    options: ExpanderTrainingOptions
    seed: int
    threads: int
    tell: Callable[[str], None]

    def encode_queries(self, texts: Iterable[str]) -> Array:
        """Return the vectors of queries: shape (texts, width)."""
        return self.encoder.encode_queries(list(texts), threads=self.threads)


def load_training_context(
    folder: Path,
    engine: Engine,
    settings: Settings,
    options: ExpanderTrainingOptions,
    *,
    seed: int,
    tell: Callable[[str], None],
    threads: int | None = None,
) -> TrainingContext:
    """Load the expander in `folder`, which `querylift expander build --form terms` made.

    Raises SettingsError when it is of another form, damaged, or without the parts that it was built from.
    """
    record = read_expander_record(folder)
    if record.form != "terms":
        raise SettingsError(
            f"{folder} is of the form {record.form!r}, which is not trained; build one with --form terms"
        )
    check_files(folder, record)
    encoder = open_text_encoder(folder, record, settings.encoder)
    parts = DocumentParts.open_existing(folder)
    current_rows = parts.read_current_rows()
    statistics = TermStatistics(parts, current_rows)
    documents = load_weighted_documents(parts, current_rows, statistics)
    if len(statistics.numbers) != record.terms:
        raise SettingsError(f"the parts of {folder} are not those that it was built from; build it again")
    return TrainingContext(
        record=record,
        encoder=encoder,
        sources=parts.read_plan()["text"],
        document_keys=[part.keys[row] for part, rows in zip(parts, current_rows, strict=True) for row in rows],
        documents=documents,
        term_numbers=statistics.numbers,
        idf=statistics.idf,
        targets=TermTargets(documents, neighbours=options.neighbours, temperature=options.temperature),
        engine=engine,
        settings=settings,
        options=options,
        seed=seed,
        threads=threads or os.cpu_count() or 1,
        tell=tell,
    )
