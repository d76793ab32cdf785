"""Robots, controllers, proprioception, control rate and cameras of robosuite's tasks, as the contract says
them. Imports no simulator.

A contract says an arm's controller by the names of its actions, and its proprioception by the names of the
values. `contract_of` writes them, `embodiment_of` reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from policy.interface import CameraPose, Contract
from sim_workers.envs.tasks import cameras as scene_cameras
from sim_workers.envs.tasks import hands, has_fingers

DEFAULT_ROBOT = "Panda"
DEFAULT_HZ = 20.0
PHYSICS_HZ = 500.0
"""Physics steps per second; a control step is a whole number of them."""


@dataclass(frozen=True)
class Robot:
    """An arm of robosuite with its default gripper."""

    joints: int
    """Number of the arm's joints."""
    gripper: tuple[str, ...]
    """One name per joint of the gripper, with the unit."""
    weld: bool = True
    """Whether its base stands still in a way that the lean control step supports."""


def _linkage(count: int) -> tuple[str, ...]:
    return tuple(f"gripper{joint}_rad" for joint in range(count))


_FINGERS = ("finger_left_m", "finger_right_m")
ROBOTS = {
    "Panda": Robot(7, _FINGERS),
    "Sawyer": Robot(7, _FINGERS),
    "IIWA": Robot(7, _linkage(6), weld=False),
    "UR5e": Robot(6, _linkage(6)),
    "Jaco": Robot(7, _linkage(6)),
    "Kinova3": Robot(7, _linkage(6)),
    "XArm7": Robot(7, _linkage(6), weld=False),
}
"""Robots with one arm and a gripper, by robosuite's name."""

DELTA_POSE, POSE, JOINT_POSITION, JOINT_VELOCITY = "delta_pose", "pose", "joint_position", "joint_velocity"
CONTROLLERS = {
    DELTA_POSE: "displacement of the hand in a control step (robosuite's OSC_POSE), in [-1, 1]",
    POSE: "pose of the gripper site to reach, in the world; its rotation as the first two columns of the"
    " matrix (OSC_POSE, absolute)",
    JOINT_POSITION: "position of every joint to reach (JOINT_POSITION, absolute)",
    JOINT_VELOCITY: "velocity of every joint to keep, at most 1 rad/s (JOINT_VELOCITY)",
}
"""Meaning of the actions of each controller."""
HAND_KEYS, FINGER_KEYS = ("eef_pos", "eef_quat"), ("gripper_qpos",)
KEYS = (*HAND_KEYS, *FINGER_KEYS, "gripper_qvel", "joint_pos", "joint_vel")
"""Proprioceptive vectors of an arm, by robosuite's names without the arm's prefix."""
GRIP = ("gripper_minus1_open_plus1_close",)
_AXES = "xyz"


class EmbodimentError(ValueError):
    """No simulator of robosuite's tasks has such a robot, controller, proprioception, rate or camera."""


@dataclass(frozen=True)
class Embodiment:
    """What moves and what is seen of it; the defaults are those of contracts before 0.3.0."""

    robot: str = DEFAULT_ROBOT
    controller: str = DELTA_POSE
    proprio: tuple[str, ...] | None = None
    """Keys of KEYS, in order; empty for no proprioception; None for the default, pose of the hand and
    fingers.
    """
    control_hz: float = DEFAULT_HZ
    poses: tuple[CameraPose, ...] = ()
    """Configured cameras, in addition to the scene's or in place of those with their name."""

    def keys(self, task: str) -> tuple[str, ...]:
        """Return the keys of the proprioception in the task."""
        if self.proprio is not None:
            return self.proprio
        return HAND_KEYS + FINGER_KEYS if has_fingers(task) else HAND_KEYS

    def problems(self, task: str) -> list[str]:
        """Return one sentence per setting that the task cannot have, each with the setting's name first."""
        found = []
        if self.robot not in ROBOTS:
            found.append(f"robot: unknown robot {self.robot}; there are {', '.join(ROBOTS)}")
        if self.controller not in CONTROLLERS:
            found.append(
                f"controller: unknown controller {self.controller}; there are {', '.join(CONTROLLERS)}"
            )
        keys = self.proprio or ()
        if unknown := [key for key in keys if key not in KEYS]:
            found.append(f"proprio: unknown key {', '.join(unknown)}; there are {', '.join(KEYS)}")
        if len(set(keys)) != len(keys):
            found.append("proprio: each key may appear once")
        if not has_fingers(task) and (fingers := [key for key in keys if key.startswith("gripper")]):
            found.append(f"proprio: the hands of {task} have no gripper, so there is no {', '.join(fingers)}")
        if not (0 < self.control_hz <= PHYSICS_HZ) or PHYSICS_HZ % self.control_hz:
            found.append(
                f"control_hz: {self.control_hz:g} steps per second are no whole number of physics steps each;"
                f" choose a divisor of {PHYSICS_HZ:g}, such as 10, 20, 25 or 50"
            )
        mounts = tuple(f"{hand}_hand" for hand in hands(task))
        for pose in self.poses:
            if pose.mount and pose.mount not in mounts:
                found.append(
                    f"cameras: {pose.name} is mounted on {pose.mount}; {task} has {', '.join(mounts)}, and"
                    " the world"
                )
        return found


DEFAULT = Embodiment()


def _values(embodiment: Embodiment, key: str) -> tuple[str, ...]:
    """Return the names of the values of one key of one arm."""
    robot = ROBOTS[embodiment.robot]
    joints = tuple(f"joint{joint}_rad" for joint in range(robot.joints))
    return {
        "eef_pos": tuple(f"eef_{axis}_m" for axis in _AXES),
        "eef_quat": tuple(f"eef_quat_{axis}" for axis in "xyzw"),
        "gripper_qpos": robot.gripper,
        "gripper_qvel": tuple(f"{name}_per_s" for name in robot.gripper),
        "joint_pos": joints,
        "joint_vel": tuple(f"{name}_per_s" for name in joints),
    }[key]


def _moves(embodiment: Embodiment) -> tuple[str, ...]:
    """Return the names of the actions of one arm without its gripper."""
    if embodiment.controller == DELTA_POSE:
        return (
            *(f"eef_delta_{axis}_x0.05m" for axis in _AXES),
            *(f"eef_delta_rot{axis}_x0.5rad" for axis in _AXES),
        )
    if embodiment.controller == POSE:
        return (*(f"eef_{axis}_m" for axis in _AXES), *(f"eef_rot6d_{i}" for i in range(6)))
    joints = _values(embodiment, "joint_pos")
    return joints if embodiment.controller == JOINT_POSITION else _values(embodiment, "joint_vel")


def _per_arm(task: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names for all arms of the task, prefixed with the arm's where there are two."""
    arms = hands(task)
    return tuple(names) if len(arms) == 1 else tuple(f"{arm}_{name}" for arm in arms for name in names)


def contract_of(
    embodiment: Embodiment,
    task: str,
    cameras: tuple[str, ...],
    image_size: tuple[int, int],
    render_profile: str,
    simulator: str,
) -> Contract:
    """Return the contract of the task with this embodiment. Raises EmbodimentError, with one sentence, if the
    task cannot have it.
    """
    if problems := embodiment.problems(task):
        raise EmbodimentError(problems[0])
    proprio = [name for key in embodiment.keys(task) for name in _values(embodiment, key)]
    action = _moves(embodiment) + (GRIP if has_fingers(task) else ())
    return Contract(
        cameras=cameras,
        image_size=image_size,
        render_profile=render_profile,
        proprio=_per_arm(task, proprio),
        action=_per_arm(task, action),
        control_hz=float(embodiment.control_hz),
        simulator=simulator,
        robot="" if embodiment.robot == DEFAULT_ROBOT else embodiment.robot,
        poses=tuple(pose for pose in embodiment.poses if pose.name in cameras),
    )


def embodiment_of(contract: Contract, task: str) -> Embodiment:
    """Return the embodiment whose contract this is. Raises EmbodimentError, with one sentence, if the task
    cannot have it.
    """
    found = Embodiment(contract.robot or DEFAULT_ROBOT, DELTA_POSE, (), contract.control_hz, contract.poses)
    if problems := found.problems(task):
        raise EmbodimentError(problems[0])
    grip = GRIP if has_fingers(task) else ()
    for controller in CONTROLLERS:
        if contract.action == _per_arm(task, _moves(replace(found, controller=controller)) + grip):
            found = replace(found, controller=controller)
            break
    else:
        raise EmbodimentError(
            f"action: no controller of {found.robot} in {task} takes"
            f" {', '.join(contract.action) or 'nothing'}"
        )
    return replace(found, proprio=_keys_of(contract.proprio, found, task))


def _keys_of(names: tuple[str, ...], embodiment: Embodiment, task: str) -> tuple[str, ...] | None:
    """Return the keys of the proprioception with these names; None for the default. Raises EmbodimentError
    for other names.
    """
    arms = len(hands(task))
    rest = list(names[: len(names) // arms])
    if arms > 1:
        rest = [name.removeprefix(f"{hands(task)[0]}_") for name in rest]
    keys = list[str]()
    while rest:
        key = next(
            (key for key in KEYS if rest[: len(_values(embodiment, key))] == list(_values(embodiment, key))),
            None,
        )
        if key is None:
            break
        keys.append(key)
        del rest[: len(_values(embodiment, key))]
    found = tuple(keys)
    wanted = _per_arm(task, [name for key in found for name in _values(embodiment, key)])
    if rest or wanted != names or len(set(found)) != len(found):
        raise EmbodimentError(
            f"proprio: {embodiment.robot} in {task} has no {', '.join(names)}; there are {', '.join(KEYS)}"
        )
    return None if found == replace(embodiment, proprio=None).keys(task) else found


def proprio_columns(names: Sequence[str], keys: Sequence[str]) -> list[int]:
    """Return the indices among the recorded values of those that `keys` choose, in the order of the keys, arm
    by arm. A key is one of KEYS or the name of a single value.

    Raises EmbodimentError, with one sentence, if a key chooses nothing.
    """
    arms = ("robot0_", "robot1_") if names and names[0].startswith("robot0_") else ("",)
    chosen = list[int]()
    for arm in arms:
        for key in keys:
            wanted = {key}
            if key in KEYS:
                wanted |= {arm + name for robot in ROBOTS for name in _values(Embodiment(robot), key)}
            found = [i for i, name in enumerate(names) if name in wanted]
            if not found:
                raise EmbodimentError(
                    f"proprio: there is no {key} among {', '.join(names) or 'no values'}; name some of"
                    f" these, or {', '.join(KEYS)}"
                )
            chosen += [i for i in found if i not in chosen]
    return chosen


def cameras_of(task: str, poses: Sequence[CameraPose] = ()) -> tuple[str, ...]:
    """Return the cameras of the task's scene, and those that are configured."""
    scene = scene_cameras(task)
    return (*scene, *(pose.name for pose in poses if pose.name not in scene))


def not_lean(embodiment: Embodiment) -> str:
    """Return why control steps are robosuite's own instead of the lean ones (`fast_control.py`), as a phrase;
    empty if they are lean.
    """
    if embodiment.controller != DELTA_POSE:
        return f"the lean step supports the controller {DELTA_POSE} only, not {embodiment.controller}"
    if not ROBOTS[embodiment.robot].weld:
        return f"the lean step does not support the base of {embodiment.robot}"
    return ""
