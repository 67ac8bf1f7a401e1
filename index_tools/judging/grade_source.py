"""Which model's grades stand in place of people's judgments. Every table and report that rests on them says so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querylift.index_tools.judging.grader import Grader
from querylift.plugin.files import compute_json_digest

if TYPE_CHECKING:
    from querylift.index_tools.judging.judge_folder import Agreement

NOT_MEASURED = "its agreement with people was not measured; run `querylift judge check`"


@dataclass(frozen=True, slots=True)
class GradeSource:
    """The names of a judge and of its teacher, and the day of the grades, such as 2026-11-29.

    `agreement` is a sentence about how well the judge agrees with people. It is empty when nothing is known about that.
    `relevant_from` is the lowest grade of the scale that counts as relevant, or None when it is not known.
    """

    judge: str
    teacher: str
    day: str
    agreement: str = ""
    relevant_from: int | None = None

    @property
    def label(self) -> str:
        """Such as "judge-minilm (taught by qwen3-235b)". A large model that graded by itself has no teacher."""
        return f"{self.judge} (taught by {self.teacher})" if self.teacher else self.judge

    @property
    def sentence(self) -> str:
        """Such as "judged by judge-minilm (taught by qwen3-235b); its agreement with people was not measured"."""
        return "; ".join(filter(None, (f"judged by {self.label}", self.agreement)))

    def to_json(self) -> dict[str, Any]:
        """Return all fields for a program."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class OpenedJudge:
    """A judge that is ready to grade, and a sentence about how well it agrees with people.

    `digest` is the SHA-256 of everything that decides its grades. `learned_queries` has digests of the queries that it
    learned from, and `base` is the name of the encoder that its training began with.
    """

    grader: Grader
    agreement: str = NOT_MEASURED
    digest: str = ""
    learned_queries: tuple[str, ...] = ()
    base: str = ""

    @property
    def source(self) -> GradeSource:
        """What tables and reports say about the grades that it gives today."""
        grader, today = self.grader, date.today().isoformat()
        return GradeSource(grader.name, grader.teacher, today, self.agreement, grader.scale.relevant_from)


def open_recorded_judge(folder: Path) -> OpenedJudge:
    """Open the judge in `folder`, with the agreement that its record holds. Raises SettingsError for a broken folder."""
    from querylift.index_tools.judging.judge_folder import open_judge, read_judge_record

    grader, record = open_judge(folder), read_judge_record(folder)
    digest = compute_json_digest(record.model_dump(mode="json", exclude={"agreement"}))
    return OpenedJudge(grader, describe_agreement(record.agreement), digest, record.learned_queries, record.base)


def describe_agreement(agreement: Agreement | None) -> str:
    """Return the agreement of a judge's record as a sentence. None means that it was not measured."""
    if agreement is None:
        return NOT_MEASURED
    return (
        f"its agreement with people: kappa {agreement.kappa_grades:z.2f} over all grades, "
        f"{agreement.kappa_relevant:z.2f} over relevant or not ({agreement.queries} queries, {agreement.source})"
    )
