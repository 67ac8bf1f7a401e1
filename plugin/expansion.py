"""The contract between training, evaluation and serving: prompt, stop rule, parser, and what an expansion is.

Standard library only, so that every other package can import it. Nothing else in the project writes a prompt or reads a
model's output. Change anything here that alters either and `PROMPT_VERSION` must change with it: caches and models are
keyed by it. The one exception is a rule that only takes away what should never have been served, as that of the query's
language does: the prompt, and so what a model was trained for, stays the same, and what a cache kept without the rule is
gone within its `ttl_s`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from querylift.plugin.language import QueryLanguage

PROMPT_VERSION = "passage-2"
MAX_TOKENS = 64
"""Tokens that a model may write for one expansion."""
STOP = ("<|im_end|>", "<|endoftext|>", "\n")
"""Generation ends before the first of these."""
MAX_WORDS = 128
"""Distinct words kept of one expansion, whatever wrote it."""
MAX_WORD_CHARS = 40
"""A longer run of letters is no word that a document would be found by."""
MAX_TERMS = 128
"""Weighted terms kept of one expansion, heaviest first."""
MAX_TERM_WEIGHT = 1e12
"""Weights are relative; a larger one is a fault of whatever wrote it."""

_SYSTEM = "You write short passages for a search engine."
_TASK = "Write a short passage that answers this search query: "


@dataclass(frozen=True, slots=True)
class WeightedTerm:
    """A term as it stands in an index (already analysed) and its weight, relative to the others, above zero.

    `surface` is a word that the term is made of, for fields that are analysed another way; "" where none is known.
    """

    term: str
    weight: float
    surface: str = ""


@dataclass(frozen=True, slots=True)
class Expansion:
    """Words that relevant documents would use: either `text`, to be analysed by the engine, or `terms` of one `field`."""

    text: str = ""
    terms: tuple[WeightedTerm, ...] = ()
    field: str = ""

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.terms):
            raise ValueError("an expansion is either text or terms: give exactly one of the two")
        if self.terms and not self.field:
            raise ValueError("an expansion made of terms names the analysed field that they belong to")

    def __repr__(self) -> str:
        size = f"{len(self.terms)} terms of {self.field}" if self.terms else f"{len(self.text)} chars"
        return f"Expansion({size})"

    def size(self) -> int:
        """How many words or terms it adds to a query for one field."""
        return len(self.terms) or len(self.text.split())

    def words(self) -> str:
        """The text, or the terms as text: for a person to read."""
        return self.text or " ".join(t.surface or t.term for t in self.terms)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        if self.terms:
            surfaces = {t.term: t.surface for t in self.terms if t.surface}
            terms = {"field": self.field, "terms": {t.term: t.weight for t in self.terms}}
            return terms | {"surfaces": surfaces} if surfaces else terms
        return {"text": self.text}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Expansion:
        """Read what `to_json` wrote. Raises ValueError where it is neither shape."""
        if isinstance(value.get("text"), str):
            return cls(text=value["text"])
        terms, field, surfaces = value.get("terms"), value.get("field"), value.get("surfaces", {})
        if not isinstance(terms, Mapping) or not isinstance(field, str) or not isinstance(surfaces, Mapping):
            raise ValueError('an expansion has "text", or "field" and "terms"')
        parsed = from_terms(((t, w) for t, w in terms.items()), field=field, surfaces=surfaces)
        if parsed is None:
            raise ValueError("an expansion made of terms needs at least one with a weight above zero")
        return parsed


def clean_query(text: str) -> str:
    """The user's words as the prompt and every key see them: control characters out, whitespace collapsed."""
    return " ".join(_without_controls(text).split())


def messages(query: str) -> list[dict[str, str]]:
    """The prompt as chat messages, for servers that apply the model's own chat template."""
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _TASK + _without_markup(clean_query(query))},
    ]


def prompt(query: str) -> str:
    """The prompt as one string in ChatML, the format of the SmolLM2 and Qwen students.

    Special-token look-alikes in `query` are removed, so tokenising with special tokens on is safe.
    """
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages(query))
    return turns + "<|im_start|>assistant\n"


def parse(output: str, *, query: str) -> Expansion | None:
    """What a model wrote for `query`, as data: lead-in and markdown off, cut at the stop rule, words deduplicated and bounded.

    Words that are not in the query's language are dropped (`querylift.plugin.language` has the rule). Returns None where no word is
    left. Works on a teacher's prose as on a small model's loops. What people wrote on purpose, as in a table, is read by
    `from_words`, which knows no query: there an expansion may well be in another language.
    """
    found = from_words(clean_prose(_cut_at_stop(_without_thinking(output).strip())))
    if found is None:
        return None
    return from_words(" ".join(QueryLanguage.of(_words(query)).own(found.text.split())))


def clean_prose(text: str) -> str:
    """A large model's answer without its thinking, its lead-in ("Certainly! Here is...") and its markup, on one line."""
    return " ".join(_without_markup(_without_lead_in(_without_markdown(_without_thinking(text)))).split())


def from_words(text: str) -> Expansion | None:
    """`text` as an expansion: only words stay, each once, at most `MAX_WORDS`. None where there are none."""
    kept: dict[str, str] = {}
    for word in _words(text):
        for piece in _pieces(word):
            kept.setdefault(piece.casefold(), piece)
        if len(kept) >= MAX_WORDS:
            break
    return Expansion(text=" ".join(list(kept.values())[:MAX_WORDS])) if kept else None


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", _without_controls(_without_markup(text))))


def from_terms(
    terms: Iterable[tuple[str, float]], *, field: str, surfaces: Mapping[str, str] | None = None
) -> Expansion | None:
    """The heaviest `MAX_TERMS` of (term, weight), heaviest first, ties by term. None where none has a usable weight.

    Usable is a number above 0 and at most `MAX_TERM_WEIGHT`. A term that comes twice keeps the heavier weight. `surfaces`
    holds words by term.
    """
    usable: dict[str, float] = {}
    for term, weight in terms:
        if isinstance(term, str) and term and isinstance(weight, int | float) and 0 < weight <= MAX_TERM_WEIGHT:
            usable[term] = max(float(weight), usable.get(term, 0.0))
    ranked = sorted(usable.items(), key=lambda tw: (-tw[1], tw[0]))[:MAX_TERMS]
    if not ranked:
        return None
    return Expansion(terms=tuple(WeightedTerm(t, w, _surface(surfaces, t)) for t, w in ranked), field=field)


def _surface(surfaces: Mapping[str, str] | None, term: str) -> str:
    surface = surfaces.get(term, "") if surfaces else ""
    return surface if isinstance(surface, str) else ""


def _combining_marks() -> str:
    """Vowel signs, accents and the like as ranges of a character class: `\\w` takes in no mark."""
    marks = [i for i in (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0)) if unicodedata.category(chr(i))[0] == "M"]
    runs: list[tuple[int, int]] = []
    for mark in marks:
        if runs and runs[-1][1] == mark - 1:
            runs[-1] = (runs[-1][0], mark)
        else:
            runs.append((mark, mark))
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in runs)


MARKS = _combining_marks()
"""The inside of a regular expression's character class that matches every combining mark."""

# A word: letters, marks and digits of any script, with inner hyphens, apostrophes and dots (well-known, don't, U.S).
_INNER = rf"(?:[^\W_]|[{MARKS}\u200c\u200d])"
_WORD = re.compile(rf"[^\W_]{_INNER}*+(?:[-'’.]{_INNER}++)*+")
_MARKUP = re.compile(
    r"<\|im_start\|>(?:system|user|assistant)?|<\|[^|<>]{0,64}\|>|</?[A-Za-z][^<>]{0,64}>|https?://\S+"
)
# Published answers have often lost their line ends, so a heading's marks may stand in the middle of a line.
_EMPHASIS = re.compile(r"\*{2,3}|(?<!\w)\*(?=\w)|(?<=[\w.,])\*(?!\w)|(?<!\w)__|__(?!\w)")
_BLOCK = re.compile(r"```[\w-]*|(?:^|(?<=\s))#{1,6}(?=\s)|^[ \t]*(?:[-*+•>]|\d{1,2}[.)])[ \t]+", re.M)
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_INVISIBLE = str.maketrans("", "", "\u00ad\u2060")
_LEAD_IN = re.compile(
    r"\A\W*(?:"
    r"(?:certainly|sure(?: thing)?|of course|absolutely|okay|ok)(?:\s*[!.,:–—]\s*|\s+(?=here\b))"
    r"|(?:here|below)(?:'s|’s| is| are)\b[^\n:.]{0,120}:\s*"
    r"|(?:the |correct |answering ){0,3}"
    r"(?:passage|answer|response|keywords|search query|query|expansion|output)(?: \d)?\W{0,3}:\s*"
    r"){1,3}",
    re.IGNORECASE,
)
_ROLE = re.compile(r"\A\W*(?:assistant|system|user)\W*\Z", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"\A\s*\d{1,2}[.)]\s+")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]")


def _without_controls(text: str) -> str:
    """Control, format, surrogate and private-use characters become spaces; soft hyphens go without a trace.

    Joiners inside words (ZWJ, ZWNJ) stay.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.translate(_INVISIBLE)
    return "".join(c if unicodedata.category(c)[0] != "C" or c in "\u200c\u200d" else " " for c in text)


def _without_markup(text: str) -> str:
    return _MARKUP.sub(" ", text)


def _without_markdown(text: str) -> str:
    return _BLOCK.sub(" ", _EMPHASIS.sub("", text))


def _without_thinking(text: str) -> str:
    """`text` less its thinking, closed or not; a chat template may have written the opening tag into the prompt."""
    return _THOUGHT.sub(" ", _THINKING.sub(" ", text))


def _cut_at_stop(text: str) -> str:
    """`text` up to the first stop string, once the lines that only announce it are passed over."""
    lines = [line for line in text.split("\n") if line.strip()]
    text = next((line for line in lines[:-1] if not _announces(line)), lines[-1] if lines else "")
    for stop in STOP:
        text = text.split(stop, 1)[0]
    return _LIST_NUMBER.sub("", text)


def _announces(line: str) -> bool:
    """Whether a line is a heading, a fence, a role's name, or a lead-in that ends in a colon."""
    bare = _without_lead_in(_without_markup(line)).strip()
    is_heading = bare.startswith(("#", "```")) or bare.rstrip(" *").endswith(":")
    is_empty = not _WORD.search(bare) and not any(stop in line for stop in STOP)
    return is_heading or is_empty or bool(_ROLE.match(bare))


def _without_lead_in(text: str) -> str:
    return _LEAD_IN.sub("", text, count=1)


def _pieces(word: str) -> list[str]:
    """`word`, or nothing where it is too long; scripts written without spaces are cut into runs that are not."""
    if len(word) <= MAX_WORD_CHARS:
        return [word]
    if _UNSPACED.search(word):
        return [word[i : i + MAX_WORD_CHARS] for i in range(0, len(word), MAX_WORD_CHARS)]
    return []
