"""The texts that a student is trained on: the served prompt, a passage that is cut to size, and the end token.

The module also decides which queries are held out for validation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from querylift.plugin.expansion import build_prompt, clean_prose
from querylift.trainer.student.models import END_TOKEN
from querylift.trainer.training_config import FineTuningOptions


class Completion(NamedTuple):
    """The prompt of a query and the text that must follow it, each with its tokens. The text ends with the end token."""

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]

    @property
    def length(self) -> int:
        """The number of tokens of both."""
        return len(self.prompt_ids) + len(self.ids)


def make_completion(query: str, passage: str, tokenizer: Any, options: FineTuningOptions) -> Completion:
    """Return the served prompt of `query` and the passage, cleaned and cut to the words and tokens of `options`.

    Prompt and passage are tokenized apart, as they are when the student writes.
    """
    prompt = build_prompt(query)
    text = cut_passage(passage, tokenizer, max_words=options.max_words, max_tokens=options.max_tokens) + END_TOKEN
    return Completion(prompt, text, encode_text(prompt, tokenizer), encode_text(text, tokenizer))


def cut_passage(passage: str, tokenizer: Any, *, max_words: int, max_tokens: int) -> str:
    """Clean the passage and keep its first whole words within both bounds. The end token is not counted."""
    text = " ".join(clean_prose(passage).split()[:max_words])
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if len(encoding["input_ids"]) <= max_tokens:
        return text
    end = encoding["offset_mapping"][max_tokens - 1][1]
    # The last token may end inside a word. That word is dropped.
    return text[:end].rstrip() if text[end : end + 1].isspace() else text[:end].rpartition(" ")[0].rstrip()


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of `text`, without added special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def choose_validation_queries(query_ids: Iterable[str], share: float) -> frozenset[str]:
    """Choose about `share` of the queries for validation.

    A query's own id decides, so that every stage and every run chooses the same queries. At least one query is chosen
    when `share` is above 0 and there are two queries or more. At least one is left for training.
    """
    positions = sorted((_hash_to_fraction(query_id), query_id) for query_id in set(query_ids))
    if share <= 0 or len(positions) < 2:
        return frozenset()
    chosen = [query_id for position, query_id in positions[:-1] if position < share]
    return frozenset(chosen or [positions[0][1]])


def split_by_query(rows: Collection[Any], share: float) -> tuple[list[Any], list[Any]]:
    """Return (training rows, validation rows). All rows with one `query_id` go to one side.

    About `share` of the queries go to validation, as `choose_validation_queries` says.
    """
    validation_ids = choose_validation_queries((row.query_id for row in rows), share)
    training = [row for row in rows if row.query_id not in validation_ids]
    return training, [row for row in rows if row.query_id in validation_ids]


def _hash_to_fraction(query_id: str) -> float:
    """Return a number from 0 to 1 that depends on the id alone."""
    return int(hashlib.sha256(query_id.encode()).hexdigest()[:13], 16) / 16**13
