"""Comparison of robosuite's control step with this project's faster one: environments, random actions,
recorded trajectories.
"""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_workers.demos.recorder import Demonstration, demonstrate
from sim_workers.envs.render import choose_backend
from sim_workers.envs.robosuite import CONTROL_HZ, SimEnv, contract
from sim_workers.envs.tasks import hands

Array = npt.NDArray[np.float64]


def make_robosuite(task: str, **changes: Any) -> Any:
    """Create a plain robosuite environment with one or two Pandas, without a GL context; `changes` are
    arguments of `robosuite.make`.
    """
    choose_backend()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    import robosuite

    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    asked = {
        "robots": ["Panda"] * len(hands(task)),
        "control_freq": CONTROL_HZ,
        "hard_reset": False,
        "seed": 0,
    } | changes
    return robosuite.make(
        task,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        ignore_done=True,
        renderer="mujoco",
        **asked,
    )


def reset_scene(env: Any, seed: int) -> Any:
    """Reset the environment to the scene of `seed`; return its observations."""
    env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    return env.reset()


def physics_state(env: Any) -> Array:
    """Return joint positions, velocities, controls and time of the simulation as one vector."""
    data = env.sim.data
    everything: Array = np.concatenate([data.qpos, data.qvel, data.ctrl, [data.time]])
    return everything


def flatten_observations(observations: dict[str, Any]) -> Array:
    """Concatenate the values of all observations to one vector."""
    everything: Array = np.concatenate([np.ravel(value) for value in observations.values()])
    return everything


def random_actions(rng: np.random.Generator, steps: int, values: int) -> Array:
    """Draw (steps, values) actions in [-1, 1]: a new direction every eight steps, with noise on every
    step.
    """
    ways = np.repeat(rng.uniform(-1, 1, (-(-steps // 8), values)), 8, axis=0)[:steps]
    actions: Array = np.clip(ways + rng.normal(0, 0.3, (steps, values)), -1, 1)
    return actions


class TracedEnv(SimEnv):
    """A simulator of this project, without cameras, that records the physics state and the observations after
    every step.
    """

    def __init__(self, task: str) -> None:
        super().__init__(task, contract((), (64, 64), "fast"))
        self.kinds = {"ours": self._fast, "robosuite": None}
        self.trace: list[Array] = []

    def play(self, kind: str, demonstration: Demonstration) -> tuple[Array, bool]:
        """Play one demonstration with one kind of control step; return the (steps, values) trajectory and
        whether it succeeded.
        """
        self._fast, self.trace = self.kinds[kind], []
        success = demonstrate(self, demonstration).success
        return np.stack(self.trace), success

    def step(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Apply an action and append the state and the observations to `trace`."""
        super().step(action)
        self.trace.append(np.concatenate([physics_state(self._env), flatten_observations(self.state)]))
