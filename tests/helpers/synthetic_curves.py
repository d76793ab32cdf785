"""Synthetic curves."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.tracking.mlflow_reader import CLIPS, ScoredArm

DEMOS, SEEDS, EPISODES = (10, 20, 40, 80), (0, 1, 2), 100


def scored(
    demos: int, ratio: float, wins: int, episodes: int = 10, seed: int = 0, kind: str = "video_action"
) -> ScoredArm:
    outcomes = {f"Lift-{i}-{i}": i < wins for i in range(episodes)}
    return ScoredArm(Arm(demos, ratio, seed, kind), "protocol", 100, wins, episodes, 0, outcomes)


def with_a_baseline(seeds: Sequence[int] = (0,)) -> Curve:
    """Return a curve of two ratios and a baseline with the same demo counts and ratio 0; all seeds have the
    same outcomes.
    """
    wins = {
        ("video_action", 0.0, 2): 2,
        ("video_action", 0.0, 8): 6,
        ("video_action", 1.0, 2): 8,
        ("video_action", 1.0, 8): 9,
        ("diffusion_policy", 0.0, 2): 1,
        ("diffusion_policy", 0.0, 8): 3,
    }
    return Curve(
        "c",
        tuple(
            scored(demos, ratio, won, seed=seed, kind=kind)
            for seed in seeds
            for (kind, ratio, demos), won in wins.items()
        ),
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


def whole() -> Curve:
    """A small curve with every part of a report: two ratios and a baseline of one seed, two tasks, seeds,
    costs,
    films.
    """
    wins = {
        ("video_action", 0.0, 2): (2, 4, 3),
        ("video_action", 0.0, 8): (7, 9, 8),
        ("video_action", 1.0, 2): (5, 6, 6),
        ("video_action", 1.0, 8): (12, 11, 12),
        ("diffusion_policy", 0.0, 2): (1,),
        ("diffusion_policy", 0.0, 8): (5,),
    }
    arms = []
    for (kind, ratio, demos), replicates in wins.items():
        for seed, won in enumerate(replicates):
            number, ours = len(arms), kind == "video_action"
            arms.append(
                ScoredArm(
                    Arm(demos, ratio, seed, kind),
                    "protocol",
                    100,
                    won,
                    16,
                    int(number == 3),
                    {f"{('Lift', 'Stack')[i % 2]}-{i}-{i}": i < won for i in range(16)},
                    early=number == 1,
                    cost=Cost(train_gpu_s=1800.0, sim_cpu_s=900.0, episodes=16) if number else None,
                    run_id=f"{number:032x}",
                    imagined={
                        step: {
                            "success_rate": won * step / 1600,
                            "video_distance": 1.5 - won / 16,
                            CLIPS: 7.0,
                        }
                        for step in ((50, 100) if ours else ())
                    },
                    films=(
                        {"episode": "Lift-0-0", "task": "Lift", "result": "success", "mean_distance": 0.25},
                        {
                            "episode": "Stack-15-15",
                            "task": "Stack",
                            "result": "failure",
                            "mean_distance": None,
                        },
                    )
                    if ours
                    else (),
                )
            )
    sweep: dict[str, Any] = {
        "policy": {"preset": "tiny"},
        "data": {"episodes": "s3://bucket/episodes"},
        "seeds": [0, 1, 2],
        "search": {"optuna": None},
        "train": {"steps": 100, "mode": "two_stage"},
        "suite": {
            "tasks": ["Lift", "Stack"],
            "episodes": 8,
            "horizon": 100,
            "success": "once",
            "decide": {"threshold": 0.5, "look_every": 8},
        },
        "prices": {"cpu_hour": 0.5, "gpu_hour": 2.0},
    }
    return Curve("whole", tuple(arms), sweep, {"demoscale.code": "abc", "demoscale.data_version": "3"})
