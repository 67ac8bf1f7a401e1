"""The matrix of the form `terms`: from the documents alone, and as a file.

Untrained, a term's row is the mean vector of the documents that hold it, each counting sqrt(tf / length) x idf, at length
`UNTRAINED_SCALE`: a softmax over the rows' products with a query says which terms its neighbourhood speaks of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from querylift.index_tools.fast_expander.document_parts import Parts
from querylift.index_tools.fast_expander.encoder_conversion import in_eight_bits
from querylift.index_tools.fast_expander.served_files import Statistics, Written, named
from querylift.index_tools.fast_expander.surface_words import Surfaces
from querylift.plugin.errors import MissingExtra
from querylift.plugin.fast_expander.document_vectors import unit
from querylift.plugin.fast_expander.term_matrix import HEAD, INPUT
from querylift.plugin.fast_expander.vocabulary import write_vocabulary

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.vocabulary import Array

UNTRAINED_SCALE = 20.0
"""Chosen on scifact's and nfcorpus's train queries from 20 and 40 (docs/log.md)."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents as training reads them.

    `vectors` has shape (documents, width), eight bits. Of document i, `terms[ends[i-1]:ends[i]]` are numbers of terms and
    `weights` their sqrt(tf / length) x idf. `count` is how many terms there are.
    """

    vectors: Array
    ends: Array
    terms: Array
    weights: Array
    count: int


def write_terms(folder: Path, parts: Parts, kept: Sequence[Sequence[int]], surfaces: Surfaces) -> Written:
    """The untrained matrix of the documents in the `kept` rows of each part."""
    import numpy as np

    statistics = Statistics(parts, kept)
    words = named(statistics, parts, surfaces)
    documents = read_documents(parts, kept, statistics)
    rows = mean_vectors(documents) * UNTRAINED_SCALE
    write_head(folder / HEAD, rows, np.zeros(len(rows), dtype=np.float32))
    return Written((HEAD, *write_vocabulary(folder, words)), words, rows.shape[1])


def read_documents(parts: Parts, kept: Sequence[Sequence[int]], statistics: Statistics) -> Documents:
    """The documents in the `kept` rows of each part, in memory."""
    import numpy as np

    found = [
        (part.vectors[rows], list(statistics.document_terms(part, rows)))
        for part, rows in zip(parts, kept, strict=True)
        if rows
    ]
    pairs = [pair for _, document in found for pair in document]
    return Documents(
        np.concatenate([vectors for vectors, _ in found]),
        np.cumsum([len(terms) for terms, _ in pairs]),
        np.concatenate([terms for terms, _ in pairs]),
        np.concatenate([weights for _, weights in pairs]).astype(np.float32),
        len(statistics.numbers),
    )


def mean_vectors(documents: Documents) -> Array:
    """The weighted mean vector of each term's documents, of length 1: shape (terms, width)."""
    import numpy as np

    width = documents.vectors.shape[1]
    summed = np.zeros((documents.count, width), dtype=np.float32)
    for first, last in _blocks(documents.ends):
        start = int(documents.ends[first - 1]) if first else 0
        span = slice(start, int(documents.ends[last - 1]))
        lengths = np.diff(documents.ends[first:last], prepend=start)
        vectors = unit(documents.vectors[first:last])[np.repeat(np.arange(last - first), lengths)]
        weighed = vectors * documents.weights[span, None]
        order = np.argsort(documents.terms[span], kind="stable")
        terms, starts = np.unique(documents.terms[span][order], return_index=True)
        if len(terms):
            summed[terms] += np.add.reduceat(weighed[order], starts, axis=0)
    return unit(summed)


def write_head(out: Path, rows: Array, bias: Array) -> None:
    """Rows of shape (terms, width) and a bias of shape (terms,) as the file that `querylift.plugin.fast_expander.term_matrix` reads."""
    import numpy as np

    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise MissingExtra("onnx", "expander-build") from None
    constants = {"rows": np.ascontiguousarray(rows.T.astype(np.float32)), "bias": bias.astype(np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [INPUT, "rows"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["scores"]),
        ],
        "terms",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, rows.shape[1]])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, len(rows)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    with TemporaryDirectory(dir=out.parent) as work:
        whole = Path(work) / "whole.onnx"
        made: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.save(made, whole)
        in_eight_bits(whole, out)


def _blocks(ends: Array, size: int = 2000) -> Iterator[tuple[int, int]]:
    for first in range(0, len(ends), size):
        yield first, min(first + size, len(ends))
