"""The plan of a teaching run: what a teacher is asked, how fast, and at what price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from querylift.plugin.errors import SettingsError
from querylift.trainer.chat.endpoint_plan import EndpointPlan

TEACHER_PROMPT_VERSION = "teacher-2"
"""Part of every request's key. Change it with the wording in `querylift.trainer.teaching.prompts`."""
ZERO_SHOT, FEW_SHOT = "zero-shot", "few-shot"
PROMPT_METHODS = (ZERO_SHOT, FEW_SHOT)


@dataclass(frozen=True, slots=True)
class TeachingPlan(EndpointPlan):
    """What a teacher is asked, and how fast.

    `model`, `max_tokens` and the fields from `prompts` to `seed` decide which candidates come out. The others decide only the
    speed, the number and the price. Raises SettingsError when a value is out of range.
    """

    prompts: tuple[str, ...] = (ZERO_SHOT,)
    samples: int = 1
    """Answers to each prompt at each temperature. At temperature 0 there is only one."""
    temperatures: tuple[float, ...] = (0.7,)
    shots: int = 4
    """Examples in a few-shot prompt."""
    seed: int = 0

    positive_fields: ClassVar[tuple[str, ...]] = ("samples", "shots", *EndpointPlan.positive_fields)

    def __post_init__(self) -> None:
        if not self.prompts or set(self.prompts) - set(PROMPT_METHODS):
            names = ", ".join(self.prompts) or "none"
            raise SettingsError(f"prompts are {names}; choose among {', '.join(PROMPT_METHODS)}")
        if not self.temperatures or not all(0 <= temperature <= 2 for temperature in self.temperatures):
            raise SettingsError(f"temperatures are {list(self.temperatures)}; name at least one, from 0 to 2")
        # `super()` without arguments does not work in a dataclass with slots.
        EndpointPlan.__post_init__(self)

    def to_manifest(self) -> dict[str, Any]:
        """Return the settings that decide which candidates come out."""
        names = ("model", "prompts", "samples", "temperatures", "max_tokens", "shots")
        extra_body = self.build_extra_body()
        extra = {"extra_body": extra_body} if extra_body else {}
        return {name: getattr(self, name) for name in names} | {"prompt_version": TEACHER_PROMPT_VERSION, **extra}
