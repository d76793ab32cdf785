"""Recording of scripted demonstrations: an expert plays a scene under disturbance; its observations and
intended actions are recorded.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_workers.demos.experts import expert_for
from sim_workers.envs.robosuite import SimEnv

LINGER = 4  # control steps recorded from the first success on, so that the film shows it


@dataclass(frozen=True)
class Demonstration:
    """Scene of a demonstration, and its disturbance: standard deviation of the executed action from the
    expert's, in action units.
    """

    task: str
    seed: int
    disturbance: float

    @property
    def episode_id(self) -> str:
        """Id of the episode in the store: task and seed."""
        return f"{self.task}-{self.seed:06d}"


@dataclass(frozen=True)
class Recording:
    """Demonstration of L control steps."""

    frames: dict[str, npt.NDArray[np.uint8]]
    """Pictures per camera, (L, H, W, 3)."""
    proprio: npt.NDArray[np.float32]
    """Proprioceptive states, (L, P)."""
    action: npt.NDArray[np.float32]
    """The expert's actions before the disturbance, (L, A)."""
    success: bool


def demonstrate(env: SimEnv, demonstration: Demonstration) -> Recording:
    """Play and record one demonstration; a function of the demonstration alone.

    The hand's position and turn are disturbed, the gripper is not. The recorded action is the expert's own,
    so a learner sees recoveries from states that a perfect expert never visits (DART: Laskey et al. 2017,
    arXiv 1703.09327). Raises EpisodeFaultError like `SimEnv.step` and `reset`.
    """
    rng = np.random.default_rng([demonstration.seed, 1])
    env.reset(demonstration.seed)
    expert = expert_for(demonstration.task)
    frames: dict[str, list[Any]] = {camera: [] for camera in env.contract.cameras}
    proprio: list[Any] = []
    actions: list[Any] = []
    lingered = 0
    while len(actions) < expert.horizon and lingered < LINGER:
        for camera, picture in env.pictures().items():
            frames[camera].append(picture)
        proprio.append(env.proprio)
        action = expert.act(env.state)
        actions.append(action)
        executed = action.copy()
        executed[:3] += demonstration.disturbance * rng.standard_normal(3)
        executed[5] += demonstration.disturbance / 2 * rng.standard_normal()
        env.step(executed)
        lingered = lingered + 1 if env.succeeded or lingered else 0
    stacked = {camera: np.stack(pictures) for camera, pictures in frames.items()}
    return Recording(stacked, np.stack(proprio), np.stack(actions).astype(np.float32), env.succeeded)
