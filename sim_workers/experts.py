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

# Robosuite 1.5.2's own constants, where an expert needs what is not among the observations (metres, world).
HALF_CUBES = 0.045  # from the middle of Stack's lower cube to that of the upper (environments/manipulation/stack.py)
CAN_BIN = np.array([0.155, 0.36, 0.89])  # over the can's quarter of bin2 (environments/manipulation/pick_place.py, target_bin_placements)
SQUARE_PEG = np.array([0.23, 0.1, 0.935])  # peg1, just below its top (models/assets/arenas/pegs_arena.xml)
LATCH = np.array([-0.175, -0.1, -0.025])  # the lever's pivot in the door's frame: right, back, up (models/assets/objects/door_lock.xml)
LEVER = 0.125  # from the pivot to handle_pos (models/assets/objects/door_lock.xml)
NUT_HANDLE = 0.054  # from the middle of the nut to that of its handle (models/assets/objects/square-nut.xml)

DOWN = np.array([0.0, 0.0, -1.0])
LEAN, REACH, DEPTH = 1.0, 0.11, 0.015


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


def _reach(state: dict[str, Array], target: Array, turn: float, gripper: float, pointing: Array = DOWN) -> Array:
    """Like _towards, and swing the hand until its fingers point along `pointing` (unit vector)."""
    action = _towards(state, target, turn, gripper)
    x, y, z, w = state["robot0_eef_quat"]
    fingers = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
    action[3:6] += np.cross(fingers, pointing) / RADIANS_PER_UNIT
    return np.clip(action, -1.0, 1.0)


def _bring(state: dict[str, Array], thing: Array, goal: Array, turn: float, gripper: float, clearance: float) -> Array:
    """Bring `thing`, the hand or what it holds, to `goal` from above: rise where it is, go across, sink while it comes over the goal."""
    off = float(np.linalg.norm(thing[:2] - goal[:2]))
    above = clearance if abs(turn) > 0.15 else min(clearance, 3 * max(off - 0.008, 0.0))
    way = goal + np.array([0.0, 0.0, above]) - thing
    if off > 0.03 and way[2] > 0.02:
        way[:2] = 0.0
    return _reach(state, state["robot0_eef_pos"] + way, turn, gripper)


class PickAndPlaceExpert:
    """Above the thing, down, close; up, across, down to where it belongs; open, up. From the start again if it slipped or missed."""

    clearance = 0.06
    """How far above its goal a thing is carried (m)."""
    precision = 0.01
    """How near to its goal, seen from above, it may be let go (m)."""
    squeeze = 4
    """Control steps that the fingers need to close on it."""

    def __init__(self) -> None:
        self._closed_for = self._opened_for = 0

    def thing(self, state: dict[str, Array]) -> Array:
        """(3,) what is carried."""
        raise NotImplementedError

    def handle(self, state: dict[str, Array]) -> tuple[Array, float]:
        """(3,) where the hand takes hold of it, and how far it has to turn for that."""
        raise NotImplementedError

    def goal(self, state: dict[str, Array]) -> tuple[Array, float]:
        """(3,) where the thing is let go, and how far the hand has to turn for that."""
        raise NotImplementedError

    def act(self, state: dict[str, Array]) -> Array:
        hand, thing, (handle, turn) = state["robot0_eef_pos"], self.thing(state), self.handle(state)
        if self._opened_for:
            self._opened_for, self._closed_for = (self._opened_for + 1) % 20, 0
            if self._opened_for <= 6:
                pressed = self.goal(state)[0] - np.array([0.0, 0.0, 0.01])  # fingers take a while to let go; it must not be lifted again
                return _bring(state, thing, pressed, 0.0, OPEN, self.clearance)
            return _reach(state, np.array([*handle[:2], hand[2] + 0.06]), 0.0, OPEN)
        off, above = float(np.linalg.norm(hand[:2] - handle[:2])), hand[2] - handle[2]
        if self._closed_for == 0 and (off > 0.012 or abs(turn) > 0.15 or above > 0.008):
            return _bring(state, hand, handle, turn, OPEN, 0.06)
        if off > 0.03 or abs(above) > 0.03:
            self._closed_for = 0  # it slipped out: try again
            return _reach(state, hand, 0.0, OPEN)
        self._closed_for += 1
        if self._closed_for <= self.squeeze:
            return _reach(state, handle, 0.0, CLOSE)
        goal, turn = self.goal(state)
        if np.linalg.norm(thing[:2] - goal[:2]) < self.precision and thing[2] - goal[2] < 0.006:
            self._opened_for = 1
        return _bring(state, thing, goal, turn, CLOSE, self.clearance)


class StackExpert(PickAndPlaceExpert):
    """The red cube onto the green one."""

    def thing(self, state: dict[str, Array]) -> Array:
        return state["cubeA_pos"]

    def handle(self, state: dict[str, Array]) -> tuple[Array, float]:
        turn = _square_turn(state, state["cubeA_quat"])
        way = state["cubeB_pos"] - state["cubeA_pos"]
        fingers = _yaw(state["robot0_eef_quat"]) + turn + np.pi / 2
        if np.hypot(*way[:2]) < 0.1 and abs(np.cos(fingers) * way[0] + np.sin(fingers) * way[1]) > 0.75 * np.hypot(*way[:2]):
            turn -= np.copysign(np.pi / 2, turn)  # a finger would come down on the green cube: take the other two faces
        return state["cubeA_pos"], turn

    def goal(self, state: dict[str, Array]) -> tuple[Array, float]:
        return state["cubeB_pos"] + np.array([0.0, 0.0, HALF_CUBES]), 0.0


class PickPlaceCanExpert(PickAndPlaceExpert):
    """The can over the bins' walls into its own."""

    clearance = 0.1
    precision = 0.03

    def thing(self, state: dict[str, Array]) -> Array:
        return state["Can_pos"]

    def handle(self, state: dict[str, Array]) -> tuple[Array, float]:
        return state["Can_pos"] + np.array([0.0, 0.0, 0.01]), 0.0

    def goal(self, state: dict[str, Array]) -> tuple[Array, float]:
        return CAN_BIN, 0.0


class NutAssemblySquareExpert(PickAndPlaceExpert):
    """The square nut, by its handle, onto the square peg."""

    clearance = 0.06
    precision = 0.02
    squeeze = 10

    def thing(self, state: dict[str, Array]) -> Array:
        return state["SquareNut_pos"]

    def handle(self, state: dict[str, Array]) -> tuple[Array, float]:
        nut = _yaw(state["SquareNut_quat"])
        turn = nut - _yaw(state["robot0_eef_quat"])
        away = NUT_HANDLE * np.array([np.cos(nut), np.sin(nut), 0.0])
        return state["SquareNut_pos"] + away, float((turn + np.pi / 2) % np.pi - np.pi / 2)

    def goal(self, state: dict[str, Array]) -> tuple[Array, float]:
        nut = _yaw(state["SquareNut_quat"])
        quarter = np.round(nut / (np.pi / 2)) or np.copysign(1, nut)  # with the handle straight ahead the peg is out of the arm's reach
        return SQUARE_PEG, float(quarter * np.pi / 2 - nut)


class DoorExpert:
    """With closed, leaning fingers: above the lever's end, press it round until the latch is free, pull while pressing."""

    def __init__(self) -> None:
        self._phase = 0

    def act(self, state: dict[str, Array]) -> Array:
        hand, lever = state["robot0_eef_pos"], float(state["handle_qpos"])
        arm = state["handle_pos"] - state["door_pos"]
        along = LATCH[0] + LEVER * np.cos(lever)
        door = np.arctan2(arm[1], arm[0]) - np.arctan2(LATCH[1], along)
        right, out = np.array([np.cos(door), np.sin(door), 0.0]), np.array([np.sin(door), -np.cos(door), 0.0])
        up = -DOWN
        pivot = state["door_pos"] + LATCH[0] * right - LATCH[1] * out + LATCH[2] * up
        pointing = np.cos(LEAN) * DOWN - np.sin(LEAN) * out
        turn = float((door - _yaw(state["robot0_eef_quat"]) + np.pi / 2) % np.pi - np.pi / 2)

        def beside(angle: float, reach: float, gap: float) -> Array:
            return pivot + reach * (np.cos(angle) * right - np.sin(angle) * up) + gap * (np.sin(angle) * right + np.cos(angle) * up)

        start = beside(lever, REACH, 0.07)
        if np.linalg.norm(hand - start) < 0.025:
            self._phase = 1
        elif np.linalg.norm(hand - beside(lever, REACH, 0.03)) > 0.08:
            self._phase = 0
        if self._phase == 0:
            aside = 0.12 if hand[2] < start[2] - 0.04 else 0.0
            return _reach(state, start + aside * out, turn, CLOSE, pointing)
        pull = np.clip((lever - 1.2) / 0.2, 0.0, 1.0)
        target = beside(min(lever + 0.4, 1.6), REACH, 0.0) + (0.06 * pull - DEPTH) * out
        return _reach(state, target, turn, CLOSE, pointing)


EXPERTS: dict[str, type[Any]] = {"Lift": LiftExpert, "Stack": StackExpert, "PickPlaceCan": PickPlaceCanExpert, "Door": DoorExpert, "NutAssemblySquare": NutAssemblySquareExpert}


def expert_for(task: str) -> Expert:
    """A fresh demonstrator; KeyError-free: an unknown task is one sentence."""
    if task not in EXPERTS:
        raise ValueError(f"no scripted expert demonstrates {task}; there is one for {', '.join(EXPERTS)}")
    expert: Expert = EXPERTS[task]()
    return expert
