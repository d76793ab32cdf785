"""The interface between policy and simulator: observations in, action chunks out.

Every package may import this module, so it needs only numpy, and `policy.errors` and `policy.untrusted`,
which need only the standard library.

Shapes: H, W pixels; P proprioceptive values; T steps of a chunk; A action dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from policy.errors import DemoscaleError
from policy.untrusted import clean_text, printable

MOST_NAMES = {"cameras": 64, "proprio": 4096, "action": 1024}
"""Maximum number of names in each layout of a contract."""
MOST_SIDE = 8192
"""Maximum rows or columns of a picture, in pixels."""
MOST_HZ = 100_000.0
MOST_METRES = 1e4
"""Largest distance of a camera from its mount, in metres."""
MOST_PICTURES_BYTES = 1 << 30
"""Size limit of the pictures of one observation, in bytes."""
NAME_LENGTH, VERSIONS_LENGTH = 500, 4000
"""Maximum characters of a camera's or value's name, and of the simulator's name with its versions."""
MOST_STEPS = 4096
"""Maximum control steps of one chunk."""
OMITTED = "omitted"
"""Key in the metadata of a contract's field that `to_json` leaves out where it has its default."""
MOST_OBSERVATION_STEPS = 64
"""Maximum observations, the present one included, that a policy takes at once."""


def derived_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends on all arguments; every random draw of the project comes from seeds
    derived in this way.
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


@dataclass(frozen=True)
class Observation:
    """Input of a policy: the present moment, and for policies that ask for them the preceding ones.

    images: per camera name, (H, W, 3) RGB uint8, upright (row 0 is the top of the picture).
    proprio: (P,) float32, in the order of the contract's `proprio`.
    instruction: the task as a sentence.
    noise_seed: seeds every random draw of this call, so that the answer of a policy without memory is a
    function of the observation alone.
    episode: identifies one playing of one episode, the session of a policy with memory; a repeated playing
    has another id. step: control steps since the reset.
    history: the observations at the preceding control steps, oldest first, one fewer than the policy's
    `observation_steps`, without a history of their own and with the noise seed of this one; for steps before
    the reset, the first observation is repeated.
    """

    images: dict[str, npt.NDArray[np.uint8]]
    proprio: npt.NDArray[np.float32]
    instruction: str
    noise_seed: int
    episode: str = ""
    step: int = 0
    history: tuple["Observation", ...] = ()


@dataclass(frozen=True)
class ActionChunk:
    """The policy's answer: the next T actions, of which the first `execute` are executed before the next
    observation.

    actions: (T, A) float32 in the units that the contract's `action` names (robosuite's delta poses: each
    dimension in [-1, 1]).

    Raises ValueError, with one sentence, if `actions` is empty or not two-dimensional, or `execute` is
    outside 1 to T. Values that are not finite are refused on receipt of an answer (`policy.http_protocol`)
    and on execution of an action (`sim_workers.rollout.divergence`).
    """

    actions: npt.NDArray[np.float32]
    execute: int

    def __post_init__(self) -> None:
        shape = np.shape(self.actions)
        if len(shape) != 2:
            raise ValueError(
                f"the actions of a chunk have the shape {shape}; they must be (steps, action dimensions)"
            )
        if 0 in shape:
            raise ValueError(f"a chunk of actions is empty: it has {shape[0]} steps of {shape[1]} dimensions")
        if (
            isinstance(self.execute, bool)
            or not isinstance(self.execute, (int, np.integer))
            or not 1 <= self.execute <= shape[0]
        ):
            raise ValueError(
                f"execute is {printable(repr(self.execute), 40)}; execute must lie between 1 and the"
                f" {shape[0]} steps of a chunk"
            )


@dataclass(frozen=True)
class Imagination:
    """The future that a policy predicts from an observation, for display next to the recording."""

    frames: dict[str, npt.NDArray[np.uint8]]
    """Frames per camera, (F, H, W, 3) RGB; frame f (from 0) is (f + 1) * stride control steps after the
    observation.
    """
    stride: int
    """Control steps from one frame to the next."""


@dataclass(frozen=True)
class CameraPose:
    """Pose of a camera that is configured, in place of the scene's own camera of that name if there is one.

    The camera looks along its own -z axis with +y up, as in MuJoCo and OpenGL.
    """

    name: str
    position: tuple[float, float, float]
    """x, y, z in metres, in the frame of the mount."""
    orientation: tuple[float, float, float, float]
    """Unit quaternion w, x, y, z, in the frame of the mount."""
    fov_deg: float
    """Vertical field of view, in degrees."""
    mount: str = ""
    """Empty: the world; else a part of the robot, in robosuite `robot0_hand`."""


@dataclass(frozen=True)
class Contract:
    """The conventions that policy and simulator must share; compared before the first step.

    A wrong convention rarely crashes; it lowers the success rate (a flipped picture, a gripper that opens for
    "close"), so it is checked as data.
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    """(H, W) in pixels, the same for every camera."""
    render_profile: str
    """Name of the rendering quality of the pictures, a key of `sim_workers.envs.render.PROFILES`."""
    proprio: tuple[str, ...]
    """One name per proprioceptive value, in order."""
    action: tuple[str, ...]
    """One name per action dimension, in order; the name states unit and sign."""
    control_hz: float
    """Control steps per second."""
    simulator: str
    """Name and versions of the simulator that rendered the pictures and moved the robot."""
    robot: str = field(default="", metadata={OMITTED: True})
    """Name of the robot; empty: the simulator's default, in robosuite a Panda."""
    poses: tuple[CameraPose, ...] = field(default=(), metadata={OMITTED: True})
    """Poses of the cameras that are not the scene's own."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe; without `robot` and `poses` where they are the default, so that
        contracts of before 0.3.0 keep their hashes.
        """
        data = asdict(self)
        return {
            one.name: data[one.name]
            for one in fields(self)
            if not (one.metadata.get(OMITTED) and getattr(self, one.name) == one.default)
        }

    @classmethod
    def from_json(cls, data: Any) -> "Contract":
        """Return the contract that `to_json` wrote.

        Raises TypeError if the data is no JSON object, and ValueError, with one sentence that names the
        field, if a field is missing, of another type or beyond its limit.
        """
        if not isinstance(data, dict):
            raise TypeError(f"a contract is a JSON object, not {printable(repr(data), 40)}")
        optional = {one.name for one in fields(cls) if one.metadata.get(OMITTED)}
        if lacking := [name for name in _MEANING if name not in data and name not in optional]:
            raise ValueError(f"the contract lacks {', '.join(lacking)}")
        layouts = {name: _names(data[name], name) for name in MOST_NAMES}
        if len(set(layouts["cameras"])) != len(layouts["cameras"]):
            raise ValueError("cameras holds a name twice")
        image_size = _image_size(data["image_size"])
        if (size := len(layouts["cameras"]) * math.prod(image_size) * 3) > MOST_PICTURES_BYTES:
            raise ValueError(
                f"the pictures of one observation would have {size} bytes; at most {MOST_PICTURES_BYTES} are"
                " allowed"
            )
        return cls(
            cameras=layouts["cameras"],
            image_size=image_size,
            render_profile=clean_text(data["render_profile"], "render_profile", NAME_LENGTH),
            proprio=layouts["proprio"],
            action=layouts["action"],
            control_hz=_hz(data["control_hz"]),
            simulator=clean_text(data["simulator"], "simulator", VERSIONS_LENGTH),
            robot=clean_text(data["robot"], "robot", NAME_LENGTH) if data.get("robot", "") != "" else "",
            poses=_poses(data.get("poses", ()), layouts["cameras"]),
        )

    def mismatches(self, offered: "Contract") -> list[str]:
        """Return one sentence for every convention in which `offered` (a simulator, a data set) differs from
        the policy's training data.
        """
        sentences = []
        for name, meaning in _MEANING.items():
            mine, theirs = getattr(self, name), getattr(offered, name)
            if mine != theirs:
                sentences.append(
                    f"{meaning}: the policy was trained with {_show(mine)}, here it is {_show(theirs)}"
                )
        return sentences


_MEANING = {
    "cameras": "cameras, in order",
    "image_size": "image size (height, width)",
    "render_profile": "render profile",
    "proprio": "proprioception layout",
    "action": "action layout",
    "control_hz": "control rate in Hz",
    "simulator": "simulator",
    "robot": "robot",
    "poses": "poses of the cameras",
}


def _show(value: object) -> str:
    if value in ((), ""):
        return "none" if value == () else "the default"
    if isinstance(value, CameraPose):
        numbers = ", ".join(f"{number:g}" for number in (*value.position, *value.orientation, value.fov_deg))
        return f"{value.name} at ({numbers}) of {value.mount or 'the world'}"
    return ", ".join(map(_show, value)) if isinstance(value, (list, tuple)) else str(value)


def _names(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{field} must be a list of names, not {printable(repr(value), 40)}")
    if len(value) > MOST_NAMES[field]:
        raise ValueError(f"{field} has {len(value)} names; at most {MOST_NAMES[field]} are allowed")
    return tuple(clean_text(name, f"{field}[{i}]", NAME_LENGTH) for i, name in enumerate(value))


def _poses(value: Any, cameras: tuple[str, ...]) -> tuple[CameraPose, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > len(cameras):
        raise ValueError("poses must be a list of at most one pose per camera")
    poses = tuple(_pose(one, f"poses[{i}]") for i, one in enumerate(value))
    names = [pose.name for pose in poses]
    if unknown := [name for name in names if name not in cameras]:
        raise ValueError(f"poses holds {printable(unknown[0], 40)}, which is no camera of the contract")
    if len(set(names)) != len(names):
        raise ValueError("poses holds a camera twice")
    return poses


def _pose(value: Any, field: str) -> CameraPose:
    wanted = {one.name for one in fields(CameraPose)}
    if not isinstance(value, dict) or not wanted - {"mount"} <= set(value) <= wanted:
        raise ValueError(f"{field} must be an object with {', '.join(sorted(wanted))}")
    x, y, z = _numbers(value["position"], f"{field}.position", 3, MOST_METRES)
    quat = _numbers(value["orientation"], f"{field}.orientation", 4, 1.0001)
    if abs(math.hypot(*quat) - 1) > 1e-3:
        raise ValueError(f"{field}.orientation must be a unit quaternion w, x, y, z")
    (fov,) = _numbers([value["fov_deg"]], f"{field}.fov_deg", 1, 179)
    if fov <= 0:
        raise ValueError(f"{field}.fov_deg is {fov:g}; it lies above 0 and below 180")
    mount = value.get("mount", "")
    return CameraPose(
        clean_text(value["name"], f"{field}.name", NAME_LENGTH),
        (x, y, z),
        (quat[0], quat[1], quat[2], quat[3]),
        fov,
        clean_text(mount, f"{field}.mount", NAME_LENGTH) if mount != "" else "",
    )


def _numbers(value: Any, field: str, count: int, most: float) -> list[float]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ValueError(f"{field} must be {count} numbers, not {printable(repr(value), 60)}")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= most:
            raise ValueError(
                f"{field} holds {printable(repr(number), 40)}; its numbers lie within +-{most:g}"
            )
    return [float(number) for number in value]


def _image_size(value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(
            f"image_size must be two numbers, rows and columns, not {printable(repr(value), 40)}"
        )
    for side in value:
        if (
            isinstance(side, bool)
            or not isinstance(side, (int, float))
            or not 1 <= side <= MOST_SIDE
            or side != int(side)
        ):
            raise ValueError(
                f"image_size holds {printable(repr(side), 40)}; rows and columns are whole numbers between 1"
                f" and {MOST_SIDE}"
            )
    return int(value[0]), int(value[1])


def _hz(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MOST_HZ:
        raise ValueError(
            f"control_hz is {printable(repr(value), 40)}; it is a number above 0 and at most {MOST_HZ:g}"
        )
    return float(value)


@dataclass(frozen=True)
class PolicyNeeds:
    """What a policy needs besides the present observation.

    Raises ValueError, with one sentence, if `observation_steps` is outside 1 to MOST_OBSERVATION_STEPS, or a
    field is of another type.
    """

    memory: bool = False
    """Whether answers depend on earlier observations of the episode, which the policy remembers by
    `Observation.episode`.
    """
    observation_steps: int = 1
    """Observations of consecutive control steps that the policy takes at once, the present one included."""

    def __post_init__(self) -> None:
        if not isinstance(self.memory, bool):
            raise ValueError(f"memory is {printable(repr(self.memory), 40)}; it is true or false")
        steps = self.observation_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_OBSERVATION_STEPS:
            raise ValueError(
                f"observation_steps is {printable(repr(steps), 40)}; it is a whole number between 1 and"
                f" {MOST_OBSERVATION_STEPS}"
            )


PRESENT_ONLY = PolicyNeeds()
"""Needs of a policy without memory that takes one observation at a time."""


def needs_of(policy: object) -> PolicyNeeds:
    """Return the needs that a policy, or a client of one, states in its attributes `memory` and
    `observation_steps`; both may be absent.

    Raises ValueError, with one sentence, for values that no policy may state.
    """
    return PolicyNeeds(getattr(policy, "memory", False), getattr(policy, "observation_steps", 1))


class LostSessionError(DemoscaleError):
    """A policy with memory does not know the episode of an observation after its first: its server was
    restarted, or dropped the session. The episode can only be played again from its start.
    """


class Policy(Protocol):
    """Anything that turns observations into action chunks. A policy may also have `memory` and
    `observation_steps`, see `PolicyNeeds`.

    A policy with memory starts a session at an observation with step 0, whether its episode is known or not,
    and raises LostSessionError for a later step of an unknown episode. `policy.sessions` has helpers.
    """

    @property
    def contract(self) -> Contract:
        """Conventions of the observations that the policy takes and of its actions; constant."""
        ...

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation. Each depends on its own observation only (with memory: on those
        of its session), never on the rest of the batch.
        """
        ...
