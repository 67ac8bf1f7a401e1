"""Scored candidates as JSON lines. Each line says what its reward was made from, so that only like rewards are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from querylift.index_tools.corpora.json_rows import read_jsonl
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.files import open_for_replacement
from querylift.trainer.candidates import Candidate, read_candidates


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one candidate, and the measures behind it.

    `base` holds the measures of the original query. `by_weight` holds those of the rewritten query, by expansion weight.
    """

    query_id: str
    value: float
    base: Mapping[str, float]
    by_weight: Mapping[float, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class RewardBasis:
    """Everything beside the candidate that decides a reward.

    The last three are digests: of the state of the index, of the labels, and of the index's table in the settings.
    """

    weights: tuple[float, ...]
    mix: Mapping[str, float]
    index: str
    index_state: str
    labels_digest: str
    rules: str

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Read back the output of `asdict`. Raises KeyError, TypeError, ValueError and AttributeError."""
        weights = tuple(float(weight) for weight in row["weights"])
        mix = {str(name): float(share) for name, share in row["mix"].items()}
        return cls(weights, mix, *(str(row[name]) for name in ("index", "index_state", "labels_digest", "rules")))


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate and its reward. `labels` is the name of the labels.

    `passage` is the text that the student learns for the candidate. `words` are the words that are served of it, "" when
    no word is left. `basis` is None in lines that were written before there was one. `ended` is False when the passage was cut,
    or when the candidate itself did not end.
    """

    candidate: Candidate
    passage: str
    words: str
    reward: Reward
    labels: str
    basis: RewardBasis | None = None
    ended: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the candidate's line with the fields of the reward added."""
        reward = self.reward
        return {
            **self.candidate.to_json(),
            "passage": self.passage,
            "words": self.words,
            **({} if self.ended else {"passage_ended": False}),
            "labels": self.labels,
            "reward": reward.value,
            "base": dict(reward.base),
            "by_weight": {f"{weight:g}": dict(values) for weight, values in reward.by_weight.items()},
            **({"basis": asdict(self.basis)} if self.basis else {}),
        }


def write_scored_candidates(path: Path, scored_candidates: Iterable[ScoredCandidate]) -> None:
    """Replace the file at `path` by one line for each candidate."""
    write_json_lines(path, (scored.to_json() for scored in scored_candidates))


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file at `path` by one line of JSON for each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_for_replacement(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_scored_candidates(path: Path) -> Iterator[ScoredCandidate]:
    """Read a file of `write_scored_candidates`.

    Raises DataError with path and line, and SettingsError when there is no file.
    """
    for (line_number, row), candidate in zip(read_jsonl(path), read_candidates(path), strict=True):
        try:
            scored = _parse_scored_candidate(row, candidate)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = (
                f"this line is not a scored candidate ({type(error).__name__}: {error}); "
                "write the file with `querylift train score`"
            )
            raise DataError(path, line_number, problem) from None
        if not math.isfinite(scored.reward.value):
            raise DataError(path, line_number, f"the reward is {scored.reward.value}; score the candidates again")
        yield scored


def _parse_scored_candidate(row: Mapping[str, Any], candidate: Candidate) -> ScoredCandidate:
    reward = Reward(
        candidate.query_id,
        float(row["reward"]),
        {str(name): float(value) for name, value in row["base"].items()},
        {
            float(weight): {str(name): float(value) for name, value in values.items()}
            for weight, values in row["by_weight"].items()
        },
    )
    basis = RewardBasis.from_json(row["basis"]) if "basis" in row else None
    ended = bool(row.get("passage_ended", True))
    return ScoredCandidate(candidate, str(row["passage"]), str(row["words"]), reward, str(row["labels"]), basis, ended)


def check_comparable(scored_candidates: Iterable[ScoredCandidate]) -> None:
    """Raise SettingsError when the rewards were made in different ways. Lines without a basis are not checked.

    All rewards must share the weights and the mix. Rewards of one index must also share its labels, its state and its
    settings. Rewards of one query must share the index.
    """
    facts: dict[tuple[str, ...], _SharedFact] = {}
    for scored in scored_candidates:
        for fact in _list_shared_facts(scored, scored.basis) if scored.basis else ():
            expected = facts.setdefault((fact.name, *fact.scope), fact)
            if expected.value != fact.value:
                scope = f" of {fact.scope[0]}" if fact.scope else ""
                raise SettingsError(
                    f"the rewards{scope} come from different {fact.name}, {expected.text} and {fact.text}; "
                    "score all candidates again in one way, or make pairs from each file separately"
                )


class _SharedFact(NamedTuple):
    """A value that all rewards within `scope` must share. `text` is how an error shows it."""

    name: str
    scope: tuple[str, ...]
    value: object
    text: str


def _list_shared_facts(scored: ScoredCandidate, basis: RewardBasis) -> Iterator[_SharedFact]:
    """Yield the facts that a reward must share with others, and with which others."""
    yield _SharedFact("weights", (), basis.weights, str(list(basis.weights)))
    yield _SharedFact("mixes", (), basis.mix, str(dict(basis.mix)))
    index = (f"index {basis.index!r}",)
    yield _SharedFact("labels", index, basis.labels_digest, f"{scored.labels!r} ({basis.labels_digest})")
    yield _SharedFact("states of the index", index, basis.index_state, basis.index_state)
    yield _SharedFact("settings of the index", index, basis.rules, basis.rules)
    candidate = scored.candidate
    yield _SharedFact("indices", (f"query {candidate.query_id!r}", candidate.query), basis.index, repr(basis.index))
