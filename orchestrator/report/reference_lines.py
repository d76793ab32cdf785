"""References of a curve: horizontal lines that anchor its scale. No comparison counts them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.stats.fixed_sample import Interval, blaker
from orchestrator.tracking.references import ReferenceScore

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve


@dataclass(frozen=True)
class ReferenceLine:
    """A reference with its interval."""

    score: ReferenceScore
    interval: Interval
    """95 %, Blaker's: references are always played whole."""

    @property
    def text(self) -> str:
        """Name with numerator and denominator."""
        return f"{self.score.label} {self.score.successes}/{self.score.episodes}"

    def to_json(self) -> dict[str, Any]:
        """Return the line as a JSON-safe object."""
        return {
            "name": self.score.name,
            "label": self.score.label,
            "success_rate": self.score.success_rate,
            "successes": self.score.successes,
            "episodes": self.score.episodes,
            "errors": self.score.errors,
            **self.interval._asdict(),
        }


def reference_lines(curve: "Curve") -> tuple[ReferenceLine, ...]:
    """Return the lines of the suite's references, in the order of the sweep file."""
    return tuple(ReferenceLine(one, blaker(one.successes, one.episodes)) for one in curve.references)
