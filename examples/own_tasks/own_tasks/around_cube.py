"""Eight tasks of robosuite that differ in sentence and goal alone: rest the hand to one side of the cube.

North is away from the robot, east on its right. No place counts for two tasks, and every sentence has a word
of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_workers.demos.experts import METRES_PER_UNIT
from sim_workers.envs.plugins import Task, robosuite_task

Array = npt.NDArray[np.float64]

OFFSET_M = 0.12
"""Distance of a place from the middle of the cube along x, along y, or along both."""
HEIGHT_M = 0.07
"""Height of a place above the middle of the cube."""
TOLERANCE_M = 0.045
"""Distance of the hand from its place below which it has arrived."""
DIRECTIONS = {
    "North": (1, 0),
    "NorthEast": (1, -1),
    "East": (0, -1),
    "SouthEast": (-1, -1),
    "South": (-1, 0),
    "SouthWest": (-1, 1),
    "West": (0, 1),
    "NorthWest": (1, 1),
}
"""Signs of a place's offset from the cube along x and along y of the world, by direction."""


def place(direction: str, cube: Array) -> Array:
    """Return the place of the hand, (3,) (m, world), for a cube whose middle is at `cube`."""
    x, y = DIRECTIONS[direction]
    found: Array = cube + np.array([OFFSET_M * x, OFFSET_M * y, HEIGHT_M])
    return found


class AroundCubeExpert:
    """Scripted expert: the straight way to the place, with open fingers."""

    horizon = 60
    gain = 1.2
    """Share of the remaining way that is commanded: the arm lags behind its target."""

    def __init__(self, direction: str) -> None:
        self._direction = direction

    def act(self, env: Any) -> Array:
        """Return the displacement of the hand, (7,) in [-1, 1]."""
        way = place(self._direction, env.state["cube_pos"]) - env.state["robot0_eef_pos"]
        action = np.zeros(7)
        action[:3] = self.gain * way / METRES_PER_UNIT
        action[:3] /= max(1.0, float(np.abs(action[:3]).max()))  # keeps the direction of a long way
        action[6] = -1.0
        return action


def environment(direction: str) -> str:
    """Return the name of a task's robosuite environment."""
    return f"Cube{direction}"


def _register() -> None:
    from . import around_cube_env  # noqa: F401  its classes register themselves with robosuite


def _task(direction: str) -> Task:
    expert: Callable[[], AroundCubeExpert] = partial(AroundCubeExpert, direction)
    return robosuite_task(
        environment=environment(direction),
        register=_register,
        instruction=f"move {direction.lower()} of the cube",
        horizon=60,
        expert=expert,
        noise=(0.3, 0.3, 0.3, 0.0, 0.0, 0.15, 0.0),
    )


NORTH, NORTH_EAST, EAST, SOUTH_EAST, SOUTH, SOUTH_WEST, WEST, NORTH_WEST = (
    _task(direction) for direction in DIRECTIONS
)
