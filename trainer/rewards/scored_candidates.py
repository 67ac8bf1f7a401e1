"""Scored candidates as JSON lines: each with its reward, and with what that was made by, so that no two kinds are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from querylift.index_tools.corpora.trec_files import read_jsonl, replacing
from querylift.plugin.errors import DataError, SettingsError
from querylift.trainer.candidates import Candidate, read


@dataclass(frozen=True, slots=True)
class Reward:
    """What one candidate changes: measures of the query as it is (`base`) and, per weight, of the rewritten one."""

    query_id: str
    reward: float
    base: Mapping[str, float]
    by_weight: Mapping[float, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Basis:
    """What decides a reward, the candidate aside. The last three are digests: of the index as it stood, of the labels,
    of the index's table in the settings."""

    weights: tuple[float, ...]
    mix: Mapping[str, float]
    index: str
    index_state: str
    labels_digest: str
    rules: str

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """What `asdict` gave, read back. Raises KeyError, TypeError, ValueError, AttributeError."""
        weights = tuple(float(weight) for weight in row["weights"])
        mix = {str(name): float(share) for name, share in row["mix"].items()}
        return cls(weights, mix, *(str(row[name]) for name in ("index", "index_state", "labels_digest", "rules")))


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate and its reward by the labels of that name.

    `passage` is what the student has to write for it, `words` what is served of that, "" where no word is left. `basis` is None
    where the line was written before there was one.
    """

    candidate: Candidate
    passage: str
    words: str
    reward: Reward
    labels: str
    basis: Basis | None = None

    def to_json(self) -> dict[str, Any]:
        """The candidate's line with the reward's fields added."""
        reward = self.reward
        return {
            **self.candidate.to_json(),
            "passage": self.passage,
            "words": self.words,
            "labels": self.labels,
            "reward": reward.reward,
            "base": dict(reward.base),
            "by_weight": {f"{weight:g}": dict(values) for weight, values in reward.by_weight.items()},
            **({"basis": asdict(self.basis)} if self.basis else {}),
        }


def write_scored(path: Path, scored: Iterable[Scored]) -> None:
    """Replace `path` by one line for each."""
    write_rows(path, (one.to_json() for one in scored))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` by one line of JSON for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_scored(path: Path) -> Iterator[Scored]:
    """What `write_scored` wrote. Raises DataError with path and line, SettingsError where there is no file."""
    for (number, row), candidate in zip(read_jsonl(path), read(path), strict=True):
        try:
            scored = _scored(row, candidate)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = (
                f"no scored candidate ({type(error).__name__}: {error}); write the file with `querylift train score`"
            )
            raise DataError(path, number, problem) from None
        if not math.isfinite(scored.reward.reward):
            raise DataError(path, number, f"the reward is {scored.reward.reward}; score the candidates anew")
        yield scored


def _scored(row: Mapping[str, Any], candidate: Candidate) -> Scored:
    reward = Reward(
        candidate.query_id,
        float(row["reward"]),
        {str(name): float(value) for name, value in row["base"].items()},
        {float(w): {str(n): float(v) for n, v in of.items()} for w, of in row["by_weight"].items()},
    )
    basis = Basis.from_json(row["basis"]) if "basis" in row else None
    return Scored(candidate, str(row["passage"]), str(row["words"]), reward, str(row["labels"]), basis)


def check_comparable(scored: Iterable[Scored]) -> None:
    """Raise SettingsError where rewards of different kinds meet; lines without a basis are taken on trust.

    Weights and mix are the same in all of them; labels, the index's state and rules in those of one index; and the index in
    those of one query.
    """
    seen: dict[tuple[str, ...], tuple[object, str]] = {}
    for one in scored:
        for key, value, shown in _decided(one, one.basis) if one.basis else ():
            first, first_shown = seen.setdefault(key, (value, shown))
            if first != value:
                what, *scope = key
                raise SettingsError(
                    f"the rewards{''.join(f' of {name}' for name in scope[:1])} come from different {what}, {first_shown} and "
                    f"{shown}; score all these candidates anew in one way, or make pairs of each file on its own"
                )


def _decided(one: Scored, basis: Basis) -> Iterator[tuple[tuple[str, ...], object, str]]:
    """What is to be the same, among which rewards; its value, and how that is shown."""
    yield ("weights",), basis.weights, str(list(basis.weights))
    yield ("mixes",), basis.mix, str(dict(basis.mix))
    index = f"index {basis.index!r}"
    yield ("labels", index), basis.labels_digest, f"{one.labels!r} ({basis.labels_digest})"
    yield ("states of the index", index), basis.index_state, basis.index_state
    yield ("settings of the index", index), basis.rules, basis.rules
    asked = one.candidate
    yield ("indices", f"query {asked.query_id!r}", asked.query), basis.index, repr(basis.index)
