"""What a student is trained to write: the served prompt, a passage cut to size, the end; and which queries are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from querylift.plugin.expansion import clean_prose, prompt
from querylift.trainer.settings import TrainingSettings
from querylift.trainer.student.models import END


class Completion(NamedTuple):
    """A query's prompt and what is to follow it, as text and as tokens. The end is part of the completion."""

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt_ids) + len(self.ids)


def completion(query: str, passage: str, tokenizer: Any, settings: TrainingSettings) -> Completion:
    """`passage`, cleaned and cut to the settings' words and tokens, after the prompt that is served for `query`.

    The prompt and the passage are turned into tokens one by one, as they are when the student writes.
    """
    asked, text = prompt(query), cut(passage, tokenizer, max_words=settings.max_words, max_tokens=settings.max_tokens)
    return Completion(asked, text + END, ids(asked, tokenizer), ids(text + END, tokenizer))


def cut(passage: str, tokenizer: Any, *, max_words: int, max_tokens: int) -> str:
    """The first whole words of the cleaned passage that keep within both bounds; the end is not counted."""
    text = " ".join(clean_prose(passage).split()[:max_words])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if len(encoded["input_ids"]) <= max_tokens:
        return text
    end = encoded["offset_mapping"][max_tokens - 1][1]
    # A token may end inside a word: what is left of that word goes.
    return text[:end].rstrip() if text[end : end + 1].isspace() else text[:end].rpartition(" ")[0].rstrip()


def ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of `text`, none added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def held_out(query_ids: Iterable[str], share: float) -> frozenset[str]:
    """About `share` of the queries, for validation: the same ones whatever the others are, in every stage and every run.

    At least one where `share` is above 0 and there are two or more; never all.
    """
    placed = sorted((_place(query_id), query_id) for query_id in set(query_ids))
    if share <= 0 or len(placed) < 2:
        return frozenset()
    chosen = [query_id for place, query_id in placed[:-1] if place < share]
    return frozenset(chosen or [placed[0][1]])


def split(rows: Collection[Any], share: float) -> tuple[list[Any], list[Any]]:
    """Rows with a `query_id`, as (training, validation)."""
    out = held_out((row.query_id for row in rows), share)
    return [row for row in rows if row.query_id not in out], [row for row in rows if row.query_id in out]


def _place(query_id: str) -> float:
    return int(hashlib.sha256(query_id.encode()).hexdigest()[:13], 16) / 16**13
