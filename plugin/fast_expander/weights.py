"""What a form of the fast expander makes of a query's vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.mapped_files import Array


@dataclass(frozen=True, slots=True)
class Weights:
    """The numbers of the heaviest terms with their weights, heaviest first, and the ids of the nearest documents.

    `terms` and `term_weights` have the shape (terms,). `document_ids` are nearest first.
    """

    terms: Array
    term_weights: Array
    document_ids: Sequence[str]


class Weigher(Protocol):
    """Turns a query's vector into terms and documents. The forms `neighbours` and `terms` have one each."""

    def weigh(self, vector: Vector) -> Weights: ...
