"""Training of the matrix of a fast expander: towards distributions over terms, and by preferred sets of terms.

A query with the vector q gets the scores Wq + b. The softmax of the scores is the probability of each term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from querylift.plugin.fast_expander.mapped_files import Array


@dataclass(frozen=True, slots=True)
class MatrixWeights:
    """`rows` of shape (terms, width) and `bias` of shape (terms,)."""

    rows: Array
    bias: Array

    def calculate_probabilities(self, vectors: Array) -> Array:
        """Return the probability of each term for each query vector: shape (queries, terms)."""
        scores = vectors @ self.rows.T + self.bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class TermSetPair:
    """Two sets of terms for one query, which is given by its number: the set that ranked better and the one that ranked worse."""

    query: int
    chosen: Array
    rejected: Array


def fit_to_targets(
    start: MatrixWeights,
    vectors: Array,
    targets: csr_matrix,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    tell: Callable[[str], None],
) -> MatrixWeights:
    """Lower the cross-entropy between `targets`, rows that sum to 1, and the probabilities of the terms.

    The optimiser is Adam, with a learning rate that falls to 0. `tell` gets a line for each epoch.
    """
    model = _TrainableMatrix(start, learning_rate, epochs * -(-len(vectors) // batch_size))
    draw = np.random.default_rng(seed)
    for epoch in range(epochs):
        total = 0.0
        for numbers in _shuffle_batches(len(vectors), batch_size, draw):
            batch_targets = targets[numbers].tocoo()
            log_probabilities = torch.log_softmax(model.calculate_scores(vectors[numbers]), dim=1)
            rows, columns = (torch.from_numpy(axis).long() for axis in (batch_targets.row, batch_targets.col))
            target_shares = torch.from_numpy(batch_targets.data.astype(np.float32))
            loss = -(log_probabilities[rows, columns] * target_shares).sum() / len(numbers)
            total += model.take_step(loss) * len(numbers)
        tell(f"epoch {epoch + 1} of {epochs}: cross-entropy {total / len(vectors):.4f}")
    return model.export_weights()


def fit_to_preferences(
    start: MatrixWeights,
    vectors: Array,
    pairs: Sequence[TermSetPair],
    *,
    beta: float,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    tell: Callable[[str], None],
) -> MatrixWeights:
    """Train by direct preference optimisation (DPO, arXiv 2305.18290) over sets of terms.

    The log-probability of a set is the sum of the log-probabilities of its terms. The reference model is `start`.
    """
    model = _TrainableMatrix(start, learning_rate, epochs * -(-len(pairs) // batch_size))
    reference_model = _TrainableMatrix(start, 0, 1)
    draw = np.random.default_rng(seed)
    for epoch in range(epochs):
        total, correct = 0.0, 0
        for numbers in _shuffle_batches(len(pairs), batch_size, draw):
            batch = [pairs[int(number)] for number in numbers]
            batch_vectors = vectors[[pair.query for pair in batch]]
            with torch.no_grad():
                reference = torch.log_softmax(reference_model.calculate_scores(batch_vectors), dim=1)
            change = torch.log_softmax(model.calculate_scores(batch_vectors), dim=1) - reference
            chosen = _sum_over_terms(change, [pair.chosen for pair in batch])
            rejected = _sum_over_terms(change, [pair.rejected for pair in batch])
            margin = beta * (chosen - rejected)
            correct += int((margin > 0).sum())
            total += model.take_step(-torch.nn.functional.logsigmoid(margin).mean()) * len(numbers)
        tell(f"epoch {epoch + 1} of {epochs}: loss {total / len(pairs):.4f}, {correct} of {len(pairs)} pairs right")
    return model.export_weights()


def sample_term_sets(probabilities: Array, *, size: int, draw: Any) -> Array:
    """Return one set of `size` terms for each row, drawn without replacement (Gumbel top-k, arXiv 1903.06059)."""
    noise = draw.gumbel(size=probabilities.shape)
    return np.argpartition(-(np.log(probabilities + 1e-12) + noise), size - 1, axis=1)[:, :size]


def _sum_over_terms(rows: torch.Tensor, term_sets: Sequence[Array]) -> torch.Tensor:
    """Return, for each row, the sum of its values at the terms of its set."""
    sums = [row[torch.from_numpy(terms).long()].sum() for row, terms in zip(rows, term_sets, strict=True)]
    return torch.stack(sums)


def _shuffle_batches(count: int, size: int, draw: Any) -> Iterator[Array]:
    """Yield every number below `count` once, in random order, `size` at a time."""
    order = draw.permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]


class _TrainableMatrix:
    """The matrix with its optimiser."""

    def __init__(self, start: MatrixWeights, learning_rate: float, steps: int) -> None:
        self._rows = torch.nn.Parameter(torch.tensor(start.rows, dtype=torch.float32))
        self._bias = torch.nn.Parameter(torch.tensor(start.bias, dtype=torch.float32))
        self._optimiser = torch.optim.Adam([self._rows, self._bias], lr=learning_rate)
        self._schedule = torch.optim.lr_scheduler.LinearLR(self._optimiser, 1.0, 0.0, total_iters=steps)

    def calculate_scores(self, vectors: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(vectors)) @ self._rows.T + self._bias

    def take_step(self, loss: torch.Tensor) -> float:
        """Take one step of the optimiser, and return the loss."""
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        return float(loss.detach())

    def export_weights(self) -> MatrixWeights:
        return MatrixWeights(self._rows.detach().numpy().copy(), self._bias.detach().numpy().copy())
