"""The four sources of candidates: files, relevant documents, a fast expander, and a teacher behind an endpoint.

Every source has the same two steps. `validate` checks the options, and `collect` returns candidates for the queries of a task.
Files and relevant documents give complete candidates. The fast expander and the teacher give requests, which are candidates
without text. Their third step, `answer`, appends the answers to a file. Between the steps the caller removes leaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from querylift.index_tools.corpora.corpus import Corpus
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import RECORD_FILE
from querylift.trainer.candidates import Candidate
from querylift.trainer.chat.endpoint_plan import UsageEstimate
from querylift.trainer.document_leaks import (
    DocumentLeakFinder,
    collect_leaking_queries,
    find_leaks_of_relevant_documents,
    get_candidate_document,
    select_relevant_documents,
)
from querylift.trainer.leaks import HeldOutSplit, collect_leaked_ids, find_leaks
from querylift.trainer.teaching.candidate_files import read_imported_candidates
from querylift.trainer.teaching.plan import FEW_SHOT, ZERO_SHOT, TeachingPlan
from querylift.trainer.teaching.prompts import FewShotExample, estimate_usage, list_requests
from querylift.trainer.teaching.relevant_documents import draw_examples, read_document_candidates
from querylift.trainer.teaching.teacher import ask_teacher, find_unanswered_requests

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress bar with a label and a total, and gives a function that sets the count."""


@dataclass(frozen=True, slots=True)
class TeachingTask:
    """The queries to collect candidates for, and the splits whose queries must not be used.

    `split_queries` are all queries of the split. `queries` are the first of them, as far as --limit allows.
    """

    corpus: Corpus
    split: str | None
    split_queries: Mapping[str, str] = field(repr=False)
    queries: Mapping[str, str] = field(repr=False)
    held_out: Sequence[HeldOutSplit] = field(repr=False)
    seed: int


class CandidateSource(Protocol):
    """One source of candidates."""

    @property
    def is_chosen(self) -> bool:
        """Whether the options ask for this source."""

    @property
    def reads_split(self) -> bool:
        """Whether the source asks about the queries of the corpus's split."""

    @property
    def reads_documents(self) -> bool:
        """Whether the source reads documents of the corpus."""

    def validate(self, given_options: Collection[str]) -> None:
        """Raise SettingsError when one of `given_options`, such as `--words`, has no effect."""

    def collect(self, task: TeachingTask) -> list[Candidate]:
        """Return the candidates, or the requests, for the queries of `task`."""

    def get_manifest_settings(self) -> dict[str, Any]:
        """Return the settings that decide which candidates come out."""

    def get_manifest_inputs(self) -> dict[str, Path]:
        """Return the files that the source reads, by name."""


class Sources(NamedTuple):
    """All four sources, chosen or not."""

    files: FileSource
    documents: DocumentSource
    expander: ExpanderSource
    endpoint: EndpointSource


class ImportedFile(NamedTuple):
    """A file of candidates, and the prefix for its query ids."""

    prefix: str
    path: Path


@dataclass(frozen=True, slots=True)
class FileOptions:
    """The options of `--import`. `where` maps a key of the rows to its accepted values."""

    files: tuple[ImportedFile, ...] = ()
    where: Mapping[str, Collection[str]] = field(default_factory=dict)


class FileSource:
    """Candidates that were made elsewhere."""

    reads_split = False
    reads_documents = False

    def __init__(self, options: FileOptions) -> None:
        self.options = options

    @property
    def is_chosen(self) -> bool:
        return bool(self.options.files)

    def validate(self, given_options: Collection[str]) -> None:
        if self.options.where and not self.is_chosen:
            raise SettingsError("--where chooses rows of --import, which is not given; give it, or leave --where out")

    def collect(self, task: TeachingTask) -> list[Candidate]:
        return [
            candidate
            for file in self.options.files
            for candidate in read_imported_candidates(
                file.path, self.options.where, prefix=file.prefix, queries=task.split_queries
            )
        ]

    def get_manifest_settings(self) -> dict[str, Any]:
        return {
            "imports": [file.prefix for file in self.options.files],
            "where": {key: sorted(values) for key, values in sorted(self.options.where.items())},
        }

    def get_manifest_inputs(self) -> dict[str, Path]:
        return {f"import {number}": file.path for number, file in enumerate(self.options.files, 1)}


@dataclass(frozen=True, slots=True)
class DocumentOptions:
    """The option `--judged`: how many relevant documents become candidates of each query."""

    per_query: int = 0


class DocumentSource:
    """The beginnings of relevant documents."""

    reads_split = True

    def __init__(self, options: DocumentOptions) -> None:
        self.options = options

    @property
    def is_chosen(self) -> bool:
        return self.options.per_query > 0

    @property
    def reads_documents(self) -> bool:
        return self.is_chosen

    def validate(self, given_options: Collection[str]) -> None:
        """Do nothing: no option depends on this source."""

    def collect(self, task: TeachingTask) -> list[Candidate]:
        candidates = read_document_candidates(
            task.corpus, task.split, per_query=self.options.per_query, queries=task.queries, seed=task.seed
        )
        return list(candidates)

    def get_manifest_settings(self) -> dict[str, Any]:
        return {"judged": self.options.per_query}

    def get_manifest_inputs(self) -> dict[str, Path]:
        return {}


@dataclass(frozen=True, slots=True)
class ExpanderOptions:
    """The options of `--expander`. With `pseudo_queries`, the queries are drawn from documents and not from the split."""

    folder: Path | None = None
    words: int = 8
    pseudo_queries: int | None = None
    """Queries drawn from each document."""
    max_documents: int | None = None


class ExpanderSource:
    """A fast expander, which answers with the words of the nearest documents."""

    DEPENDENT_OPTIONS = ("--words", "--pseudo-queries", "--max-documents")

    def __init__(self, options: ExpanderOptions) -> None:
        self.options = options

    @property
    def is_chosen(self) -> bool:
        return self.options.folder is not None

    @property
    def reads_split(self) -> bool:
        return not self.options.pseudo_queries

    @property
    def reads_documents(self) -> bool:
        return bool(self.options.pseudo_queries)

    def validate(self, given_options: Collection[str]) -> None:
        dependent = [option for option in given_options if option in self.DEPENDENT_OPTIONS]
        if dependent and not self.is_chosen:
            raise SettingsError(f"{dependent[0]} needs the index's words; give --expander, or leave it out")
        if self.options.max_documents and not self.options.pseudo_queries:
            raise SettingsError("--max-documents needs --pseudo-queries; add it, or leave --max-documents out")

    def collect(self, task: TeachingTask) -> list[Candidate]:
        """Return one request for every query of the split, or for every pseudo-query."""
        from querylift.trainer.teaching import fast_expander_teacher

        folder, words = self._require_folder(), self.options.words
        if not self.options.pseudo_queries:
            return fast_expander_teacher.list_expander_requests(task.queries, folder, words=words)
        pseudo_queries = fast_expander_teacher.draw_pseudo_queries(
            task.corpus,
            per_document=self.options.pseudo_queries,
            max_documents=self.options.max_documents,
            seed=task.seed,
        )
        return fast_expander_teacher.list_pseudo_query_requests(pseudo_queries, folder, words=words)

    def answer(self, requests: Sequence[Candidate], out: Path, *, show_progress: ProgressBar) -> dict[str, Any]:
        """Append the expander's answers to `out`, and return the counts as JSON."""
        from querylift.trainer.teaching.fast_expander_teacher import ask_expander

        folder, words = self._require_folder(), self.options.words
        with show_progress("asking the expander", len(requests)) as advance:
            return asdict(ask_expander(requests, folder, out, words=words, progress=advance))

    def get_manifest_settings(self) -> dict[str, Any]:
        if not self.is_chosen:
            return {}
        names = ("words", "pseudo_queries", "max_documents")
        return {"expander": {name: getattr(self.options, name) for name in names}}

    def get_manifest_inputs(self) -> dict[str, Path]:
        return {"expander": self.options.folder / RECORD_FILE} if self.options.folder else {}

    def _require_folder(self) -> Path:
        if self.options.folder is None:
            raise ValueError("no folder of a fast expander is given")
        return self.options.folder


class EndpointSource:
    """A teacher behind an endpoint. Its options are a plan; None means that no teacher is asked."""

    DEPENDENT_OPTIONS = (
        "--prompt",
        "--samples",
        "--temperature",
        "--max-tokens",
        "--shots",
        "--concurrency",
        "--requests-per-minute",
        "--token-budget",
        "--price-in",
        "--price-out",
        "--thinking",
        "--extra-body",
    )
    reads_split = True

    def __init__(self, plan: TeachingPlan | None, *, api_key: str) -> None:
        self.plan = plan
        self._api_key = api_key
        self._examples: tuple[FewShotExample, ...] = ()

    @property
    def is_chosen(self) -> bool:
        return self.plan is not None

    @property
    def reads_documents(self) -> bool:
        return self.plan is not None and FEW_SHOT in self.plan.prompts

    def validate(self, given_options: Collection[str]) -> None:
        dependent = [option for option in given_options if option in self.DEPENDENT_OPTIONS]
        if dependent and self.plan is None:
            raise SettingsError(f"{dependent[0]} needs a teacher; give --endpoint and --model, or leave it out")
        if self.plan and self.plan.prompts == (ZERO_SHOT,) and "--shots" in given_options:
            raise SettingsError("--shots needs --prompt few-shot; add it, or leave --shots out")

    def collect(self, task: TeachingTask) -> list[Candidate]:
        """Return all requests to the teacher. Also draw the few-shot examples that `answer` will show."""
        plan = self._require_plan()
        if FEW_SHOT in plan.prompts:
            self._examples = _draw_examples_without_leaks(plan, task)
        return list(list_requests(task.queries, plan))

    def estimate_usage(self, requests: Sequence[Candidate], out: Path) -> UsageEstimate:
        """Estimate the tokens and the cost of those requests that `out` does not answer yet."""
        return estimate_usage(find_unanswered_requests(requests, out), self._require_plan(), examples=self._examples)

    def answer(
        self, requests: Sequence[Candidate], out: Path, *, held_out: Sequence[HeldOutSplit], show_progress: ProgressBar
    ) -> dict[str, Any]:
        """Append the teacher's answers to `out`, less those that repeat a held-out document. Return the counts as JSON."""
        plan, unanswered = self._require_plan(), find_unanswered_requests(requests, out)
        leak_finder = DocumentLeakFinder(held_out)
        with show_progress("asking the teacher", len(unanswered)) as advance:
            asking = ask_teacher(
                unanswered,
                plan,
                out,
                api_key=self._api_key,
                examples=self._examples,
                answered_before=len(requests) - len(unanswered),
                is_held_out=lambda answer: bool(leak_finder.find_leaks([get_candidate_document(answer)])),
                progress=advance,
            )
            return asyncio.run(asking).to_json()

    def get_manifest_settings(self) -> dict[str, Any]:
        return {"teacher": self.plan.to_manifest() if self.plan else None}

    def get_manifest_inputs(self) -> dict[str, Path]:
        return {}

    def _require_plan(self) -> TeachingPlan:
        if self.plan is None:
            raise ValueError("no teacher is chosen")
        return self.plan


def _draw_examples_without_leaks(plan: TeachingPlan, task: TeachingTask) -> tuple[FewShotExample, ...]:
    """Draw examples that are not held out, because a teacher may repeat what it is shown."""
    queries = task.corpus.read_queries(task.split)
    leaked_ids = collect_leaked_ids(find_leaks(queries.items(), task.held_out, corpus=task.corpus.name))
    relevant = select_relevant_documents(task.corpus.read_qrels(task.split), relevant_from=task.corpus.relevant_from)
    leaked_ids |= collect_leaking_queries(find_leaks_of_relevant_documents(task.corpus, relevant, task.held_out))
    examples = draw_examples(task.corpus, task.split, count=plan.shots, seed=plan.seed, excluded_ids=leaked_ids)
    if not examples:
        raise SettingsError(f"{task.corpus.name} has no judged query to show; leave --prompt few-shot out")
    return examples
