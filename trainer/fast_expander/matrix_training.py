"""Training a fast expander's matrix: by distributions over terms, then by preferred sets of terms.

A query with vector q gets the scores Wq + b; their softmax says how likely each term is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from querylift.trainer.fast_expander.inverse_cloze import batches

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from querylift.plugin.fast_expander.vocabulary import Array

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Weights:
    """`rows` of shape (terms, width) and `bias` of shape (terms,)."""

    rows: Array
    bias: Array

    def likely(self, vectors: Array) -> Array:
        """The probability of each term: shape (queries, terms)."""
        scores = vectors @ self.rows.T + self.bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Pair:
    """Of one query, by number: the terms of the set that ranked better, and of the one that ranked worse."""

    query: int
    chosen: Array
    rejected: Array


def fit(
    start: Weights,
    vectors: Array,
    targets: csr_matrix,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    tell: Told,
) -> Weights:
    """Lower the cross-entropy between `targets`, rows that sum to 1, and the softmax. Adam, the rate falling to 0."""
    model = _Model(start, learning_rate, epochs * -(-len(vectors) // batch_size))
    draw = np.random.default_rng(seed)
    for epoch in range(epochs):
        total = 0.0
        for at in batches(len(vectors), batch_size, draw):
            wanted = targets[at].tocoo()
            likely = torch.log_softmax(model.scores(vectors[at]), dim=1)
            picked = likely[torch.from_numpy(wanted.row).long(), torch.from_numpy(wanted.col).long()]
            loss = -(picked * torch.from_numpy(wanted.data.astype(np.float32))).sum() / len(at)
            total += model.step(loss) * len(at)
        tell(f"epoch {epoch + 1} of {epochs}: cross-entropy {total / len(vectors):.4f}")
    return model.weights()


def prefer(
    start: Weights,
    vectors: Array,
    pairs: Sequence[Pair],
    *,
    beta: float,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    tell: Told,
) -> Weights:
    """Direct preference optimisation (arXiv 2305.18290) over sets of terms.

    The log-probability of a set is the sum of its terms'; the reference is `start`.
    """
    model, before = _Model(start, learning_rate, epochs * -(-len(pairs) // batch_size)), _Model(start, 0, 1)
    draw = np.random.default_rng(seed)
    for epoch in range(epochs):
        total, right = 0.0, 0
        for at in batches(len(pairs), batch_size, draw):
            some = [pairs[int(number)] for number in at]
            read = vectors[[pair.query for pair in some]]
            with torch.no_grad():
                reference = torch.log_softmax(before.scores(read), dim=1)
            change = torch.log_softmax(model.scores(read), dim=1) - reference
            chosen, rejected = (_summed(change, some, name) for name in ("chosen", "rejected"))
            margin = beta * (chosen - rejected)
            right += int((margin > 0).sum())
            total += model.step(-torch.nn.functional.logsigmoid(margin).mean()) * len(at)
        tell(f"epoch {epoch + 1} of {epochs}: loss {total / len(pairs):.4f}, {right} of {len(pairs)} pairs right")
    return model.weights()


def sampled_sets(likely: Array, *, size: int, draw: Any) -> Array:
    """One set of `size` terms for each row, drawn without replacement (Gumbel top-k, arXiv 1903.06059)."""
    noise = draw.gumbel(size=likely.shape)
    return np.argpartition(-(np.log(likely + 1e-12) + noise), size - 1, axis=1)[:, :size]


def _summed(change: torch.Tensor, pairs: Sequence[Pair], name: str) -> torch.Tensor:
    return torch.stack(
        [row[torch.from_numpy(getattr(pair, name)).long()].sum() for row, pair in zip(change, pairs, strict=True)]
    )


class _Model:
    """The matrix and its optimiser."""

    def __init__(self, start: Weights, learning_rate: float, steps: int) -> None:
        self._rows = torch.nn.Parameter(torch.tensor(start.rows, dtype=torch.float32))
        self._bias = torch.nn.Parameter(torch.tensor(start.bias, dtype=torch.float32))
        self._optimiser = torch.optim.Adam([self._rows, self._bias], lr=learning_rate)
        self._schedule = torch.optim.lr_scheduler.LinearLR(self._optimiser, 1.0, 0.0, total_iters=steps)

    def scores(self, vectors: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(vectors)) @ self._rows.T + self._bias

    def step(self, loss: torch.Tensor) -> float:
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        return float(loss.detach())

    def weights(self) -> Weights:
        return Weights(self._rows.detach().numpy().copy(), self._bias.detach().numpy().copy())
