"""Parts of a curve: lines, their points, and comparisons of points."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.stats.fixed_sample import VERDICT, Interval, PairedComparison, PairedMeans, verdict
from policy.config import PolicyKind

WITHOUT_VIDEO: dict[PolicyKind, str] = {"diffusion_policy": "diffusion policy"}
"""Display names of the baselines."""


@dataclass(frozen=True)
class Series:
    """Policy and action-free ratio, which the points of one line share."""

    policy: PolicyKind
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
        """Name of the line in legends."""
        if self.baseline:
            return f"{WITHOUT_VIDEO[self.policy]} (no video)"
        return (
            f"+ {self.action_free_ratio:g} action-free per demo" if self.action_free_ratio else "demos only"
        )

    def words(self, demo_count: int, with_video: str = "") -> str:
        """Return one of its points in words; `with_video` is appended for policies with video."""
        if self.baseline:
            return f"{demo_count} demos without video ({WITHOUT_VIDEO[self.policy]})"
        return f"{demo_count} demos{with_video}" + (
            f" + {self.action_free_ratio:g} action-free per demo" if self.action_free_ratio else ""
        )


Cell = tuple[Series, int]
"""Line and demo count of a point."""


def lines_of(arms: Iterable[Arm]) -> list[Series]:
    """Return the lines of a curve: those with video by ratio, then the baselines."""
    return sorted(
        {Series.of(arm) for arm in arms},
        key=lambda line: (line.baseline, line.policy, line.action_free_ratio),
    )


def compared_cells(lines: Sequence[Series], counts: Sequence[int]) -> list[list[tuple[Cell, Cell]]]:
    """Return the pairs of points that are compared, one list per question: most demos with fewest on every
    line; and at every demo count, every ratio with the lowest and every line with every baseline.

    counts: demo counts, sorted. P-values are corrected within each question, so that one does not depend on
    the others.
    """
    ours = [line for line in lines if not line.baseline]
    baselines = [line for line in lines if line.baseline]
    return [
        [((line, counts[-1]), (line, counts[0])) for line in ours if len(counts) > 1],
        [((line, count), (ours[0], count)) for count in counts for line in ours[1:]],
        [((line, counts[-1]), (line, counts[0])) for line in baselines if len(counts) > 1],
        [((line, count), (baseline, count)) for count in counts for line in ours for baseline in baselines],
    ]


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

    policy: PolicyKind
    demo_count: int
    action_free_ratio: float
    success_rate: float
    successes: int
    episodes: int
    errors: int
    interval: Interval
    """95 %, over the pooled episodes, without the spread between training seeds."""
    band: Interval
    """95 %, with the spread between training seeds, if there are several (`hierarchical_draws`)."""
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


@dataclass(frozen=True)
class Comparison:
    """Two points of a curve on their common episodes."""

    first: str
    second: str
    first_policy: PolicyKind
    second_policy: PolicyKind
    result: PairedComparison
    interval: Interval
    """95 %, of the difference, with the spread between training seeds if there are several."""
    seeds: int
    """Number of seeds that both points have."""
    compared: int
    """Number of comparisons of the same question."""
    test: str
    """Name of the test of the p-value."""
    p_corrected: float
    """P-value corrected for the number of comparisons (Holm)."""

    @property
    def verdict(self) -> str:
        """Verdict on the corrected p-value; with several seeds, no difference unless the interval excludes 0
        too.
        """
        told = verdict(self.result.difference, self.p_corrected)
        return VERDICT[0] if self.seeds > 1 and self.interval.low <= 0 <= self.interval.high else told

    def __str__(self) -> str:
        r, (low, high) = self.result, self.interval
        corrected = (
            f", {self.p_corrected:.3g} corrected for {self.compared} comparisons" if self.compared > 1 else ""
        )
        seeds = f"; over {self.seeds} seeds" if self.seeds > 1 else ""
        return (
            f"{self.first} against {self.second}: {r.difference:+.2f} [{low:+.2f}, {high:+.2f}] on"
            f" {r.episodes} common episodes ({r.only_first} won only by the first, {r.only_second} only by"
            f" the second), {self.test} p = {r.p_value:.3g}{corrected}{seeds}: {self.verdict}"
        )


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

    policy: PolicyKind
    demo_count: int
    action_free_ratio: float
    error: float
    """Mean over episodes and replicates, in standard deviations of the recorded actions."""
    interval: Interval
    """95 %, Student's t over episodes, without the spread between training seeds."""
    band: Interval
    """95 %, with the spread between training seeds, if there are several (`hierarchical_draws`)."""
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
    first_policy: PolicyKind
    second_policy: PolicyKind
    result: PairedMeans
    interval: Interval
    """95 %, of the difference, with the spread between training seeds if there are several."""
    seeds: int
    """Number of seeds that both points have."""
    compared: int
    """Number of comparisons of the same question."""
    p_corrected: float
    """P-value corrected for the number of comparisons (Holm)."""

    @property
    def verdict(self) -> str:
        """As for `Comparison`; a lower error is better."""
        told = verdict(-self.result.difference, self.p_corrected)
        return VERDICT[0] if self.seeds > 1 and self.interval.low <= 0 <= self.interval.high else told

    def __str__(self) -> str:
        r, (low, high) = self.result, self.interval
        corrected = (
            f", {self.p_corrected:.3g} corrected for {self.compared} comparisons" if self.compared > 1 else ""
        )
        seeds = f"; over {self.seeds} seeds" if self.seeds > 1 else ""
        return (
            f"{self.first} against {self.second}: action error {r.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            f" on {r.episodes} held-out episodes (lower on {r.lower} of them), paired t-test p ="
            f" {r.p_value:.3g}{corrected}{seeds}: {self.verdict}"
        )
