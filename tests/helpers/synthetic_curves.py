"""Synthetic curves."""

import itertools
from typing import Any

import numpy as np

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.tracking.mlflow_reader import CLIPS, ScoredArm
from policy.config import PolicyKind

DEMOS, SEEDS, EPISODES = (10, 20, 40, 80), (0, 1, 2), 100


def scored(
    demos: int, ratio: float, wins: int, episodes: int = 10, seed: int = 0, kind: PolicyKind = "video_action"
) -> ScoredArm:
    outcomes = {f"Lift-{i}-{i}": i < wins for i in range(episodes)}
    return ScoredArm(Arm(demos, ratio, seed, kind), "protocol", 100, wins, episodes, 0, outcomes)


def with_a_baseline() -> Curve:
    """Return a curve of two ratios and a baseline with the same demo counts and ratio 0."""
    ours = (scored(2, 0.0, 2), scored(8, 0.0, 6), scored(2, 1.0, 8), scored(8, 1.0, 9))
    return Curve(
        "c", (*ours, scored(2, 0.0, 1, kind="diffusion_policy"), scored(8, 0.0, 3, kind="diffusion_policy"))
    )


def several(gain: float, noise: float, missing: tuple[int, ...] = (), seed: int = 0) -> Curve:
    """Return a curve of two ratios in which action-free video is worth `gain` doublings of the demos. noise:
    between trainings, on a logit scale.
    """
    rng = np.random.default_rng(seed)
    hard = rng.standard_normal(EPISODES)
    arms = []
    for ratio, replicate, demos in itertools.product((0.0, 1.0), SEEDS, DEMOS):
        odds = np.log2(demos / 10) - 1.5 + gain * ratio + noise * rng.standard_normal() - hard
        won = rng.random(EPISODES) < 1 / (1 + np.exp(-odds))
        outcomes = {f"Lift-{10**6 + i}-{10**6 + i}": bool(own) for i, own in enumerate(won)}
        imagined = {
            step: {
                "success_rate": won.mean() * step / 100,
                "video_distance": 1 - step / 100 + rng.random() / 10,
                CLIPS: 7.0,
            }
            for step in (50, 100)
        }
        cost = Cost(sim_cpu_s=3600.0, episodes=EPISODES)
        if not (replicate in missing and demos == 80):
            arms.append(
                ScoredArm(
                    Arm(demos, ratio, replicate),
                    "p",
                    100,
                    int(won.sum()),
                    EPISODES,
                    0,
                    outcomes,
                    cost=cost,
                    imagined=imagined,
                )
            )
    sweep: dict[str, Any] = {
        "policy": {"preset": "tiny"},
        "train": {"steps": 100, "mode": "two_stage"},
        "suite": {"tasks": ["Lift"], "episodes": EPISODES, "horizon": 100, "success": "once"},
        "prices": {"cpu_hour": 0.5},
    }
    return Curve("several", tuple(sorted(arms, key=lambda arm: arm.arm)), sweep, {"demoscale.code": "abc"})
