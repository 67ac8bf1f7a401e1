"""What a teacher is asked: the plan, the prompts, and the examples that an index's own judged pairs give it.

The student's prompt stands in `querylift.plugin.expansion` alone; a teacher's may be longer, and differ. Change the wording here and
`TEACHER_PROMPT_VERSION` must change with it: candidates are keyed by it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from querylift.index_tools.corpora.loading import Corpus
from querylift.index_tools.corpora.trec_files import Document
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import clean_query
from querylift.trainer.candidates import Candidate

TEACHER_PROMPT_VERSION = "teacher-1"
PASSAGE_WORDS = 60
ZERO_SHOT, FEW_SHOT = "zero-shot", "few-shot"
METHODS = (ZERO_SHOT, FEW_SHOT)
RELEVANT_DOCUMENT = "relevant-document"
"""The method of a candidate that is the start of a document, not a teacher's words."""

_SYSTEM = (
    f"You help a search engine find documents. For each search query, write one passage of about {PASSAGE_WORDS} words that "
    "answers it, as a relevant document would put it: with the names, technical terms and facts that such a document "
    "contains. Write the passage alone, as plain prose: no introduction, no heading, no list, no remark about the task."
)
_TASK = "Search query: "
_TURN_TOKENS = 8  # What a chat template adds to a turn, about.


@dataclass(frozen=True, slots=True)
class Plan:
    """What a teacher is asked, and how fast. Raises SettingsError for values that ask for nothing.

    The fields up to `seed` decide what comes out; the rest only when, how much of it, and at what price.
    """

    model: str
    base_url: str = field(repr=False)
    prompts: tuple[str, ...] = (ZERO_SHOT,)
    samples: int = 1
    """Answers to each prompt at each temperature; at temperature 0 there is one."""
    temperatures: tuple[float, ...] = (0.7,)
    max_tokens: int = 128
    shots: int = 4
    """Examples in a few-shot prompt."""
    seed: int = 0
    concurrency: int = 8
    requests_per_minute: float | None = None
    token_budget: int | None = None
    """Prompt and answer tokens that one run may use."""
    price_in: float | None = None
    """Per million prompt tokens, in whatever currency."""
    price_out: float | None = None
    max_retries: int = 6
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if not self.prompts or set(self.prompts) - set(METHODS):
            raise SettingsError(f"prompts are {', '.join(self.prompts) or 'none'}; choose among {', '.join(METHODS)}")
        if not self.temperatures or not all(0 <= t <= 2 for t in self.temperatures):
            raise SettingsError(f"temperatures are {list(self.temperatures)}; name at least one, from 0 to 2")
        for name in (
            "samples",
            "max_tokens",
            "shots",
            "concurrency",
            "timeout_s",
            "requests_per_minute",
            "token_budget",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingsError(f"{name} is {value}; name a number above 0")
        if urlsplit(self.base_url).scheme not in ("http", "https"):
            raise SettingsError(f"the endpoint is {self.place!r}; name a URL such as http://127.0.0.1:8000/v1")

    @property
    def place(self) -> str:
        """The endpoint without account and parameters, to be shown."""
        parts = urlsplit(self.base_url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """The price of so many tokens; None where no price is known."""
        if self.price_in is None and self.price_out is None:
            return None
        return ((self.price_in or 0) * tokens_in + (self.price_out or 0) * tokens_out) / 1_000_000

    def decisive(self) -> dict[str, Any]:
        """The settings that a manifest holds: those that decide what comes out."""
        names = ("model", "prompts", "samples", "temperatures", "max_tokens", "shots")
        return {name: getattr(self, name) for name in names} | {"prompt_version": TEACHER_PROMPT_VERSION}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take: `tokens_in` about, `tokens_out` and `cost` at most."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class Example:
    """A query of the index's owner, and the beginning of a document that was judged to answer it."""

    query_id: str
    query: str = field(repr=False)
    passage: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Judged:
    """A document that was judged relevant for a query."""

    query_id: str
    doc_id: str
    grade: int


def zero_shot(query: str) -> list[dict[str, str]]:
    """The chat messages that ask for a passage without showing one."""
    return few_shot(query, ())


def few_shot(query: str, shown: Sequence[Example]) -> list[dict[str, str]]:
    """The chat messages that show `shown` as answered turns first."""
    turns = [_turn("system", _SYSTEM)]
    for example in shown:
        turns += [_turn("user", _TASK + clean_query(example.query)), _turn("assistant", example.passage)]
    return [*turns, _turn("user", _TASK + clean_query(query))]


def shots_for(query_id: str, query: str, drawn: Sequence[Example], *, k: int) -> list[Example]:
    """The first `k` of `drawn` that are not the query that is being asked, by id or by text."""
    asked = clean_query(query).casefold()
    others = (e for e in drawn if e.query_id != query_id and clean_query(e.query).casefold() != asked)
    return [example for example, _ in zip(others, range(k), strict=False)]


def requests(queries: Mapping[str, str], plan: Plan) -> Iterator[Candidate]:
    """Every candidate that `plan` asks for, without its text; a first one for every query before the second of any."""
    for sample in range(plan.samples):
        for temperature in plan.temperatures:
            if temperature == 0 and sample > 0:
                continue  # the same words again
            for method in plan.prompts:
                params: dict[str, Any] = {"temperature": temperature, "sample": sample, "max_tokens": plan.max_tokens}
                params |= {"examples": plan.shots} if method == FEW_SHOT else {}
                params |= {"prompt": TEACHER_PROMPT_VERSION, "seed": plan.seed}
                for query_id, query in queries.items():
                    yield Candidate(query_id, clean_query(query), method, plan.model, "", params)


def messages_for(asked: Candidate, drawn: Sequence[Example], *, shots: int) -> list[dict[str, str]]:
    """The chat messages of a request."""
    shown = shots_for(asked.query_id, asked.query, drawn, k=shots) if asked.method == FEW_SHOT else []
    return few_shot(asked.query, shown)


def estimate(todo: Sequence[Candidate], plan: Plan, *, drawn: Sequence[Example] = ()) -> Estimate:
    """What `todo` will take: four characters to a token, one where they are not ASCII; answers at full length."""
    tokens_in = sum(tokens(messages_for(asked, drawn, shots=plan.shots)) for asked in todo)
    tokens_out = len(todo) * plan.max_tokens
    return Estimate(len(todo), tokens_in, tokens_out, plan.cost(tokens_in, tokens_out))


def tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """About how many tokens chat messages are."""
    texts = [message["content"] for message in messages]
    ascii_chars = sum(len(text.encode("ascii", "ignore")) for text in texts)
    return ascii_chars // 4 + sum(map(len, texts)) - ascii_chars + _TURN_TOKENS * len(texts)


def examples(
    corpus: Corpus, split: str | None, *, k: int, seed: int, without: Collection[str] = ()
) -> tuple[Example, ...]:
    """Draw `k` judged queries of `split` and one to spare, each with the start of its best-graded document.

    The query ids `without` are not shown. The spare one stands in where one of the others is being asked. Queries whose
    documents have no text are passed over; there are fewer where the split has no more. Reads the documents once.
    """
    queries, best = corpus.queries(split), _best(corpus, split, seed=seed)
    order = sorted(best.keys() - set(without))
    random.Random(f"examples:{seed}").shuffle(order)
    # Twice as many documents are read as are needed, in case some have no text.
    order = order[: 2 * k + 8]
    texts = opening_words(corpus, {best[query_id].doc_id for query_id in order}, words=PASSAGE_WORDS, title=False)
    usable = [q for q in order if texts.get(best[q].doc_id)]
    return tuple(Example(q, clean_query(queries[q]), texts[best[q].doc_id]) for q in usable[: k + 1])


def from_judged(
    corpus: Corpus,
    split: str | None,
    *,
    per_query: int,
    queries: Mapping[str, str] | None = None,
    words: int = PASSAGE_WORDS,
    seed: int = 0,
) -> Iterator[Candidate]:
    """For each query up to `per_query` of its relevant documents, best grade first: title and first `words` words.

    The queries are those of the split, or these of them. Equal grades in seeded order. Documents that the corpus lacks are
    passed over. Reads the documents once.
    """
    queries = corpus.queries(split) if queries is None else queries
    of_queries = (found for found in relevant(corpus, split, seed=seed) if found[0].query_id in queries)
    chosen = [judged for found in of_queries for judged in found[:per_query]]
    texts = opening_words(corpus, {judged.doc_id for judged in chosen}, words=words, title=True)
    for judged in chosen:
        if judged.doc_id in texts:
            query = clean_query(queries[judged.query_id])
            params = {"doc_id": judged.doc_id, "grade": judged.grade, "words": words}
            yield Candidate(judged.query_id, query, RELEVANT_DOCUMENT, "judgments", texts[judged.doc_id], params)


def relevant(corpus: Corpus, split: str | None, *, seed: int) -> Iterator[list[Judged]]:
    """For each query of `split` that has some: its relevant documents, best grade first, equal grades in seeded order."""
    for query_id, grades in corpus.qrels(split).items():
        found = [Judged(query_id, doc_id, g) for doc_id, g in sorted(grades.items()) if g >= corpus.relevant_from]
        random.Random(f"relevant:{seed}:{query_id}").shuffle(found)
        if found:
            yield sorted(found, key=lambda judged: -judged.grade)


def opening_words(corpus: Corpus, doc_ids: Collection[str], *, words: int, title: bool) -> Mapping[str, str]:
    """The first `words` words of each of these documents' text, after its title where `title`; the title where it has none."""
    wanted = frozenset(doc_ids)
    return {d.doc_id: _opening(d, words, title=title) for d in corpus.documents() if d.doc_id in wanted}


def _best(corpus: Corpus, split: str | None, *, seed: int) -> dict[str, Judged]:
    return {found[0].query_id: found[0] for found in relevant(corpus, split, seed=seed)}


def _opening(document: Document, words: int, *, title: bool) -> str:
    text = " ".join(document.text.split()[:words])
    heading = " ".join(document.title.split())
    return f"{heading} {text}".strip() if title or not text else text


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
