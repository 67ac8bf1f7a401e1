"""How fast the requests of a run are answered."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Throughput(NamedTuple):
    """The texts that a run wrote, and the seconds that it took."""

    text_count: int
    seconds: float

    @property
    def texts_per_second(self) -> float:
        """The rate, or 0 when the run took no time."""
        return self.text_count / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, float]:
        """Return the entries for a manifest."""
        return {"seconds": round(self.seconds, 2), "per_second": round(self.texts_per_second, 2)}

    def format_rate(self, name: str) -> str:
        """Return the rate for a person: "12.3 candidates per second". `name` is what is counted."""
        return f"{self.texts_per_second:,.1f} {name} per second"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedResult:
    """The counts of a run, in the fields of a subclass, and how fast it was. Two runs of equal counts are equal."""

    throughput: Throughput = field(default=Throughput(0, 0.0), compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the counts and the rate as a JSON object for the manifest."""
        counts = asdict(self)
        del counts["throughput"]
        return counts | self.throughput.to_json()
