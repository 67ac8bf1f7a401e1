"""The stage `index`: queries are made from the texts of the index, and their nearest documents give the target terms.

It needs no judgments and no teacher.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.index_tools.fast_expander.index_reader import scan_documents
from querylift.trainer.fast_expander.array_files import load_array, save_array
from querylift.trainer.fast_expander.inverse_cloze import create_pseudo_queries
from querylift.trainer.fast_expander.matrix_training import MatrixWeights, fit_to_targets
from querylift.trainer.fast_expander.training_context import TrainingContext

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array

_QUERY_VECTORS_FILE = "queries.npy"


def train_on_index(context: TrainingContext, weights: MatrixWeights, work_folder: Path) -> MatrixWeights:
    """Train on pseudo-queries. Their vectors are kept in `work_folder`, so that they are made only once."""
    vectors = _load_or_encode_queries(context, work_folder / _QUERY_VECTORS_FILE)
    context.tell(f"{len(vectors)} pseudo-queries")
    return fit_to_targets(
        weights,
        vectors,
        context.targets.build_from_neighbours(vectors),
        epochs=context.options.epochs,
        learning_rate=context.options.learning_rate,
        batch_size=context.options.batch_size,
        seed=context.seed,
        tell=context.tell,
    )


def _load_or_encode_queries(context: TrainingContext, path: Path) -> Array:
    """Return the vectors of the pseudo-queries of a random sample of the documents."""
    if path.is_file():
        return load_array(path)
    draw = random.Random(context.seed)
    share = context.options.max_documents / max(len(context.document_keys), 1)
    queries = [
        query
        for documents in scan_documents(context.engine, context.record.source.index, sources=context.sources)
        for document in documents
        if document.text and (share >= 1 or draw.random() < share)
        for query in create_pseudo_queries(document.text, count=context.options.per_document, draw=draw)
    ]
    vectors = context.encode_queries(queries)
    save_array(path, vectors)
    return vectors
