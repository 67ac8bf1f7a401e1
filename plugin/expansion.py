"""The contract between training, evaluation and serving: the prompt, the stop rule, the parser, and the expansion.

Standard library only, so that every other package can import it. Nothing else in the project writes the student's prompt
or reads a model's output. A change that alters either must also change `PROMPT_VERSION`, because caches and models are
keyed by it.

There is one exception: a rule that only takes away words that should never be served, such as the rule about the query's
language. It leaves the prompt as it is, and so the models stay usable. Cached expansions from before the rule expire
within `ttl_s`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from querylift.plugin.language import QueryLanguage
from querylift.plugin.weighted_parts import MAX_DOCUMENTS as MAX_DOCUMENTS
from querylift.plugin.weighted_parts import MAX_TERMS as MAX_TERMS
from querylift.plugin.weighted_parts import (
    TermGroup,
    describe_terms,
    read_term_groups,
    select_terms,
)
from querylift.plugin.weighted_parts import WeightedDocument as WeightedDocument
from querylift.plugin.weighted_parts import WeightedTerm as WeightedTerm
from querylift.plugin.weighted_parts import read_documents as read_documents
from querylift.plugin.weighted_parts import select_documents as select_documents
from querylift.plugin.words import COMBINING_MARKS, count_words, is_unspaced, split_long_text, take_first_words

PROMPT_VERSION = "passage-2"
MAX_TOKENS = 64
"""The number of tokens that a model may write for one expansion."""
STOP_STRINGS = ("<|im_end|>", "<|endoftext|>", "\n")
"""Generation ends before the first of these strings."""
MAX_WORDS = 128
"""An expansion keeps at most so many distinct words, as `querylift.plugin.words` counts them."""
MAX_WORD_CHARS = 40
"""A longer run of letters does not help to find documents."""

_SYSTEM = "You write short passages for a search engine."
_TASK = "Write a short passage that answers this search query: "


@dataclass(frozen=True, slots=True)
class Expansion:
    """What is added to a query: words that relevant documents probably use, and documents that are probably relevant.

    The words are either `text`, which the engine analyses, or `terms`. `field` is the analysed field of all terms that name
    no fields of their own. `documents` may stand alone.
    """

    text: str = ""
    terms: tuple[WeightedTerm, ...] = ()
    field: str = ""
    documents: tuple[WeightedDocument, ...] = ()

    def __post_init__(self) -> None:
        if self.text and self.terms:
            raise ValueError("an expansion has text and terms; give one of the two")
        if not (self.text or self.terms or self.documents):
            raise ValueError("an expansion is empty; give text, terms or documents")
        if not self.field and not all(term.fields for term in self.terms):
            raise ValueError("an expansion of terms has no field; name the analysed field that the terms belong to")

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(name for fields in self.group_terms() for name in fields))
        words = f"{len(self.terms)} terms of {names}" if self.terms else f"{len(self.text)} chars"
        return f"Expansion({words}, {len(self.documents)} documents)" if self.documents else f"Expansion({words})"

    def get_fields(self, term: WeightedTerm) -> tuple[str, ...]:
        """Return the fields that one of the terms belongs to."""
        return term.fields or (self.field,)

    def group_terms(self) -> dict[tuple[str, ...], list[WeightedTerm]]:
        """Return the terms by the fields that they belong to, in the order of `terms`."""
        groups: dict[tuple[str, ...], list[WeightedTerm]] = {}
        for term in self.terms:
            groups.setdefault(self.get_fields(term), []).append(term)
        return groups

    def count_words(self) -> int:
        """Return the number of words or terms that the expansion adds to a query of one field."""
        return len(self.terms) or count_words(self.text)

    def to_text(self) -> str:
        """Return the text, or the surface words of the terms, for a person to read."""
        return self.text or " ".join(t.surface or t.term for t in self.terms)

    def to_summary(self) -> str:
        """Return the words as `to_text` does, and the number of documents, for reports."""
        documents = f"{len(self.documents)} documents" if self.documents else ""
        return " + ".join(part for part in (self.to_text(), documents) if part)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        value: dict[str, Any] = {"text": self.text} if self.text else {}
        if any(term.fields for term in self.terms):
            groups = self.group_terms().items()
            value = {"groups": [{"fields": list(fields), **describe_terms(terms)} for fields, terms in groups]}
        elif self.terms:
            value = {"field": self.field, **describe_terms(self.terms)}
        if self.documents:
            value["documents"] = {document.doc_id: document.weight for document in self.documents}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Expansion:
        """Read an object that `to_json` wrote. Raises ValueError when it has another shape."""
        documents = read_documents(value)
        if isinstance(value.get("text"), str):
            return cls(text=value["text"], documents=documents)
        if documents and "terms" not in value and "groups" not in value:
            return cls(documents=documents)
        expansion = expansion_from_groups(read_term_groups(value))
        if expansion is None:
            raise ValueError("the expansion has no usable term; give at least one a weight above 0")
        return replace(expansion, documents=documents)


def clean_query(text: str) -> str:
    """Return the query as prompts hold it: without control characters, with whitespace collapsed."""
    return " ".join(_remove_control_characters(text).split())


def normalize_query(text: str) -> str:
    """Return the form in which a query is looked up and handed to a generator: `clean_query` in Unicode's form NFKC.

    A query has one form, whether it was typed composed (NFC), decomposed (NFD) or in full-width letters. A query that is
    in this form already stays as it is. So this form changes no prompt that a model was trained with.
    """
    if text.isascii():
        return clean_query(text)
    return clean_query(unicodedata.normalize("NFKC", clean_query(text)))


def fold_query(text: str) -> str:
    """Return the form in which a table looks a query up: `normalize_query` without letter case."""
    return normalize_query(normalize_query(text).casefold())


def build_messages(query: str) -> list[dict[str, str]]:
    """Return the prompt as chat messages, for servers that apply the model's own chat template."""
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _TASK + _remove_markup(clean_query(query))},
    ]


def build_prompt(query: str) -> str:
    """Return the prompt as one string in ChatML, the format of the SmolLM2 and Qwen students.

    Text in `query` that looks like a special token is removed. A tokenizer may therefore parse special tokens safely.
    """
    turns = "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in build_messages(query)
    )
    return turns + "<|im_start|>assistant\n"


def parse_output(output: str, *, query: str) -> Expansion | None:
    """Return the expansion in a model's output for `query`, or None when no word is left.

    Lead-in and Markdown are removed, and the text is cut at the stop rule. Each word stays once, up to `MAX_WORDS`.
    Words that are not in the query's language are dropped; `querylift.plugin.language` has the rule. The parser handles
    the prose of a teacher as well as the loops of a small model.

    Expansions that people wrote, as in a table, are read by `expansion_from_text`. It knows no query, because such an
    expansion may be in another language on purpose.
    """
    prose = clean_prose(_cut_at_stop_string(remove_thinking(output).strip()))
    expansion = expansion_from_text(prose)
    if expansion is None:
        return None
    query_language = QueryLanguage.detect(_find_words(query))
    return expansion_from_text(" ".join(query_language.select_own_words(expansion.text.split())))


def clean_prose(text: str) -> str:
    """Return a large model's answer on one line, without thinking, lead-in ("Certainly! Here is...") and markup."""
    return " ".join(_remove_markup(_remove_lead_in(_remove_markdown(remove_thinking(text)))).split())


def expansion_from_text(text: str) -> Expansion | None:
    """Return the words of `text` as an expansion, each once and at most `MAX_WORDS`. None when there are no words.

    Text without spaces is served in pieces of at most `MAX_WORD_CHARS`. Each piece counts as several words.
    """
    words: dict[str, str] = {}
    free_count = MAX_WORDS
    for word in (part for long_word in _find_words(text) for part in _split_long_word(long_word)):
        if free_count <= 0:
            break
        if word.casefold() not in words:
            word_count = count_words(word)
            own_words = word if word_count <= free_count else take_first_words(word, free_count)
            words.setdefault(own_words.casefold(), own_words)
            free_count -= word_count
    return Expansion(text=" ".join(words.values())) if words else None


def _find_words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", _remove_control_characters(_remove_markup(text))))


def expansion_from_terms(
    terms: Iterable[tuple[str, float]], *, field: str, surfaces: Mapping[str, str] | None = None
) -> Expansion | None:
    """Return the `MAX_TERMS` heaviest of (term, weight), heaviest first and ties by term. None when none is usable.

    A usable weight is above 0 and at most `MAX_WEIGHT`. A term that comes twice gets the heavier weight.
    `surfaces` maps terms to their surface words.
    """
    return expansion_from_groups([((field,), terms, surfaces or {})])


def expansion_from_groups(groups: Iterable[TermGroup]) -> Expansion | None:
    """Return the `MAX_TERMS` heaviest terms of all groups, as `expansion_from_terms` does. None when none is usable."""
    terms = select_terms(groups)
    if not terms:
        return None
    if {term.fields for term in terms} == {terms[0].fields[:1]}:
        return Expansion(terms=tuple(replace(term, fields=()) for term in terms), field=terms[0].fields[0])
    return Expansion(terms=terms)


# A word has letters, marks and digits of any script, and inner hyphens, apostrophes and dots (well-known, don't, U.S).
_INNER = rf"(?:[^\W_]|[{COMBINING_MARKS}\u200c\u200d])"
_WORD = re.compile(rf"[^\W_]{_INNER}*+(?:[-'’.]{_INNER}++)*+")
_MARKUP = re.compile(
    r"<\|im_start\|>(?:system|user|assistant)?|<\|[^|<>]{0,64}\|>|</?[A-Za-z][^<>]{0,64}>|https?://\S+"
)
# Published answers have often lost their line ends, so the signs of a heading may stand inside a line.
_EMPHASIS = re.compile(r"\*{2,3}|(?<!\w)\*(?=\w)|(?<=[\w.,])\*(?!\w)|(?<!\w)__|__(?!\w)")
_BLOCK_MARKUP = re.compile(r"```[\w-]*|(?:^|(?<=\s))#{1,6}(?=\s)|^[ \t]*(?:[-*+•>]|\d{1,2}[.)])[ \t]+", re.M)
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_THINKING_WITHOUT_OPENING = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_WITHOUT_INVISIBLE_CHARACTERS = str.maketrans("", "", "\u00ad\u2060")
_LEAD_IN = re.compile(
    r"\A\W*(?:"
    r"(?:certainly|sure(?: thing)?|of course|absolutely|okay|ok)(?:\s*[!.,:–—]\s*|\s+(?=here\b))"
    r"|(?:here|below)(?:'s|’s| is| are)\b[^\n:.]{0,120}:\s*"
    r"|(?:the |correct |answering ){0,3}"
    r"(?:passage|answer|response|keywords|search query|query|expansion|output)(?: \d)?\W{0,3}:\s*"
    r"){1,3}",
    re.IGNORECASE,
)
_ROLE_NAME = re.compile(r"\A\W*(?:assistant|system|user)\W*\Z", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"\A\s*\d{1,2}[.)]\s+")


def _remove_control_characters(text: str) -> str:
    """Replace control, format, surrogate and private-use characters by spaces.

    Soft hyphens disappear without a space. Joiners inside words (ZWJ, ZWNJ) stay.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.translate(_WITHOUT_INVISIBLE_CHARACTERS)
    return "".join(char if unicodedata.category(char)[0] != "C" or char in "\u200c\u200d" else " " for char in text)


def _remove_markup(text: str) -> str:
    return _MARKUP.sub(" ", text)


def _remove_markdown(text: str) -> str:
    return _BLOCK_MARKUP.sub(" ", _EMPHASIS.sub("", text))


def remove_thinking(text: str) -> str:
    """Remove the thinking, closed or not. Its opening tag may be missing, as some chat templates put it into the prompt."""
    return _THINKING_WITHOUT_OPENING.sub(" ", _THINKING.sub(" ", text))


def _cut_at_stop_string(text: str) -> str:
    """Return the text before the first stop string. Lines that only announce an answer are dropped first."""
    lines = [line for line in text.split("\n") if line.strip()]
    answer = next((line for line in lines[:-1] if not _only_announces(line)), lines[-1] if lines else "")
    for stop in STOP_STRINGS:
        answer = answer.split(stop, 1)[0]
    return _LIST_NUMBER.sub("", answer)


def _only_announces(line: str) -> bool:
    """Whether a line is only a heading, a code fence, the name of a role, or a lead-in that ends in a colon."""
    text = _remove_lead_in(_remove_markup(line)).strip()
    is_heading = text.startswith(("#", "```")) or text.rstrip(" *").endswith(":")
    is_empty = not _WORD.search(text) and not any(stop in line for stop in STOP_STRINGS)
    return is_heading or is_empty or bool(_ROLE_NAME.match(text))


def _remove_lead_in(text: str) -> str:
    return _LEAD_IN.sub("", text, count=1)


def _split_long_word(word: str) -> list[str]:
    """Return [word], or [] when it is too long. A long word of a script without spaces is cut into shorter pieces."""
    if len(word) <= MAX_WORD_CHARS:
        return [word]
    if not is_unspaced(word):
        return []
    pieces = (piece.lstrip("-'’.\u200c\u200d").rstrip("-'’.") for piece in split_long_text(word, MAX_WORD_CHARS))
    return [piece for piece in pieces if _WORD.match(piece)]
