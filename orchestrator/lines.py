"""The lines of a curve and what they are called."""

from dataclasses import dataclass

from orchestrator.arms import Arm
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
