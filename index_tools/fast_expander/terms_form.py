"""The matrix of the form `terms`: its untrained rows, made from the documents alone, and its file.

The untrained row of a term is the mean vector of the documents that hold the term. Each document counts
sqrt(tf / length) x idf. The rows have the length `UNTRAINED_SCALE`. A softmax over the products of the rows with the vector
of a query tells which terms the documents near the query use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from querylift.index_tools.fast_expander.document_parts import DocumentParts
from querylift.index_tools.fast_expander.encoder_conversion import quantize_onnx_file
from querylift.index_tools.fast_expander.neighbours_form import ServedFiles, TermStatistics, choose_surface_words
from querylift.index_tools.fast_expander.surface_words import SurfaceWords
from querylift.plugin.errors import MissingExtra
from querylift.plugin.fast_expander.document_vectors import normalize_vectors
from querylift.plugin.fast_expander.matrix_weigher import INPUT_NAME, MATRIX_FILE
from querylift.plugin.fast_expander.vocabulary import write_vocabulary

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array

UNTRAINED_SCALE = 20.0
"""Chosen from 20 and 40, on the train queries of scifact and nfcorpus (docs/log.md)."""
_BLOCK_DOCUMENTS = 2000


@dataclass(frozen=True, slots=True)
class WeightedDocuments:
    """Documents with their vectors and weighted terms, in memory.

    `vectors` has shape (documents, width), eight bits a number. The terms of document i are `terms[ends[i-1]:ends[i]]`, and
    their `weights` are sqrt(tf / length) x idf. `term_count` is the number of different terms.
    """

    vectors: Array
    ends: Array
    terms: Array
    weights: Array
    term_count: int


def write_terms_form(
    folder: Path,
    parts: DocumentParts,
    current_rows: Sequence[Sequence[int]],
    surfaces_by_group: Sequence[SurfaceWords],
) -> ServedFiles:
    """Write the untrained matrix of the documents in the current rows of each part. There must be one group of fields."""
    import numpy as np

    statistics = TermStatistics(parts, current_rows)
    (surfaces,) = surfaces_by_group
    words = choose_surface_words(statistics, parts, surfaces)
    documents = load_weighted_documents(parts, current_rows, statistics)
    rows = calculate_mean_vectors(documents) * UNTRAINED_SCALE
    write_matrix(folder / MATRIX_FILE, rows, np.zeros(len(rows), dtype=np.float32))
    return ServedFiles((MATRIX_FILE, *write_vocabulary(folder, words)), [words], rows.shape[1])


def load_weighted_documents(
    parts: DocumentParts, current_rows: Sequence[Sequence[int]], statistics: TermStatistics
) -> WeightedDocuments:
    """Read the documents in the current rows of each part."""
    import numpy as np

    vectors, terms, weights = [], [], []
    for part, rows in zip(parts, current_rows, strict=True):
        if not rows:
            continue
        vectors.append(part.vectors[rows])
        for document_terms, document_weights in statistics.weigh_document_terms(part, rows):
            terms.append(document_terms)
            weights.append(document_weights)
    return WeightedDocuments(
        vectors=np.concatenate(vectors),
        ends=np.cumsum([len(document_terms) for document_terms in terms]),
        terms=np.concatenate(terms),
        weights=np.concatenate(weights).astype(np.float32),
        term_count=len(statistics.numbers),
    )


def calculate_mean_vectors(documents: WeightedDocuments) -> Array:
    """Return the weighted mean vector of the documents of each term, with length 1: shape (terms, width)."""
    import numpy as np

    width = documents.vectors.shape[1]
    sums = np.zeros((documents.term_count, width), dtype=np.float32)
    for start, stop in _split_blocks(len(documents.ends)):
        terms_start = int(documents.ends[start - 1]) if start else 0
        span = slice(terms_start, int(documents.ends[stop - 1]))
        lengths = np.diff(documents.ends[start:stop], prepend=terms_start)
        vectors = normalize_vectors(documents.vectors[start:stop])[np.repeat(np.arange(stop - start), lengths)]
        weighted_vectors = vectors * documents.weights[span, None]
        order = np.argsort(documents.terms[span], kind="stable")
        terms, term_starts = np.unique(documents.terms[span][order], return_index=True)
        if len(terms):
            sums[terms] += np.add.reduceat(weighted_vectors[order], term_starts, axis=0)
    return normalize_vectors(sums)


def write_matrix(out: Path, rows: Array, bias: Array) -> None:
    """Write rows of shape (terms, width) and a bias of shape (terms,) as an ONNX file with weights of eight bits.

    `querylift.plugin.fast_expander.matrix_weigher` reads the file. Raises MissingExtra when onnx is not installed.
    """
    import numpy as np

    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise MissingExtra("onnx", "expander-build") from None
    constants = {"rows": np.ascontiguousarray(rows.T.astype(np.float32)), "bias": bias.astype(np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [INPUT_NAME, "rows"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["scores"]),
        ],
        "terms",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [1, rows.shape[1]])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, len(rows)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    with TemporaryDirectory(dir=out.parent) as work:
        float32_path = Path(work) / "float32.onnx"
        model: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.save(model, float32_path)
        quantize_onnx_file(float32_path, out)


def _split_blocks(count: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of blocks of `_BLOCK_DOCUMENTS` documents."""
    for start in range(0, count, _BLOCK_DOCUMENTS):
        yield start, min(start + _BLOCK_DOCUMENTS, count)
