"""Where policy and simulator meet: an observation goes in, a chunk of actions comes out.

The one module every room may import, so it needs numpy and nothing else.

Shapes: H, W pixels; P proprioceptive values; T steps of a chunk; A action dimensions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all the named numbers: every random draw of the project comes from seeds made like this."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


@dataclass(frozen=True)
class Observation:
    """What a policy sees when it looks: the present moment, no history.

    images: per camera name, (H, W, 3) RGB uint8, upright (row 0 is the top of the picture).
    proprio: (P,) float32, laid out as the contract's `proprio` says.
    instruction: the task as a sentence.
    noise_seed: seeds every random draw of this call, so that the answer is a function of the observation alone.
    """

    images: dict[str, npt.NDArray[np.uint8]]
    proprio: npt.NDArray[np.float32]
    instruction: str
    noise_seed: int


@dataclass(frozen=True)
class ActionChunk:
    """The policy's answer: the next T actions, of which the first `execute` are meant to be carried out before it looks again.

    actions: (T, A) float32 in the units the simulator takes (robosuite OSC_POSE: each dimension in [-1, 1]).
    """

    actions: npt.NDArray[np.float32]
    execute: int


@dataclass(frozen=True)
class Imagination:
    """The future a policy expects from a look on, for people to see beside what happened."""

    frames: dict[str, npt.NDArray[np.uint8]]
    """Per camera (F, H, W, 3) RGB; the f-th shows the moment (f + 1) * stride control steps after the look."""
    stride: int
    """Control steps from one frame to the next."""


@dataclass(frozen=True)
class Contract:
    """The conventions both sides of the border must share; they are compared before the first step.

    A wrong one rarely crashes. It quietly costs success (a flipped picture, a gripper that opens for "close"), so it is data.
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    """(H, W) in pixels, the same for every camera."""
    render_profile: str
    """Name of the rendering quality the pictures were made with, `sim_workers.render.PROFILES`."""
    proprio: tuple[str, ...]
    """One name per proprioceptive value, in order."""
    action: tuple[str, ...]
    """One name per action dimension, in order; the name states unit and sign."""
    control_hz: float
    simulator: str
    """Name and versions of what made the pictures and moved the robot."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Contract":
        return cls(
            cameras=tuple(data["cameras"]),
            image_size=(int(data["image_size"][0]), int(data["image_size"][1])),
            render_profile=data["render_profile"],
            proprio=tuple(data["proprio"]),
            action=tuple(data["action"]),
            control_hz=float(data["control_hz"]),
            simulator=data["simulator"],
        )

    def mismatches(self, offered: "Contract") -> list[str]:
        """One sentence for every convention in which `offered` (a simulator, a data set) is not what this policy was trained on."""
        sentences = []
        for name, mine in self.to_json().items():
            theirs = offered.to_json()[name]
            if tuple(mine) != tuple(theirs) if isinstance(mine, (list, tuple)) else mine != theirs:
                sentences.append(f"{_MEANING[name]}: the policy was trained with {_show(mine)}, here it is {_show(theirs)}")
        return sentences


_MEANING = {
    "cameras": "cameras, in order",
    "image_size": "image size (height, width)",
    "render_profile": "render profile",
    "proprio": "proprioception layout",
    "action": "action layout",
    "control_hz": "control rate in Hz",
    "simulator": "simulator",
}


def _show(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class Policy(Protocol):
    """Anything that turns observations into action chunks."""

    @property
    def contract(self) -> Contract: ...

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One chunk per observation. Each answer depends on its own observation only, never on the batch it came in."""
        ...
