"""Which documents of an index a build reads: all, a sample, or one slice of several.

A hash of its id selects a document. So the selection is the same on every machine and in every later build, and a larger
sample holds the smaller one. The slices of the engines would not do: Elasticsearch cuts them by positions in a shard, which
differ from copy to copy of the shard.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from querylift.plugin.errors import SettingsError

_HASH_BYTES = 8
_MAX_SLICES = 1000
_SMALL_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class DocumentSelection:
    """`sample` is the share of the documents, above 0 and up to 1. Of it, slice `number` of `count` is read, from 1."""

    sample: float = 1.0
    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, *, sample: float = 1.0, slice_text: str = "") -> Self:
        """Read options such as 0.25 and "3/8". Raises SettingsError."""
        if not 0 < sample <= 1:
            raise SettingsError(f"--sample is {sample:g}; use a share above 0 and up to 1, such as 0.25")
        if not slice_text:
            return cls(sample)
        match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", slice_text)
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count <= _MAX_SLICES:
            raise SettingsError(
                f"--slice is {slice_text!r}; write the number of the slice and how many there are, such as 3/8 "
                f"(at most {_MAX_SLICES})"
            )
        return cls(sample, number, count)

    @property
    def slice_name(self) -> str:
        """Such as "3/8", and "" when all documents are in one piece."""
        return f"{self.number}/{self.count}" if self.count > 1 else ""

    @property
    def is_small(self) -> bool:
        """Whether at most half of the documents are selected, so that texts are better fetched by id."""
        return self.sample / self.count <= _SMALL_SHARE

    def includes(self, doc_id: str) -> bool:
        """Whether a document is selected."""
        digest = hashlib.blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
        value = int.from_bytes(digest, "big")
        return value < self.sample * 256**_HASH_BYTES and value % self.count == self.number - 1


EVERYTHING = DocumentSelection()
