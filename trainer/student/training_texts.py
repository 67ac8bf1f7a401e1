"""The texts that a student is trained on: the served prompt, a passage that it can write, and the end token.

There is one limit for the passage, the one that is served: `MAX_TOKENS` of the student's own tokens. A longer passage is
cut. A passage that was cut, or that did not end when it was written, has no end token: the student is not taught to stop
there. The module also decides which queries are held out for validation.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from querylift.plugin.expansion import MAX_TOKENS, build_prompt, clean_prose
from querylift.plugin.words import find_last_break
from querylift.trainer.rewards.rewarded_text import TextCutter
from querylift.trainer.student import models
from querylift.trainer.student.models import END_TOKEN

NO_WORDS, REPEATED, CUT, WITHOUT_END = "no_words", "repeated", "cut", "without_end"
"""What is counted of texts: left out without a word, left out as repeated, cut to the limit, not taught to end."""


class Completion(NamedTuple):
    """The prompt of a query and the text that must follow it, each with its tokens.

    The text ends with the end token, unless the passage goes on after it. `was_cut` says that we cut the passage.
    """

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]
    was_cut: bool = False

    @property
    def length(self) -> int:
        """The number of tokens of both."""
        return len(self.prompt_ids) + len(self.ids)

    @property
    def passage(self) -> str:
        """The text without the end token."""
        return self.text.removesuffix(END_TOKEN)

    @property
    def has_end(self) -> bool:
        """Whether the text ends with the end token."""
        return self.text.endswith(END_TOKEN)


class CutPassage(NamedTuple):
    """A passage as long as a student may write it."""

    text: str
    was_cut: bool


def make_completion(query: str, passage: str, tokenizer: Any, *, ended: bool) -> Completion:
    """Return the served prompt of `query` and the passage, cleaned and cut. `ended` says that the passage is whole.

    Prompt and passage are tokenized apart, as they are when the student writes.
    """
    prompt = build_prompt(query)
    text, was_cut = cut_passage(passage, tokenizer)
    text += END_TOKEN if ended and not was_cut else ""
    return Completion(prompt, text, encode_text(prompt, tokenizer), encode_text(text, tokenizer), was_cut)


def cut_passage(passage: str, tokenizer: Any) -> CutPassage:
    """Clean the passage and keep what fits into `MAX_TOKENS` tokens. The end token is not counted.

    The passage is cut after a whole word, or after a sign of a script without spaces. Where no word fits, it is cut after
    a token. Cutting again changes nothing.
    """
    text = clean_prose(passage)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= MAX_TOKENS:
        return CutPassage(text, was_cut=False)
    for count in range(MAX_TOKENS, 0, -1):
        limit = offsets[count][0]  # where the first token that is left out begins, so that no sign is cut into bytes
        beginning = text[: find_last_break(text, limit) or limit].rstrip()
        if len(encode_text(beginning, tokenizer)) <= MAX_TOKENS:  # a beginning may be made of other tokens
            return CutPassage(beginning, was_cut=True)
    return CutPassage("", was_cut=True)


def load_text_cutter(student: str | Path) -> TextCutter:
    """Return what cuts a text to the tokens that `student` may write. Only its tokenizer is read.

    `student` is as in `models.load_model_and_tokenizer`. Raises SettingsError and MissingExtra.
    """
    tokenizer = models.load_tokenizer(student)
    return lambda text: cut_passage(text, tokenizer).text


def count_texts(completions: Collection[Completion], left_out: Mapping[str, int]) -> Counter[str]:
    """Count the texts that were cut, and those that are not taught to end. `left_out` counts the others by reason."""
    return Counter(
        {
            NO_WORDS: left_out.get(NO_WORDS, 0),
            REPEATED: left_out.get(REPEATED, 0),
            CUT: sum(completion.was_cut for completion in completions),
            WITHOUT_END: sum(not completion.has_end for completion in completions),
        }
    )


def format_counts(counts: Counter[str], *, texts: int) -> str:
    """Return a sentence about `count_texts` for the user."""
    return (
        f"{counts[CUT]:,} of {texts:,} texts were cut at {MAX_TOKENS} tokens, and {counts[WITHOUT_END]:,} are not taught to "
        f"end, because they go on; left out: {counts[NO_WORDS]:,} without words, {counts[REPEATED]:,} repeated"
    )


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
