"""Parts of a curve: lines, their points, and comparisons of points."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.stats.fixed_sample import VERDICT, Interval, PairedComparison, verdict
from policy.config import DIFFUSION_POLICY

WITHOUT_VIDEO = {DIFFUSION_POLICY: "diffusion policy"}
"""Display names of the baselines."""


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
            return f"{demo_count} demos without video ({WITHOUT_VIDEO[self.policy]})"
        return f"{demo_count} demos{with_video} {self._action_free}".rstrip()

    def named_words(self, demo_count: int) -> str:
        """Return one of its points in words among other policies."""
        return f"{demo_count} demos, {self.named_label}"

    @property
    def _action_free(self) -> str:
        return f"+ {self.action_free_ratio:g} action-free per demo" if self.action_free_ratio else ""


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
    first_policy: str
    second_policy: str
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
