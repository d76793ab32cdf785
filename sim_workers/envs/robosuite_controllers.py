"""Robosuite's arm controllers by configuration: absolute poses, joint positions, joint velocities.

Written against robosuite 1.5.2: `controllers/parts/`. Import after `sim_workers.envs.render.choose_backend`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from robosuite.controllers import load_composite_controller_config, load_part_controller_config
from robosuite.controllers.parts import generic
from robosuite.controllers.parts.controller import Controller

from sim_workers.envs.embodiment import DELTA_POSE, JOINT_POSITION, JOINT_VELOCITY, POSE

# JOINT_VELOCITY: actions in rad/s
MOST_RAD_PER_S = 1.0


def controller_config(robot: str, controller: str) -> dict[str, Any] | None:
    """Return robosuite's configuration of a robot's controller; None for the default, displacements of the
    hand.
    """
    if controller == DELTA_POSE:
        return None
    config: dict[str, Any] = load_composite_controller_config(robot=robot)
    arm = config["body_parts"]["right"]
    if controller == POSE:
        config["body_parts"]["right"] = {**arm, "input_type": "absolute", "input_ref_frame": "world"}
        return config
    changes: dict[str, dict[str, Any]] = {
        JOINT_POSITION: {"input_type": "absolute"},
        JOINT_VELOCITY: {"output_max": MOST_RAD_PER_S, "output_min": -MOST_RAD_PER_S},
    }
    part = load_part_controller_config(default_controller=controller.upper())
    config["body_parts"]["right"] = {**part, **changes[controller], "gripper": arm["gripper"]}
    if controller == JOINT_VELOCITY:
        # robosuite's factory looks the class up here
        generic.JointVelocityController = JointVelocity
    return config


class JointVelocity(generic.JointVelocityController):
    """Robosuite's joint velocity controller, whose constructor in 1.5.2 assigns to a property without a
    setter, and which would otherwise take an array for a truth value.
    """

    @property
    def torque_compensation(self) -> Any:
        """Torques that hold the arm against gravity, (J,)."""
        return Controller.torque_compensation.fget(self).view(_Torques)

    @torque_compensation.setter
    def torque_compensation(self, used: bool) -> None:
        assert used


class _Torques(np.ndarray):  # type: ignore[type-arg]
    """Array that counts as true."""

    def __bool__(self) -> bool:
        return True


def rotation_of(two_columns: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the rotation matrix, (3, 3), nearest to the first two columns of one, (6,): Gram-Schmidt (Zhou
    et al. 2019, arXiv 1812.07035). Raises ValueError if they span no plane.
    """
    x, y = np.asarray(two_columns, np.float64).reshape(2, 3)
    first = x / max(float(np.linalg.norm(x)), 1e-12)
    rest = y - first.dot(y) * first
    if np.linalg.norm(x) < 1e-6 or np.linalg.norm(rest) < 1e-6:
        raise ValueError("the first two columns of the rotation span no plane")
    second = rest / np.linalg.norm(rest)
    return np.stack([first, second, np.cross(first, second)], axis=1)
