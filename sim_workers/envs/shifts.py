"""Worlds that differ from the demonstrated one in exactly one way, to measure a policy's generalisation.

A world is a function of (task, shift, variant) alone, and an episode in it of that and its scene seed. The
differences are numbers in this file and in `shift_objects.py`, whose content is part of an evaluation's
fingerprint. Under lighting, texture, camera and distractors the task itself starts as in the nominal world of
the same seed.
"""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy.interface import CameraPose
from sim_workers.envs import shift_objects as things
from sim_workers.rollout.suite import SHIFTS, VARIANTS

REFUSED = {
    ("Wipe", "object"): "it handles nothing but marks",
    ("Wipe", "placement"): "its marks already lie anywhere on the table",
    ("TwoArmPegInHole", "placement"): "the arms hold both things from the start",
    ("TwoArmPegInHole", "distractors"): "it has no table to put them on",
    ("TwoArmTransport", "distractors"): "its bins leave no room on the tables",
}
"""Reason of every refused pair of task and shift."""

# Per variant: direction of the sunlight (unit-free, world; +y is to the robot's left), its colour, and the
# ambient light and the camera's own light (RGB, 0..1). Nominal: (-0.2, -0.2, -1), 0.7, 0.1 and 0.4.
LIGHTING = (
    ("dim", (-0.2, -0.2, -1.0), (0.2, 0.2, 0.2), (0.06, 0.06, 0.06), (0.15, 0.15, 0.15)),
    ("pink from the front", (-0.8, 0.0, -0.6), (1.0, 0.5, 0.7), (0.2, 0.12, 0.16), (0.4, 0.25, 0.3)),
    ("warm from the left", (0.0, -0.8, -0.6), (1.0, 0.7, 0.35), (0.1, 0.08, 0.05), (0.25, 0.2, 0.12)),
    ("cold from the right", (0.0, 0.8, -0.6), (0.4, 0.6, 1.0), (0.05, 0.08, 0.12), (0.12, 0.18, 0.28)),
    ("from behind the robot", (0.8, 0.0, -0.6), (1.0, 1.0, 1.0), (0.03, 0.03, 0.03), (0.1, 0.1, 0.1)),
)

# Per variant: robosuite's textures of the table (of PickPlace: the first bin), the floor, the walls and
# PickPlace's second bin.
TEXTURE = (
    ("wood-tiles", "dark-wood", "pink-plaster", "steel-brushed"),
    ("gray-woodgrain", "white-bricks", "blue-wood", "clay"),
    ("clay", "wood-varnished-panels", "yellow-plaster", "gray-felt"),
    ("gray-felt", "dirt", "white-bricks", "blue-wood"),
    ("white-bricks", "green-wood", "cream-plaster", "white-plaster"),
)
COVERED = {
    "tex-ceramic": 0,
    "tex-light-wood": 0,
    "texplane": 1,
    "tex-light-gray-plaster": 2,
    "tex-dark-wood": 3,
}
"""Column in TEXTURE of each texture of a room, by robosuite's name."""

# Smallest and largest offset of a camera, either way: a camera of the room orbits the point it views, one on
# a robot turns and moves in place.
ROOM_TURNS_DEG = ((6, 12), (3, 6), (1, 3))  # round the vertical, up or down, about the line of sight
ROOM_DISTANCE = (0.03, 0.08)  # nearer or farther, as a share of the distance to the viewed point
ROBOT_TURNS_DEG = ((2, 5), (2, 5), (2, 5))  # about its own axes
ROBOT_MOVES_M = (0.004, 0.012)  # along each of its own axes
FIELD_DEG = (1, 3)  # of its field of view

# Per variant: shift of the middle of the objects' initial range (m, x and y; +x points forward from the
# robot, +y to its left). The factor shrinks wide ranges, so that every initial position lies outside the
# nominal range. PickPlace's range fills the bin, which moves with it.
PLACEMENT: dict[str, tuple[float, tuple[tuple[float, float], ...]]] = {
    "Lift": (1.0, ((-0.10, 0.0), (0.07, 0.07), (0.0, -0.13), (-0.07, 0.11), (0.10, -0.05))),
    "Stack": (0.6, ((-0.13, 0.0), (-0.13, 0.08), (0.0, 0.14), (0.0, -0.14), (-0.13, -0.08))),
    "Door": (1.0, ((-0.03, 0.0), (0.03, 0.0), (0.0, 0.03), (0.0, -0.03), (-0.03, -0.03))),
    "NutAssembly": (1.0, ((-0.05, 0.0), (0.04, 0.0), (-0.03, 0.02), (0.03, -0.02), (0.06, 0.02))),
    "PickPlace": (1.0, ((-0.06, 0.0), (-0.03, -0.03), (-0.08, -0.02), (-0.05, -0.04), (0.03, -0.02))),
    "ToolHang": (1.0, ((-0.05, 0.0), (0.05, 0.0), (-0.05, -0.05), (0.05, -0.05), (0.0, -0.06))),
    "TwoArmLift": (1.0, ((-0.08, 0.0), (0.08, 0.0), (0.0, 0.08), (0.0, -0.08), (0.07, 0.07))),
    "TwoArmHandover": (0.5, ((0.17, 0.0), (-0.17, 0.0), (0.0, 0.08), (0.16, 0.03), (-0.16, 0.03))),
    "TwoArmTransport": (1.0, ((-0.03, 0.0), (0.03, 0.0), (0.0, 0.03), (0.0, -0.03), (0.03, 0.03))),
}
DOOR_TURNS = (-0.25, 0.1, -0.25, 0.1, 0.1)
"""Width and side (sign) of the door's range of angles, adjacent to the nominal range, per variant (rad); the
nominal range is 0.25 wide.
"""


def refusal(task: str, shift: str) -> str:
    """Return why the task has no such shift, as one sentence; empty if it has one."""
    if shift not in SHIFTS:
        return f"there is no shift {shift} of {task}; there are {', '.join(SHIFTS)}"
    reason = REFUSED.get((task, shift))
    return f"there is no {shift} shift of {task}: {reason}" if reason else ""


def build(task: str, shift: str, variant: int, poses: Sequence[CameraPose] = (), **options: Any) -> Any:
    """Return robosuite's environment of the task in the shifted world, with the configured cameras. Takes
    robosuite's own options.

    Raises ValueError if there is no such shift or variant.
    """
    import robosuite
    from robosuite.environments.base import REGISTERED_ENVS

    if mistake := refusal(task, shift):
        raise ValueError(mistake)
    if not 0 <= variant < VARIANTS:
        raise ValueError(
            f"there is no variant {variant} of the {shift} shift of {task}; they count from 0 to"
            f" {VARIANTS - 1}"
        )
    base = REGISTERED_ENVS[task]
    methods = BUILT[shift](base, task, variant) if shift in BUILT else {}
    if poses:
        methods["_load_model"] = _with_cameras(methods.get("_load_model", base._load_model), poses)
    # Robosuite builds and compiles its model in the constructor, so only a subclass can change it in between.
    env = type(base)("Shifted", (base,), methods)(**options) if methods else robosuite.make(task, **options)
    if shift in CHANGED:
        CHANGED[shift](env, task, variant)
    return env


def _with_cameras(load: Callable[[Any], None], poses: Sequence[CameraPose]) -> Callable[[Any], None]:
    """Return robosuite's method that loads the model, with configured cameras in addition."""
    from xml.etree.ElementTree import Element

    def load_with_cameras(env: Any) -> None:
        load(env)
        world = env.model.worldbody
        for pose in poses:
            for body in world.iter():
                for camera in [one for one in body if one.tag == "camera" and one.get("name") == pose.name]:
                    body.remove(camera)
            mount = pose.mount.replace("_hand", "_right_hand")
            place = world.find(f".//body[@name='{mount}']") if mount else world
            numbers = {"pos": pose.position, "quat": pose.orientation, "fovy": (pose.fov_deg,)}
            attributes = {name: " ".join(map(repr, values)) for name, values in numbers.items()}
            place.append(Element("camera", {"name": pose.name, "mode": "fixed", **attributes}))

    return load_with_cameras


def _texture(base: Any, task: str, variant: int) -> dict[str, Any]:
    def load(env: Any) -> None:
        base._load_model(env)
        for texture in env.model.asset.iter("texture"):
            column = COVERED.get(texture.get("name", ""))
            if column is not None:
                texture.set("file", str(Path(texture.get("file")).parent / f"{TEXTURE[variant][column]}.png"))

    return {"_load_model": load}


def _lighting(env: Any, task: str, variant: int) -> None:
    model = env.sim.model._model
    _, direction, sun, everywhere, camera = LIGHTING[variant]
    way = np.array(direction) / np.linalg.norm(direction)
    model.light_dir[:] = way
    # used only by a positional light, which is aimed at the table's middle
    model.light_pos[:] = np.array([0.0, 0.0, 0.8]) - 3.0 * way
    model.light_diffuse[:] = np.array(sun) / model.nlight
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = everywhere, camera


def _camera(env: Any, task: str, variant: int) -> None:
    import mujoco

    model = env.sim.model._model

    def turned(axis: Any, degrees: float) -> Any:
        quat = np.zeros(4)
        mujoco.mju_axisAngle2Quat(quat, np.asarray(axis, dtype=float), np.radians(degrees))
        return quat

    def after(first: Any, second: Any) -> Any:
        quat = np.zeros(4)
        mujoco.mju_mulQuat(quat, second, first)
        return quat

    def moved(vector: Any, quat: Any) -> Any:
        out = np.zeros(3)
        mujoco.mju_rotVecQuat(out, np.asarray(vector, dtype=float), quat)
        return out

    for index in range(model.ncam):
        rng = np.random.default_rng([zlib.crc32(model.camera(index).name.encode()), variant])

        def off(least: float, most: float, rng: np.random.Generator = rng) -> float:
            return float(rng.choice([-1, 1]) * rng.uniform(least, most))

        place, quat = model.cam_pos[index].copy(), model.cam_quat[index].copy()
        model.cam_fovy[index] += off(*FIELD_DEG)
        if model.cam_bodyid[index]:  # on a robot
            for axis, turn in zip(np.eye(3), ROBOT_TURNS_DEG, strict=True):
                quat = after(turned(axis, off(*turn)), quat)
            place += moved([off(*ROBOT_MOVES_M) for _ in range(3)], quat)
        else:
            sight, across = moved([0, 0, -1], quat), moved([1, 0, 0], quat)
            far = (0.8 - place[2]) / sight[2] if sight[2] < -0.2 else 1.5  # roughly to the table's height
            around, up, roll = (off(*turn) for turn in ROOM_TURNS_DEG)
            turn = after(turned(across, up), turned([0, 0, 1], around))
            place = place + far * sight - moved(far * sight, turn) * (1 + off(*ROOM_DISTANCE))
            quat = after(after(turned([0, 0, 1], roll), quat), turn)
        model.cam_pos[index], model.cam_quat[index] = place, quat


def _placement(env: Any, task: str, variant: int) -> None:
    family = next(name for name in PLACEMENT if task.startswith(name))
    shrink, moves = PLACEMENT[family]
    dx, dy = moves[variant]
    if family == "PickPlace":  # its objects fill the bin, so the bin moves with them
        env.bin1_pos = np.add(env.bin1_pos, (dx, dy, 0.0))
        env.placement_initializer.samplers["CollisionObjectSampler"].reference_pos = env.bin1_pos
        return
    samplers = getattr(env.placement_initializer, "samplers", {"": env.placement_initializer})
    for name, sampler in samplers.items():
        outwards = -1.0 if name == "RoundNutSampler" else 1.0  # the two nuts' ranges mirror one another
        for key, move in (("x_range", dx), ("y_range", outwards * dy)):
            low, high = getattr(sampler, key)
            middle, half = (low + high) / 2 + move, shrink * (high - low) / 2
            setattr(sampler, key, [middle - half, middle + half])
        if family == "Door":
            low, high = sorted(sampler.rotation)
            beside = DOOR_TURNS[variant]
            sampler.rotation = (low + beside, low) if beside < 0 else (high, high + beside)


BUILT: dict[str, Callable[[Any, str, int], dict[str, Any]]] = {
    "texture": _texture,
    "object": things.unseen,
    "distractors": things.distractors,
}
"""Shifts that change the model before compilation: (robosuite's class, task, variant) to the overridden
methods of the class.
"""
CHANGED: dict[str, Callable[[Any, str, int], None]] = {
    "lighting": _lighting,
    "camera": _camera,
    "placement": _placement,
}
"""Shifts that change a live environment: (environment, task, variant) to None."""
