"""Parts of a curve: lines, their points, and comparisons of points."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

from orchestrator.config.arms import Arm, in_demos
from orchestrator.cost import Cost
from orchestrator.stats.claims import Claim
from orchestrator.stats.fixed_sample import Interval, PairedComparison, PairedMeans
from orchestrator.stats.sample_efficiency import Estimate
from policy.config import DIFFUSION_POLICY, VIDEO_ACTION

WITHOUT_VIDEO = {DIFFUSION_POLICY: "diffusion policy"}
"""Display names of the baselines."""
OWN = "own"
"""Value of `train.match` of a curve of several sweeps that were trained by different rules."""


@dataclass(frozen=True)
class Series:
    """Policy and action-free ratio, which the points of one line share."""

    policy: str
    """Name of the sweep's line (`policy.lines`)."""
    action_free_ratio: float

    @classmethod
    def of(cls, arm: Arm) -> "Series":
        """Return the series that an arm's point belongs to."""
        return cls(arm.kind, arm.action_free_ratio)

    @property
    def baseline(self) -> bool:
        """Whether the policy is a baseline without video."""
        return self.policy in WITHOUT_VIDEO

    @property
    def label(self) -> str:
        """Name of the line in legends where the only policies are `video_action` and the baseline."""
        if self.baseline:
            return f"{WITHOUT_VIDEO[self.policy]} (no video)"
        return self._action_free or "demos only"

    @property
    def named_label(self) -> str:
        """Name of the line in legends among other policies."""
        return f"{self.policy} {self._action_free}".rstrip()

    def words(self, demo_count: int, with_video: str = "") -> str:
        """Return one of its points in words where the only policies are `video_action` and the baseline;
        `with_video` is appended for policies with video.
        """
        if self.baseline:
            return f"{in_demos(demo_count)} without video ({WITHOUT_VIDEO[self.policy]})"
        return f"{in_demos(demo_count)}{with_video} {self._action_free}".rstrip()

    def named_words(self, demo_count: int) -> str:
        """Return one of its points in words among other policies."""
        return f"{in_demos(demo_count)}, {self.named_label}"

    @property
    def _action_free(self) -> str:
        return f"+ {self.action_free_ratio:g} action-free per demo" if self.action_free_ratio else ""


Cell = tuple[Series, int]
"""Line and demo count of a point."""


def lines_of(arms: Iterable[Arm], sweep: Mapping[str, Any]) -> list[Series]:
    """Return the lines of a curve, those of each policy by ratio; policies in the order of the sweep file,
    without `policy.lines` the baselines last.

    sweep: the resolved sweep file.
    """
    order = {line["name"]: place for place, line in enumerate(policy_lines(sweep))}
    return sorted(
        {Series.of(arm) for arm in arms},
        key=lambda line: (
            order.get(line.policy, len(order)),
            line.baseline,
            line.policy,
            line.action_free_ratio,
        ),
    )


def policy_lines(sweep: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return `policy.lines` of a resolved sweep file; empty if it has none."""
    lines: list[Mapping[str, Any]] = sweep.get("policy", {}).get("lines") or []
    return lines


def are_named(lines: Iterable[Series]) -> bool:
    """Return whether lines are called by the names of their policies: there are others than `video_action`
    and the baseline.
    """
    return any(line.policy != VIDEO_ACTION and not line.baseline for line in lines)


def compared_cells(lines: Sequence[Series], counts: Sequence[int]) -> list[list[tuple[Cell, Cell]]]:
    """Return the pairs of points that are compared, one list per question: most demos with fewest on every
    line; and at every demo count, every ratio with the policy's lowest, and every two policies: at equal
    ratios, or at all if one has a single ratio.

    lines: those of one policy next to each other, by ratio. counts: demo counts, sorted. P-values are
    corrected within each question, of the first two within each policy, so that one does not depend on the
    others.
    """
    policies = [[*own] for _, own in groupby(lines, key=lambda line: line.policy)]
    families = list[list[tuple[Cell, Cell]]]()
    for mine in policies:
        families += [
            [((line, counts[-1]), (line, counts[0])) for line in mine if len(counts) > 1],
            [((line, count), (mine[0], count)) for count in counts for line in mine[1:]],
        ]
    families.append(
        [
            ((line, count), (other, count))
            for count in counts
            for mine, others in combinations(policies, 2)
            for line in mine
            for other in others
            if line.action_free_ratio == other.action_free_ratio or 1 in (len(mine), len(others))
        ]
    )
    return families


@dataclass(frozen=True)
class TaskScore:
    """Score of a point on one task."""

    successes: int
    episodes: int
    interval: Interval
    """95 %, over the pooled episodes."""


@dataclass(frozen=True)
class Point:
    """One point of the curve, pooled over replicates."""

    policy: str
    demo_count: int
    action_free_ratio: float
    success_rate: float
    successes: int
    episodes: int
    errors: int
    interval: Interval
    """95 %, over the pooled episodes, without the spread between training seeds."""
    band: Interval | None
    """95 %, of the recipe: with the spread between training seeds (`hierarchical_draws`). None if the seeds
    are too few for it (`Claim`).
    """
    seeds: int
    missing_seeds: tuple[int, ...]
    """Seeds that only other points of the curve have: pruned by the search, failed, or not scored yet."""
    by_task: Mapping[str, TaskScore]
    cost: Cost | None
    """Cost of all its arms; None if the cost of one is unknown."""
    early: bool
    """Whether a rule decided one of its arms before the end of the list."""

    @property
    def series(self) -> Series:
        """Line of the curve that the point belongs to."""
        return Series(self.policy, self.action_free_ratio)


@dataclass(frozen=True)
class DemosToReach:
    """Number of demos with which a line reaches a success rate."""

    series: Series
    rate: float
    value: float
    """Interpolated between the demo counts tried; 0: the fewest tried suffice, infinity: more than were
    tried are needed.
    """
    interval: Interval
    """95 %; bounds as `value`."""

    @property
    def reached(self) -> bool:
        """Whether the line reaches the rate with the demo counts tried."""
        return self.value < math.inf

    @property
    def bounded(self) -> bool:
        """Whether the demo counts tried bound the interval on both sides. If not, the value is no result:
        the next training, or another processor's rounding, moves it.
        """
        return self.interval.low > 0 and self.interval.high < math.inf


@dataclass(frozen=True)
class Comparison:
    """Two points of a curve on their common episodes."""

    first: str
    second: str
    first_policy: str
    second_policy: str
    result: PairedComparison
    interval: Interval
    """95 %, of the difference between the recipes, with the spread between training seeds; between the
    trained policies if the seeds are too few (`claim`).
    """
    seeds: int
    """Number of seeds that both points have."""
    compared: int
    """Number of comparisons of the same question."""
    test: str
    """Name of the test of the p-value."""
    p_corrected: float
    """P-value corrected for the number of comparisons (Holm)."""

    @property
    def claim(self) -> Claim:
        """What its seeds allow to say."""
        return Claim(self.seeds)

    @property
    def verdict(self) -> str:
        """Verdict on the corrected p-value, about the recipes or about the trained policies."""
        return self.claim.verdict(self.result.difference, self.p_corrected, self.interval)

    def __str__(self) -> str:
        r, (low, high) = self.result, self.interval
        corrected = (
            f", {self.p_corrected:.3g} corrected for {self.compared} comparisons" if self.compared > 1 else ""
        )
        seeds = f"; over {self.seeds} seeds" if self.seeds > 1 else "; of one training each"
        return (
            f"{self.first} against {self.second}: {r.difference:+.2f} [{low:+.2f}, {high:+.2f}] on"
            f" {r.episodes} common episodes ({r.only_first} won only by the first, {r.only_second} only by"
            f" the second), {self.test} p = {r.p_value:.3g}{corrected}{seeds}: {self.verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON-safe object."""
        result = self.result
        return {
            "first": self.first,
            "second": self.second,
            "first_policy": self.first_policy,
            "second_policy": self.second_policy,
            **self.interval._asdict(),
            "seeds": self.seeds,
            "compared": self.compared,
            "test": self.test,
            "p_corrected": self.p_corrected,
            "difference": result.difference,
            "episodes": result.episodes,
            "only_first": result.only_first,
            "only_second": result.only_second,
            "p_value": result.p_value,
            "verdict": self.verdict,
            "about": self.claim.about,
            "text": str(self),
        }


@dataclass(frozen=True)
class TaskError:
    """Action error of a point on one task."""

    error: float
    episodes: int
    interval: Interval
    """95 %, Student's t over episodes."""


@dataclass(frozen=True)
class ErrorPoint:
    """One point of the curve of action errors on held-out episodes, averaged over replicates. Lower is
    better.
    """

    policy: str
    demo_count: int
    action_free_ratio: float
    error: float
    """Mean over episodes and replicates, in standard deviations of the recorded actions."""
    interval: Interval
    """95 %, Student's t over episodes, without the spread between training seeds."""
    band: Interval | None
    """95 %, of the recipe: with the spread between training seeds (`hierarchical_draws`). None if the seeds
    are too few for it (`Claim`).
    """
    constant: float
    """Error of the mean action of the held-out episodes."""
    episodes: int
    """Number of held-out episodes."""
    seeds: int
    missing_seeds: tuple[int, ...]
    """As for `Point`."""
    dimensions: tuple[float | None, ...]
    """Mean error per action dimension; None for one without unit."""
    loss: float | None
    """Mean loss of the policy's actions; None for a policy without one."""
    by_task: Mapping[str, TaskError]
    cost: Cost | None
    """Cost of all its arms; None if the cost of one is unknown."""

    @property
    def series(self) -> Series:
        """Line of the curve that the point belongs to."""
        return Series(self.policy, self.action_free_ratio)


@dataclass(frozen=True)
class ErrorComparison:
    """Action errors of two points of a curve on the held-out episodes, which are common to all arms."""

    first: str
    second: str
    first_policy: str
    second_policy: str
    result: PairedMeans
    interval: Interval
    """95 %, of the difference between the recipes, with the spread between training seeds; between the
    trained policies if the seeds are too few (`claim`).
    """
    seeds: int
    """Number of seeds that both points have."""
    compared: int
    """Number of comparisons of the same question."""
    p_corrected: float
    """P-value corrected for the number of comparisons (Holm)."""

    @property
    def claim(self) -> Claim:
        """What its seeds allow to say."""
        return Claim(self.seeds)

    @property
    def verdict(self) -> str:
        """As for `Comparison`; a lower error is better."""
        return self.claim.verdict(-self.result.difference, self.p_corrected, self.interval)

    def __str__(self) -> str:
        r, (low, high) = self.result, self.interval
        corrected = (
            f", {self.p_corrected:.3g} corrected for {self.compared} comparisons" if self.compared > 1 else ""
        )
        seeds = f"; over {self.seeds} seeds" if self.seeds > 1 else "; of one training each"
        return (
            f"{self.first} against {self.second}: action error {r.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            f" on {r.episodes} held-out episodes (lower on {r.lower} of them), paired t-test p ="
            f" {r.p_value:.3g}{corrected}{seeds}: {self.verdict}"
        )


def factor_in_words(value: float) -> str:
    """Return a factor or a number of videos with two digits; `unbounded`, or a dash if it is not known."""
    if math.isnan(value):
        return "–"  # noqa: RUF001
    return "unbounded" if value == math.inf else f"{value:.2g}" if value < 100 else f"{value:.0f}"


def factors_in_words(interval: Interval) -> str:
    """Return an interval of factors likewise: `2 to 5`, `2 or more`."""
    low, high = map(factor_in_words, interval)
    return f"{low} or more" if interval.high == math.inf else f"{low} to {high}"


def bounds_json(interval: Interval) -> dict[str, float | None]:
    """Return the bounds, JSON-safe: null for one that is not bounded or not known."""
    return {name: bound if math.isfinite(bound) else None for name, bound in interval._asdict().items()}


def estimate_json(estimate: Estimate) -> dict[str, float | None]:
    """Return a number and its bounds, JSON-safe likewise."""
    value = estimate.value
    return {"value": value if math.isfinite(value) else None, **bounds_json(estimate.interval)}
