"""Arms: what a sweep varies, spelled out one by one."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from policy.config import VIDEO_ACTION


@dataclass(frozen=True, order=True)
class Arm:
    """One policy to train: demo count x action-free ratio x seed, of one line."""

    demo_count: int
    action_free_ratio: float
    seed: int
    kind: str = VIDEO_ACTION
    """Name of its line (`policy.lines`)."""

    @property
    def name(self) -> str:
        """For people: `demos-50_ratio-1_seed-0`, after the name of any other line than `video_action`."""
        kind = "" if self.kind == VIDEO_ACTION else f"{self.kind}_"
        return f"{kind}demos-{self.demo_count}_ratio-{self.action_free_ratio:g}_seed-{self.seed}"

    def arm_id(self, training: str) -> str:
        """Return the name and a hash of everything that shapes the trained policy: the arm, and `training`,
        the fingerprint of the rest.
        """
        text = json.dumps([self.demo_count, self.action_free_ratio, self.seed, self.kind, training])
        return f"{self.name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def in_demos(demo_count: int) -> str:
    """Return a demo count in words: `1 demo`, `4 demos`."""
    return f"{demo_count} demo{'' if demo_count == 1 else 's'}"


def expand_grid(
    demo_counts: tuple[int, ...],
    action_free_ratios: tuple[float, ...],
    seeds: tuple[int, ...],
    demos_only: tuple[str, ...] = (),
    swept: tuple[str, ...] = (VIDEO_ACTION,),
) -> list[Arm]:
    """Every combination, largest training sets first: a sweep that is going to fail fails early, and the
    longest wait starts soonest.

    demos_only: lines that cannot learn from action-free episodes, so that they have one arm per demo count
    and seed. swept: lines with one arm per ratio too.
    """
    ratios = dict.fromkeys(swept, action_free_ratios) | dict.fromkeys(demos_only, (0.0,))
    return sorted(
        (Arm(n, r, s, kind) for kind, own in ratios.items() for n in demo_counts for r in own for s in seeds),
        reverse=True,
    )


def matching_names(arm: Arm, against: str) -> set[str]:
    """Return the names that `against` may stand for; a ratio or seed that it omits is the arm's own."""
    seed = f"_seed-{arm.seed}"
    return {against, f"{against}{seed}", f"{against}_ratio-{arm.action_free_ratio:g}{seed}"}


def reference_of(arm: Arm, against: str, arms: Iterable[Arm]) -> Arm | None:
    """Return the arm that another is compared with; None if there is none, or if it is that arm itself."""
    return next(
        (other for other in arms if other.name in matching_names(arm, against) and other != arm), None
    )


def is_reference(arm: Arm, against: str) -> bool:
    """Whether other arms are compared with it: it is played whole, and first."""
    return bool(against) and arm.name in matching_names(arm, against)
