"""Types of a curve's report. The page is made from them, and their JSON is what `demoscale curve --json`,
`Curve.save` and MLflow hold; numbers that are not bounded are null there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cost import Cost
from orchestrator.report.curve_types import Comparison, DemosToReach, Point, Series, estimate_json
from orchestrator.report.demo_worth_report import DemoWorthReport
from orchestrator.report.exchange_report import ExchangeReport
from orchestrator.report.labelled_tasks import LabelReport
from orchestrator.report.reference_lines import ReferenceLine
from orchestrator.report.shift_differences import ShiftDifference
from orchestrator.report.where_report import WhereReport
from orchestrator.stats.claims import Claim
from orchestrator.stats.fixed_sample import Correlation, Interval
from orchestrator.stats.sample_efficiency import Estimate
from orchestrator.stats.selection import SelectionBias
from orchestrator.tracking.mlflow_reader import Checkpoint


@dataclass(frozen=True)
class CostReport:
    """Cost of a point or an arm."""

    gpu_hours: float
    cpu_hours: float
    episodes: int
    control_steps: int
    money: float | None
    """At the sweep's prices; None without prices, or if a resource used has none."""
    text: str

    @classmethod
    def of(cls, cost: Cost, money: float | None) -> "CostReport":
        """Return the report of a cost. money: at the sweep's prices; None or 0 without prices."""
        return cls(
            gpu_hours=cost.gpu_s / 3600,
            cpu_hours=cost.cpu_s / 3600,
            episodes=cost.episodes,
            control_steps=cost.control_steps,
            money=money or None,
            text=str(cost),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return dict(vars(self))


@dataclass(frozen=True)
class ReachReport:
    """Demos with which a line reaches a success rate, in numbers and in words."""

    found: DemosToReach
    text: str

    @property
    def demos(self) -> float | None:
        """Demo count; None if the demo counts tried do not bound its interval on both sides."""
        return self.found.value if self.found.bounded else None

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {
            "rate": self.found.rate,
            "demos": self.demos,
            "low": _bounded(self.found.interval.low),
            "high": _bounded(self.found.interval.high),
            "text": self.text,
        }


@dataclass(frozen=True)
class EquivalenceReport:
    """How many times as many demos the lowest ratio needs as a line, in numbers and in words."""

    factor: Estimate
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {**estimate_json(self.factor), "text": self.text}


@dataclass(frozen=True)
class SeriesReport:
    """One line of the curve."""

    series: Series
    label: str
    area: Estimate | None
    """Area under the line over log demos, as a fraction of the largest possible; None for a line of one
    point, and if the seeds are too few.
    """
    reach: tuple[ReachReport, ...]
    """Empty if the seeds are too few for statements about recipes."""
    equivalence: EquivalenceReport | None
    """None for the lowest ratio of a policy, and if the seeds are too few."""
    claim: Claim
    """What the line's seeds allow to say."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {
            "policy": self.series.policy,
            "action_free_ratio": self.series.action_free_ratio,
            "label": self.label,
            "dashed": self.series.baseline,
            "area": self.area and {"value": self.area.value, **self.area.interval._asdict()},
            "reach": [reach.to_json() for reach in self.reach],
            "worth": self.equivalence and self.equivalence.to_json(),
            "claim": self.claim.to_json(),
        }


@dataclass(frozen=True)
class PointReport:
    """A point of the curve with its cost in hours and money."""

    point: Point
    cost: CostReport | None
    """None if the cost of one of its arms is unknown."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        point = self.point
        return {
            "policy": point.policy,
            "demo_count": point.demo_count,
            "action_free_ratio": point.action_free_ratio,
            "success_rate": point.success_rate,
            "successes": point.successes,
            "episodes": point.episodes,
            "errors": point.errors,
            **point.interval._asdict(),
            "band_low": point.band and point.band.low,
            "band_high": point.band and point.band.high,
            "seeds": point.seeds,
            "missing_seeds": list(point.missing_seeds),
            "by_task": {
                task: {"successes": score.successes, "episodes": score.episodes, **score.interval._asdict()}
                for task, score in point.by_task.items()
            },
            "cost": self.cost and self.cost.to_json(),
            "early": point.early,
        }


@dataclass(frozen=True)
class ArmReport:
    """The checkpoint of an arm that the curve shows."""

    arm: str
    """Name of the arm."""
    policy: str
    demo_count: int
    action_free_ratio: float
    seed: int
    step: int
    successes: int
    episodes: int
    errors: int
    interval: Interval
    """95 %, over its episodes."""
    cost: CostReport | None
    run_id: str
    """Id of its MLflow run."""
    early: bool
    """Whether a rule decided its score before the end of the list."""

    @property
    def series(self) -> Series:
        """Line of the curve that the arm belongs to."""
        return Series(self.policy, self.action_free_ratio)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {
            "arm": self.arm,
            "policy": self.policy,
            "demo_count": self.demo_count,
            "action_free_ratio": self.action_free_ratio,
            "seed": self.seed,
            "step": self.step,
            "successes": self.successes,
            "episodes": self.episodes,
            "errors": self.errors,
            **self.interval._asdict(),
            "cost": self.cost and self.cost.to_json(),
            "run_id": self.run_id,
            "early": self.early,
        }


@dataclass(frozen=True)
class CheckpointVideo:
    """Distances between imagined and executed video of one checkpoint."""

    arm: str
    step: int
    measures: Mapping[str, float]
    """Success rate and `mlflow_reader.VIDEO` by the names of their metrics, as far as they are known."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {"arm": self.arm, "step": self.step, **self.measures}


@dataclass(frozen=True)
class EpisodeVideo:
    """Distance between imagined and executed video of one filmed episode."""

    arm: str
    episode: str
    task: str
    result: str
    """success | failure"""
    distance: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return dict(vars(self))


@dataclass(frozen=True)
class VideoReport:
    """Distances between imagined and executed video, and their correlation with success."""

    measure: str
    points: tuple[CheckpointVideo, ...]
    episodes: tuple[EpisodeVideo, ...]
    correlation: Correlation | None
    """Over checkpoints; None if it is undefined."""
    given_steps: Correlation | None
    """The partial one given training steps; None if it is undefined."""
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {
            "measure": self.measure,
            "points": [point.to_json() for point in self.points],
            "episodes": [episode.to_json() for episode in self.episodes],
            "correlation": self.correlation and {**_correlation_json(self.correlation), "text": self.text},
            "given_steps": self.given_steps and _correlation_json(self.given_steps),
            "text": self.text,
        }


def _correlation_json(found: Correlation) -> dict[str, Any]:
    return {
        "rho": found.rho,
        **found.interval._asdict(),
        "number": found.number,
        "arms": found.clusters,
    }


Fact = tuple[str, str]
"""Name and value."""


@dataclass(frozen=True)
class CurveReport:
    """A curve in numbers and sentences."""

    name: str
    protocol: str
    caption: str
    match: str
    """What arms have in common: `train.match` of the sweep file."""
    answer: tuple[str, ...]
    """Main results of the sweep, one sentence each."""
    claim: Claim
    """What the seeds of all points allow to say."""
    lines: tuple[SeriesReport, ...]
    points: tuple[PointReport, ...]
    arms: tuple[ArmReport, ...]
    comparisons: tuple[Comparison, ...]
    video: VideoReport | None
    """None without any imagined video."""
    protocol_facts: tuple[Fact, ...]
    provenance: tuple[Fact, ...]
    references: tuple[ReferenceLine, ...] = ()
    """Policies that anchor the scale (`suite.references`)."""
    shifts: tuple[ShiftDifference, ...] = ()
    """Differences between shifted and nominal scenes (`suite.shifts`)."""
    checkpoint: Checkpoint = "last"
    """Which checkpoint of every arm is shown."""
    selection_bias: SelectionBias | None = None
    """What choosing the best checkpoints did; None if the last ones are shown."""
    labels: LabelReport | None = None
    """Success on labelled and unlabelled tasks (`data.labelled_tasks`); None if all are labelled."""
    exchange: ExchangeReport | None = None
    """How many videos of each kind a demonstration is worth; None without a line on demonstrations alone."""
    where: WhereReport | None = None
    """Where more demonstrations help; None in a report that was made by hand."""
    demonstrations: DemoWorthReport | None = None
    """Which demonstrations hurt; None if it is not known what the arms learned from."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "caption": self.caption,
            "match": self.match,
            "answer": list(self.answer),
            "claim": self.claim.to_json(),
            "lines": [line.to_json() for line in self.lines],
            "points": [point.to_json() for point in self.points],
            "arms": [arm.to_json() for arm in self.arms],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "video": self.video and self.video.to_json(),
            "protocol_facts": [list(fact) for fact in self.protocol_facts],
            "provenance": [list(fact) for fact in self.provenance],
            "references": [line.to_json() for line in self.references],
            "shifts": [difference.to_json() for difference in self.shifts],
            "checkpoint": self.checkpoint,
            "selection_bias": _bias(self.selection_bias),
            **({"labels": self.labels.to_json()} if self.labels else {}),
            **({"exchange": self.exchange.to_json()} if self.exchange else {}),
            **({"where": self.where.to_json()} if self.where else {}),
            **({"demonstrations": self.demonstrations.to_json()} if self.demonstrations else {}),
        }


def _bias(bias: SelectionBias | None) -> dict[str, float] | None:
    if bias is None:
        return None
    rates = {"chosen_on": bias.chosen_on, "reported": bias.reported, "difference": bias.difference}
    return rates | bias.interval._asdict()


def _bounded(value: float) -> float | None:
    return value if 0 < value < math.inf else None
