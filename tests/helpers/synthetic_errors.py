"""Synthetic curves of action errors on held-out episodes."""

import numpy as np

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.data.action_error import ActionError
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.tracking.mlflow_reader import MeasuredArm

EPISODES = 16


def arm_of(demos: int, ratio: float, seed: int, kind: str = "video_action", off: float = 0.0) -> MeasuredArm:
    """Return an arm whose error falls with demos, on episodes of two tasks that differ in difficulty."""
    errors = []
    for number in range(EPISODES):
        rng = np.random.default_rng([number, demos, seed])
        error = 0.3 + 2 / demos + 0.02 * number + 0.05 * seed + off + 0.02 * rng.normal()
        errors.append(
            ActionError(
                f"e{number:02d}",
                ("pick", "place")[number % 2],
                40,
                10,
                error,
                (error, None, error),
                0.8,
                loss=error / 2,
            )
        )
    return MeasuredArm(
        Arm(demos, ratio, seed, kind),  # type: ignore[arg-type]
        "protocol",
        100,
        tuple(errors),
        Cost(train_cpu_s=3600),
    )


def held_out() -> HeldOutCurve:
    """Return a curve of two ratios and a baseline, two demo counts, three seeds and two tasks."""
    arms = [arm_of(demos, ratio, seed) for demos in (5, 20) for ratio in (0.0, 1.0) for seed in (0, 1, 2)]
    arms += [arm_of(demos, 0.0, seed, "diffusion_policy", 0.1) for demos in (5, 20) for seed in (0, 1, 2)]
    sweep = {"train": {"steps": 100}, "policy": {"preset": "tiny"}, "prices": {"cpu_hour": 2.0}}
    return HeldOutCurve("drawer", tuple(arms), sweep, {"demoscale.data": "0f"}, ("x", "y", "grip"))
