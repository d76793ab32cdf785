"""Scripted demonstrators: they see the true state of the scene, and command the same OSC_POSE actions a policy must learn.

Each is a generator-free state machine over robosuite's named observations, one call per control step.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

OPEN, CLOSE = -1.0, 1.0
METRES_PER_UNIT = 0.05  # OSC_POSE: an action of 1 asks for 5 cm
RADIANS_PER_UNIT = 0.5
GAIN = 1.2  # the arm lags behind its target; asking for a little more than the remaining way settles fastest


class Expert(Protocol):
    """Demonstrates one episode; made anew for each."""

    def act(self, state: dict[str, Array]) -> Array:
        """(7,) action for the named observations of the moment."""
        ...


def _towards(state: dict[str, Array], target: Array, yaw: float, gripper: float) -> Array:
    """Move the hand towards `target` (metres, world) while turning it by what is left of `yaw` (radians about the vertical)."""
    action = np.zeros(7)
    action[:3] = GAIN * (target - state["robot0_eef_pos"]) / METRES_PER_UNIT
    action[5] = yaw / RADIANS_PER_UNIT
    action[6] = gripper
    return np.clip(action, -1.0, 1.0)


def _yaw(quat_xyzw: Array) -> float:
    x, y, z, w = quat_xyzw
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def _square_turn(state: dict[str, Array], cube_quat: Array) -> float:
    """Smallest turn that lines the fingers up with a face of a cube, which looks the same every quarter turn."""
    turn = _yaw(cube_quat) - _yaw(state["robot0_eef_quat"])
    return float((turn + np.pi / 4) % (np.pi / 2) - np.pi / 4)


class LiftExpert:
    """Above the cube, down, close, up."""

    def __init__(self) -> None:
        self._closed_for = 0

    def act(self, state: dict[str, Array]) -> Array:
        hand, cube = state["robot0_eef_pos"], state["cube_pos"]
        turn = _square_turn(state, state["cube_quat"])
        off = float(np.linalg.norm(hand[:2] - cube[:2]))
        if self._closed_for == 0 and (off > 0.012 or abs(turn) > 0.15) and hand[2] < cube[2] + 0.05 and off > 0.03:
            return _towards(state, np.array([*hand[:2], cube[2] + 0.08]), turn, OPEN)  # knocked aside: rise before trying again
        if self._closed_for == 0 and (off > 0.012 or abs(turn) > 0.15):
            return _towards(state, np.array([*cube[:2], max(cube[2] + 0.05, min(hand[2], cube[2] + 0.08))]), turn, OPEN)
        if self._closed_for == 0 and hand[2] - cube[2] > 0.008:
            return _towards(state, cube, turn, OPEN)
        if off > 0.03 or hand[2] - cube[2] > 0.03:
            self._closed_for = 0  # it slipped out: try again
            return _towards(state, hand, 0.0, OPEN)
        self._closed_for += 1
        if self._closed_for <= 4:
            return _towards(state, cube, 0.0, CLOSE)
        return _towards(state, hand + np.array([0.0, 0.0, 0.06]), 0.0, CLOSE)


EXPERTS: dict[str, type[Any]] = {"Lift": LiftExpert}


def expert_for(task: str) -> Expert:
    """A fresh demonstrator; KeyError-free: an unknown task is one sentence."""
    if task not in EXPERTS:
        raise ValueError(f"no scripted expert demonstrates {task}; there is one for {', '.join(EXPERTS)}")
    expert: Expert = EXPERTS[task]()
    return expert
