"""How a foreign server names and shapes pictures, state, instruction and actions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policy.http_protocol import RemoteError
from policy.interface import ActionChunk, Contract, Observation
from policy.untrusted import printable, read_json

MOST_BYTES = 1 << 20
"""Size limit of a layout's file."""
AXIS_ANGLE = "axis_angle"


class StatePart(NamedTuple):
    """Values `first` to `last` - 1 of the proprioception."""

    first: int
    last: int
    rotation: str = ""
    """AXIS_ANGLE: the four values are a quaternion x, y, z, w, and three of axis times angle are sent."""

    def of(self, proprio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the values that are sent."""
        values = proprio[self.first : self.last]
        return axis_angle(values) if self.rotation == AXIS_ANGLE else values


def axis_angle(quaternion: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return axis times angle, (3,) in rad, of a unit quaternion x, y, z, w; the angle lies in 0 to 2 pi, as
    robosuite's own conversion has it.
    """
    cosine = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - cosine * cosine)
    if sine < 1e-9:
        return np.zeros(3, np.float32)
    scaled: npt.NDArray[np.float32] = (quaternion[:3] * (2.0 * np.arccos(cosine) / sine)).astype(np.float32)
    return scaled


@dataclass(frozen=True)
class Layout:
    """The names under which a server takes an observation, and those of its actions."""

    images: tuple[tuple[str, str], ...]
    """The server's name of each picture, and the camera of the contract."""
    states: tuple[tuple[str, tuple[StatePart, ...]], ...]
    """The server's name of each state vector, and the parts of the proprioception in it."""
    instruction: str
    """The server's name of the instruction; empty: it is not sent."""
    actions: tuple[str, ...] = ("actions",)
    """The server's names of the actions, concatenated in this order."""
    mirrored: bool = False
    """Whether pictures are sent with left and right exchanged, as openpi's data of LIBERO have them."""

    @classmethod
    def named(cls, name: str, contract: Contract) -> "Layout":
        """Return a layout: `libero` or `droid` (those of openpi's checkpoints; `openpi` is `libero`),
        `vla-eval`, `groot`, or that of a JSON file (`from_json`).

        The first two cameras of the contract are the outer and the wrist camera. Raises RemoteError if there
        is none of this name, or the contract lacks what it sends.
        """
        cameras, width = contract.cameras, len(contract.proprio)
        own = tuple(zip(cameras, cameras, strict=True))
        whole = (("state", (StatePart(0, width),)),) if width else ()
        if name in ("libero", "openpi"):
            pose = (StatePart(0, 3), StatePart(3, 7, AXIS_ANGLE), StatePart(7, 9))
            images = tuple(zip(("observation/image", "observation/wrist_image"), cameras, strict=False))
            found = cls(images, (("observation/state", pose),), "prompt", mirrored=True)
        elif name == "droid":
            sides = ("observation/exterior_image_1_left", "observation/wrist_image_left")
            joints = ("observation/joint_position", (StatePart(0, 7),))
            gripper = ("observation/gripper_position", (StatePart(7, 8),))
            found = cls(tuple(zip(sides, cameras, strict=False)), (joints, gripper), "prompt")
        elif name == "vla-eval":
            found = cls(own, whole, "task_description")
        elif name == "groot":
            found = cls(own, whole, "task", ("action",))
        elif name.endswith(".json"):
            found = cls.from_file(Path(name))
        else:
            raise RemoteError(
                f"there is no layout {printable(name, 80)}; known are libero, droid, vla-eval and groot, or"
                " name a .json file"
            )
        found.check(contract)
        return found

    @classmethod
    def from_file(cls, path: Path) -> "Layout":
        """Return the layout in a JSON file. Raises RemoteError if it cannot be read or is not valid."""
        try:
            with path.open("rb") as file:
                return cls.from_json(read_json(file.read(MOST_BYTES + 1), MOST_BYTES))
        except (OSError, ValueError, TypeError) as error:
            raise RemoteError(f"the layout {path} is not valid: {printable(str(error))}") from None

    @classmethod
    def from_json(cls, data: Any) -> "Layout":
        """Return the layout of an object like {"images": {"observation/image": "agentview"}, "states":
        {"observation/state": [[0, 3], [3, 7, "axis_angle"]]}, "instruction": "prompt", "actions":
        ["actions"], "mirrored": false}; the last three may be absent.

        Raises TypeError or ValueError, with one sentence, if it is not valid.
        """
        if not isinstance(data, dict):
            raise TypeError(f"a layout is a JSON object, not {printable(repr(data), 40)}")
        known = ("images", "states", "instruction", "actions", "mirrored")
        if unknown := [name for name in data if name not in known]:
            raise ValueError(f"it holds {printable(repr(unknown[0]), 60)}; known are {', '.join(known)}")
        images, states = data.get("images", {}), data.get("states", {})
        if not isinstance(images, dict) or not all(isinstance(camera, str) for camera in images.values()):
            raise ValueError("images must be an object of the contract's cameras by the server's names")
        if not isinstance(states, dict):
            raise ValueError("states must be an object of lists of [first, last] by the server's names")
        actions, mirrored = data.get("actions", ["actions"]), data.get("mirrored", False)
        if not isinstance(actions, list) or not actions or not all(isinstance(n, str) for n in actions):
            raise ValueError("actions must be a list of the server's names")
        instruction = data.get("instruction", "")
        if not isinstance(instruction, str) or not isinstance(mirrored, bool):
            raise ValueError("instruction must be a name, and mirrored true or false")
        parts = tuple(
            (name, tuple(_part(one, name) for one in _list(some, name))) for name, some in states.items()
        )
        return cls(tuple(images.items()), parts, instruction, tuple(actions), mirrored)

    def check(self, contract: Contract) -> None:
        """Raise RemoteError if the layout sends a camera or a value that the contract lacks."""
        for name, camera in self.images:
            if camera not in contract.cameras:
                raise RemoteError(
                    f"the layout sends the camera {printable(camera, 60)} as {printable(name, 60)}; the"
                    f" contract has {', '.join(contract.cameras) or 'no camera'}"
                )
        for name, parts in self.states:
            last = max((part.last for part in parts), default=0)
            if last > len(contract.proprio):
                raise RemoteError(
                    f"the layout sends proprioceptive value {last} in {printable(name, 60)}; the contract"
                    f" has {len(contract.proprio)}"
                )

    def pictures(self, observation: Observation) -> dict[str, npt.NDArray[np.uint8]]:
        """Return the pictures by the server's names, (H, W, 3) uint8."""
        return {
            name: np.ascontiguousarray(
                observation.images[camera][:, ::-1] if self.mirrored else observation.images[camera]
            )
            for name, camera in self.images
        }

    def vectors(self, observation: Observation) -> dict[str, npt.NDArray[np.float32]]:
        """Return the state vectors by the server's names, float32."""
        return {
            name: np.concatenate([part.of(observation.proprio) for part in parts]).astype(np.float32)
            for name, parts in self.states
        }


def chunk_of(actions: npt.NDArray[Any], contract: Contract, execute: int, where: str) -> ActionChunk:
    """Return the chunk of (T, A) or (A,) actions, of which `execute` are executed; 0: all.

    Raises RemoteError, which names the server as `where`, if they do not match the contract.
    """
    given = np.atleast_2d(actions)
    if given.ndim != 2 or given.shape[1] != len(contract.action) or given.dtype.kind not in "iuf":
        raise RemoteError(
            f"{where} answered with actions of {given.dtype} {printable(str(given.shape), 60)}; the contract"
            f" has {len(contract.action)} action dimensions"
        )
    if not 1 <= max(execute, 1) <= len(given):
        raise RemoteError(
            f"{where} answered with {len(given)} actions, of which {execute or 'all'} shall be executed;"
            " lower execute"
        )
    with np.errstate(over="ignore"):
        values = given.astype(np.float32)
    if not np.isfinite(values).all():
        raise RemoteError(f"{where} answered with an action that is not finite")
    return ActionChunk(values, execute or len(values))


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"states: {printable(name, 60)} must be a list of [first, last]")
    return value


def _part(value: Any, name: str) -> StatePart:
    if (
        isinstance(value, list)
        and len(value) in (2, 3)
        and all(type(end) is int for end in value[:2])
        and 0 <= value[0] < value[1]
        and value[2:] in ([], [AXIS_ANGLE])
        and (not value[2:] or value[1] - value[0] == 4)
    ):
        return StatePart(*value)
    raise ValueError(
        f"states: {printable(name, 60)} holds {printable(repr(value), 60)}; a part is [first, last], or"
        f' [first, first + 4, "{AXIS_ANGLE}"] for a quaternion'
    )
