"""Scripted experts, which read the true state of the scene and command the OSC_POSE actions that a policy
must learn.

Each is a state machine over robosuite's named observations, without generators, called once per control step.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

OPEN, CLOSE = -1.0, 1.0
METRES_PER_UNIT = 0.05  # OSC_POSE: an action of 1 commands 5 cm
RADIANS_PER_UNIT = 0.5
DOWN = np.array([0.0, 0.0, -1.0])
# the arm lags behind its target; commanding slightly more than the remaining distance settles fastest
GAIN = 1.2

# Constants of robosuite's model, version 1.5.2, that are not among its observations (metres).
# from the middle of the lower cube to that of the upper (environments/manipulation/stack.py: cubeA, cubeB)
STACKED = 0.045
# over the can's quarter of bin2, on the robot's side (environments/manipulation/pick_place.py: not_in_bin)
CAN_BIN = np.array([0.155, 0.36, 0.89])
SQUARE_PEG = np.array([0.23, 0.1, 0.935])  # just below the top of peg1 (models/assets/arenas/pegs_arena.xml)
# from the middle of the nut to that of its handle (models/assets/objects/square-nut.xml: handle_site)
NUT_HANDLE = 0.054
# axis of the lever, in the door's frame (models/assets/objects/door_lock.xml: latch, handle)
LATCH = np.array([-0.175, -0.1, -0.025])
LEVER = 0.125  # from there to handle_pos (models/assets/objects/door_lock.xml: handle)


class Expert(Protocol):
    """Scripted expert for one episode."""

    horizon: int
    """Number of control steps after which the demonstration has failed."""

    def act(self, state: dict[str, Array]) -> Array:
        """Return the (7,) action for the current named observations."""
        ...


def _towards(state: dict[str, Array], target: Array, yaw: float, gripper: float) -> Array:
    """Return the action that moves the hand towards `target` (metres, world) and turns it by the remaining
    `yaw` (radians, vertical axis).
    """
    action = np.zeros(7)
    action[:3] = GAIN * (target - state["robot0_eef_pos"]) / METRES_PER_UNIT
    action[5] = yaw / RADIANS_PER_UNIT
    action[6] = gripper
    return np.clip(action, -1.0, 1.0)


def _yaw(quat_xyzw: Array) -> float:
    x, y, z, w = quat_xyzw
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def _half_turn(state: dict[str, Array], yaw: float) -> float:
    """Return the smallest turn (rad) that aligns the fingers with a bar, which is symmetric under
    half turns.
    """
    return float((yaw - _yaw(state["robot0_eef_quat"]) + np.pi / 2) % np.pi - np.pi / 2)


def _square_turn(state: dict[str, Array], cube_quat: Array) -> float:
    """Return the smallest turn (rad) that aligns the fingers with a face of a cube, which is symmetric under
    quarter turns.
    """
    turn = _yaw(cube_quat) - _yaw(state["robot0_eef_quat"])
    return float((turn + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def _reach(
    state: dict[str, Array], target: Array, turn: float, gripper: float, pointing: Array = DOWN
) -> Array:
    """Return the action of _towards that also tilts the hand until its fingers point along `pointing` (unit
    vector, world).
    """
    action = _towards(state, target, turn, gripper)
    x, y, z, w = state["robot0_eef_quat"]
    fingers = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
    action[3:6] += np.cross(fingers, pointing) / RADIANS_PER_UNIT
    return np.clip(action, -1.0, 1.0)


def _bring(
    state: dict[str, Array], thing: Array, goal: Array, turn: float, gripper: float, clearance: float
) -> Array:
    """Return the action that brings `thing`, the hand or its load, to `goal` from above: rise in place, move
    across, sink near the goal.
    """
    off = float(np.hypot(*(thing - goal)[:2]))
    above = clearance if abs(turn) > 0.15 else min(clearance, 3 * max(off - 0.008, 0.0))
    way = goal - above * DOWN - thing
    if off > 0.03 and way[2] > 0.02:
        way[:2] = 0.0
    return _reach(state, state["robot0_eef_pos"] + way, turn, gripper)


class LiftExpert:
    """Expert of Lift: move above the cube, descend, close the fingers, rise."""

    horizon = 150

    def __init__(self) -> None:
        self._closed_for = 0

    def act(self, state: dict[str, Array]) -> Array:
        """Return the next action, (7,) in [-1, 1]."""
        hand, cube = state["robot0_eef_pos"], state["cube_pos"]
        turn = _square_turn(state, state["cube_quat"])
        off = float(np.linalg.norm(hand[:2] - cube[:2]))
        if (
            self._closed_for == 0
            and (off > 0.012 or abs(turn) > 0.15)
            and hand[2] < cube[2] + 0.05
            and off > 0.03
        ):
            # the cube was knocked aside: rise before the next attempt
            return _towards(state, np.array([*hand[:2], cube[2] + 0.08]), turn, OPEN)
        if self._closed_for == 0 and (off > 0.012 or abs(turn) > 0.15):
            return _towards(
                state, np.array([*cube[:2], max(cube[2] + 0.05, min(hand[2], cube[2] + 0.08))]), turn, OPEN
            )
        if self._closed_for == 0 and hand[2] - cube[2] > 0.008:
            return _towards(state, cube, turn, OPEN)
        if off > 0.03 or hand[2] - cube[2] > 0.03:
            self._closed_for = 0  # the cube slipped out: retry
            return _towards(state, hand, 0.0, OPEN)
        self._closed_for += 1
        if self._closed_for <= 4:
            return _towards(state, cube, 0.0, CLOSE)
        return _towards(state, hand + np.array([0.0, 0.0, 0.06]), 0.0, CLOSE)


class PickAndPlaceExpert(ABC):
    """Expert that grasps an object from above, carries it over its goal, lowers and releases it; it retries
    if the object slips or misses.
    """

    horizon = 200
    clearance = 0.06
    """Height above its goal at which the object is carried (m)."""
    precision = 0.01
    """Largest horizontal distance from its goal at which the object is released (m)."""
    squeeze = 7
    """Number of control steps that the fingers need to close on the object."""

    def __init__(self) -> None:
        self._closed_for = self._opened_for = 0

    @abstractmethod
    def thing(self, state: dict[str, Array]) -> Array:
        """Return the middle of the carried object, (3,) (m, world)."""

    @abstractmethod
    def handle(self, state: dict[str, Array]) -> tuple[Array, float]:
        """Return the point of the grasp, (3,) (m, world), and the turn of the hand for it (rad)."""

    @abstractmethod
    def goal(self, state: dict[str, Array]) -> tuple[Array, float]:
        """Return the object's place of release, (3,) (m, world), and the object's turn for it (rad)."""

    def act(self, state: dict[str, Array]) -> Array:
        """Return the next action, (7,) in [-1, 1]."""
        hand, thing, (handle, turn) = state["robot0_eef_pos"], self.thing(state), self.handle(state)
        if self._opened_for:
            self._opened_for, self._closed_for = (self._opened_for + 1) % 20, 0
            if self._opened_for <= 6:  # the fingers take several steps to open
                return _bring(state, thing, self.goal(state)[0], 0.0, OPEN, self.clearance)
            return _reach(state, np.array([*handle[:2], hand[2] + 0.06]), 0.0, OPEN)
        off, above = float(np.hypot(*(hand - handle)[:2])), hand[2] - handle[2]
        if self._closed_for == 0 and (off > 0.012 or abs(turn) > 0.15 or above > 0.008):
            return _bring(state, hand, handle, turn, OPEN, 0.06)
        if off > 0.03 or abs(above) > 0.03:
            self._closed_for = 0  # the object slipped out: retry
            return _reach(state, hand, 0.0, OPEN)
        self._closed_for += 1
        if self._closed_for <= self.squeeze:
            return _reach(state, handle, 0.0, CLOSE)
        goal, turn = self.goal(state)
        if np.hypot(*(thing - goal)[:2]) < self.precision and thing[2] - goal[2] < 0.006:
            self._opened_for = 1
        return _bring(state, thing, goal, turn, CLOSE, self.clearance)


class StackExpert(PickAndPlaceExpert):
    """Expert of Stack: the red cube onto the green one."""

    def thing(self, state: dict[str, Array]) -> Array:
        """Return the position of the red cube (m, world)."""
        return state["cubeA_pos"]

    def handle(self, state: dict[str, Array]) -> tuple[Array, float]:
        """Return the red cube's position and the turn (rad) at which no finger hits the green cube."""
        turn = _square_turn(state, state["cubeA_quat"])
        fingers = _yaw(state["robot0_eef_quat"]) + turn + np.pi / 2
        x, y, _ = state["cubeB_pos"] - state["cubeA_pos"]
        if np.hypot(x, y) < 0.1 and abs(np.cos(fingers) * x + np.sin(fingers) * y) > 0.75 * np.hypot(x, y):
            # a finger would hit the green cube: grasp the other two faces
            turn -= np.copysign(np.pi / 2, turn)
        return state["cubeA_pos"], turn

    def goal(self, state: dict[str, Array]) -> tuple[Array, float]:
        """Return the place of the red cube on the green one (m, world) and no turn."""
        return state["cubeB_pos"] - STACKED * DOWN, 0.0


class PickPlaceCanExpert(PickAndPlaceExpert):
    """Expert of PickPlaceCan: the can over the walls of the bins into its own."""

    clearance = 0.1
    precision = 0.03

    def thing(self, state: dict[str, Array]) -> Array:
        """Return the position of the can (m, world)."""
        return state["Can_pos"]

    def handle(self, state: dict[str, Array]) -> tuple[Array, float]:
        """Return the point 1 cm above the can's centre (m, world) and no turn."""
        return state["Can_pos"] - 0.01 * DOWN, 0.0

    def goal(self, state: dict[str, Array]) -> tuple[Array, float]:
        """Return the place of the can in its bin (m, world) and no turn."""
        return CAN_BIN, 0.0


class NutAssemblySquareExpert(PickAndPlaceExpert):
    """Expert of NutAssemblySquare: the square nut, held by its handle, over the square peg; released once the
    peg is in its hole.
    """

    horizon = 300
    precision = 0.02
    squeeze = 10

    def thing(self, state: dict[str, Array]) -> Array:
        """Return the position of the nut (m, world)."""
        return state["SquareNut_pos"]

    def handle(self, state: dict[str, Array]) -> tuple[Array, float]:
        """Return the position of the nut's handle (m, world) and the turn (rad) that aligns the fingers."""
        nut = _yaw(state["SquareNut_quat"])
        return state["SquareNut_pos"] + NUT_HANDLE * np.array([np.cos(nut), np.sin(nut), 0.0]), _half_turn(
            state, nut
        )

    def goal(self, state: dict[str, Array]) -> tuple[Array, float]:
        """Return the place of the nut on the square peg (m, world) and the turn (rad) to the next quarter."""
        nut = _yaw(state["SquareNut_quat"])
        # not with the handle straight ahead: the arm is too short for that
        quarters = np.round(nut / (np.pi / 2)) or np.copysign(1, nut)
        return SQUARE_PEG, float(quarters * np.pi / 2 - nut)


class DoorExpert:
    """Expert of Door: press the lever's end with closed fingers until the latch is free, then pull while
    pressing.
    """

    horizon = 200
    lean = 1.0
    """Tilt of the hand from pointing down (0) towards the door (rad): an upright hand would touch door or
    lever with its flanks.
    """
    reach = 0.11
    """Distance from the lever's axis to the pressed point (m)."""

    def __init__(self) -> None:
        self._pressing = False

    def act(self, state: dict[str, Array]) -> Array:
        """Return the next action, (7,) in [-1, 1]."""
        hand, angle, arm = (
            state["robot0_eef_pos"],
            float(state["handle_qpos"]),
            state["handle_pos"] - state["door_pos"],
        )
        # the door's angle
        door = float(np.arctan2(arm[1], arm[0]) - np.arctan2(LATCH[1], LATCH[0] + LEVER * np.cos(angle)))
        along, out = np.array([np.cos(door), np.sin(door), 0.0]), np.array([np.sin(door), -np.cos(door), 0.0])
        latch = state["door_pos"] + LATCH[0] * along - LATCH[1] * out - LATCH[2] * DOWN
        turn, pointing = _half_turn(state, door), np.cos(self.lean) * DOWN - np.sin(self.lean) * out

        def over(angle: float, gap: float) -> Array:
            """Return the point at distance `gap` (m) from the lever at `angle` (rad), on the side from which
            it is pressed.
            """
            ahead, below = (
                self.reach * np.cos(angle) + gap * np.sin(angle),
                self.reach * np.sin(angle) - gap * np.cos(angle),
            )
            place: Array = latch + ahead * along + below * DOWN
            return place

        start = over(angle, 0.07)
        if np.linalg.norm(hand - start) < 0.025:
            self._pressing = True
        elif np.linalg.norm(hand - over(angle, 0.03)) > 0.08:
            self._pressing = False  # the fingers slipped off: retry
        if not self._pressing:
            aside = 0.12 if hand[2] < start[2] - 0.04 else 0.0  # rise in front of the lever, not under it
            return _reach(state, start + aside * out, turn, CLOSE, pointing)
        # the latch is free at about 1.2 rad; until then a little behind the lever
        pull = 0.06 * np.clip((angle - 1.2) / 0.2, 0.0, 1.0) - 0.015
        return _reach(state, over(min(angle + 0.4, 1.6), 0.0) + pull * out, turn, CLOSE, pointing)


EXPERTS: dict[str, type[Any]] = {
    "Lift": LiftExpert,
    "Stack": StackExpert,
    "PickPlaceCan": PickPlaceCanExpert,
    "Door": DoorExpert,
    "NutAssemblySquare": NutAssemblySquareExpert,
}


def expert_for(task: str) -> Expert:
    """Return a new expert for one episode of the task. Raises ValueError, with one sentence, if the task has
    none.
    """
    if task not in EXPERTS:
        raise ValueError(f"no scripted expert demonstrates {task}; there is one for {', '.join(EXPERTS)}")
    expert: Expert = EXPERTS[task]()
    return expert
