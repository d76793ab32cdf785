"""What a curve is made of: lines, their points, and comparisons of points."""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.stats.fixed_sample import VERDICT, PairedComparison, verdict
from policy.config import PolicyKind

WITHOUT_VIDEO: dict[PolicyKind, str] = {"diffusion_policy": "diffusion policy"}
"""The baselines, for people."""


@dataclass(frozen=True)
class Line:
    """What the points of one line share."""

    policy: PolicyKind
    action_free_ratio: float

    @classmethod
    def of(cls, arm: Arm) -> "Line":
        return cls(arm.kind, arm.action_free_ratio)

    @property
    def baseline(self) -> bool:
        return self.policy in WITHOUT_VIDEO

    @property
    def label(self) -> str:
        """In the legend."""
        if self.baseline:
            return f"{WITHOUT_VIDEO[self.policy]} (no video)"
        return f"+ {self.action_free_ratio:g} action-free per demo" if self.action_free_ratio else "demos only"

    def words(self, demo_count: int, with_video: str = "") -> str:
        """One of its points, in a sentence; `with_video` is said of those that have it."""
        if self.baseline:
            return f"{demo_count} demos without video ({WITHOUT_VIDEO[self.policy]})"
        return f"{demo_count} demos{with_video}" + (f" + {self.action_free_ratio:g} action-free per demo" if self.action_free_ratio else "")


@dataclass(frozen=True)
class Point:
    """One place on the curve, all replicates together."""

    policy: PolicyKind
    demo_count: int
    action_free_ratio: float
    success_rate: float
    successes: int
    episodes: int
    errors: int
    low: float
    high: float
    """95 % over the pooled episodes: what the rollouts leave open. It does not hold the spread between training seeds."""
    band_low: float
    band_high: float
    """95 % with the spread between training seeds, where there are several (`stats.hierarchical_draws`)."""
    seeds: int
    missing_seeds: tuple[int, ...]
    """Replicates that other points of the curve have: given up by the search, failed, or not scored yet."""
    by_task: Mapping[str, tuple[int, int]]
    """Task -> successes, episodes."""
    cost: Cost | None
    """Of all its arms; None where one of them has none."""
    early: bool
    """An arm of it was not played to the end of the list, because it was decided before."""


@dataclass(frozen=True)
class Comparison:
    """Two points of a curve on their common episodes."""

    first: str
    second: str
    first_policy: PolicyKind
    second_policy: PolicyKind
    result: PairedComparison
    low: float
    high: float
    """Of the difference, 95 %, with the spread between training seeds where there are several."""
    seeds: int
    """That both have."""
    compared: int
    """Comparisons that answer the same question."""
    test: str
    """That the p-value is of."""
    p_corrected: float
    """For their number (Holm)."""

    @property
    def verdict(self) -> str:
        """A difference is shown if the policies differ and, where there are several seeds, if the seeds bear it out."""
        told = verdict(self.result.difference, self.p_corrected)
        return VERDICT[0] if self.seeds > 1 and self.low <= 0 <= self.high else told

    def __str__(self) -> str:
        r = self.result
        corrected = f", {self.p_corrected:.3g} corrected for {self.compared} comparisons" if self.compared > 1 else ""
        seeds = f"; over {self.seeds} seeds" if self.seeds > 1 else ""
        return (
            f"{self.first} against {self.second}: {r.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}] on {r.episodes} common episodes "
            f"({r.only_first} won only by the first, {r.only_second} only by the second), {self.test} p = {r.p_value:.3g}{corrected}{seeds}: "
            f"{self.verdict}"
        )
