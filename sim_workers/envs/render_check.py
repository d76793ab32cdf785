"""Portrait of one fixed scene, compared between processes before they score, to detect differences in
pictures or physics.

Two environments in one process, another driver or another processor change pictures and trajectories without
an error; a portrait shows it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim_workers.arithmetic import Arithmetic
from sim_workers.envs.render import driver
from sim_workers.rollout.episode import Env

SCENE_SEED = 0  # a demonstrated scene: never an evaluated one
STEPS = 4
STATE_TOLERANCE = 1e-6
"""Largest difference of a position (m, rad) or velocity after STEPS steps that is rounding."""
NOBODY = "nobody"
"""Driver of an environment without cameras."""
BLOCKS, BLOCK_TOLERANCE = 8, 2.0
"""Parts of a picture per side, and the largest difference of a part's mean grey level that is rounding."""


@dataclass(frozen=True)
class RenderFingerprint:
    """Hashes of one process's trajectory and pictures of the fixed scene, with the software and hardware that
    made them.
    """

    simulator: str
    """Name and versions."""
    driver: str
    """GL backend, renderer and version; see `driver`."""
    processor: str
    """Kind of processor (`sim_workers.arithmetic`)."""
    physics: str
    """Hash of every joint's position and velocity at the start and after each of STEPS steps."""
    pixels: str
    """Hash of the policy's camera pictures at the start and after the last step."""
    state: tuple[float, ...] = ()
    """Every joint's position and velocity after the last step; none in portraits of earlier versions."""
    blocks: tuple[float, ...] = ()
    """Mean grey levels, 0 to 255, of BLOCKS x BLOCKS parts of the pictures after the last step."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RenderFingerprint":
        """Invert `dataclasses.asdict` after JSON."""
        fields: dict[str, Any] = {
            name: tuple(told) if isinstance(told, list) else told for name, told in data.items()
        }
        return cls(**fields)

    def rounds_like(self, other: "RenderFingerprint", pictures: bool = True) -> bool:
        """Return whether physics and, on request, pictures differ from the other's in rounding alone, as
        between kinds of processor.
        """
        if self.simulator != other.simulator or not self.state:
            return False
        pairs = [(self.state, other.state, STATE_TOLERANCE)]
        pairs += [(self.blocks, other.blocks, BLOCK_TOLERANCE)] if pictures else []
        return all(
            len(mine) == len(theirs) and bool(np.allclose(mine, theirs, rtol=0, atol=tolerance))
            for mine, theirs, tolerance in pairs
        )

    def difference(self, reference: "RenderFingerprint") -> str:
        """Return one sentence on the first difference from the reference and its cause; empty if there is
        none.
        """
        if self.simulator != reference.simulator:
            return (
                f"version: this worker simulates with {self.simulator}, the reference with"
                f" {reference.simulator}"
            )
        if self.physics != reference.physics:
            cause = (
                "same processor and versions, so something else in this process changes it"
                if self.processor == reference.processor
                else f"this worker runs on {self.processor}, the reference on {reference.processor}"
            )
            return f"physics: the same actions lead to another state than in the reference; {cause}"
        if self.pixels == reference.pixels:
            return ""
        if self.driver != reference.driver:
            return (
                f"driver: this worker draws with {self.driver}, the reference with {reference.driver}, and"
                " the pictures differ"
            )
        return (
            f"contamination: the pictures differ from the reference's, made by the same driver"
            f" ({self.driver}); an earlier environment of this process changed how it renders"
        )


def render_fingerprint(env: Env) -> RenderFingerprint:
    """Return the portrait of a live environment, which needs a reset afterwards. Takes about a tenth of a
    second, rendering not included.
    """
    physics, pixels, pictures = hashlib.sha256(), hashlib.sha256(), list[npt.NDArray[np.uint8]]()
    rng = np.random.default_rng(SCENE_SEED)
    env.reset(SCENE_SEED)
    for step in range(STEPS + 1):
        if step:
            env.step(rng.uniform(-1, 1, len(env.contract.action)))
        physics.update(env.physics.tobytes())
        if step in (0, STEPS):
            pictures = [picture for _, picture in sorted(env.observe(SCENE_SEED).images.items())]
            for picture in pictures:
                pixels.update(picture.tobytes())
    blocks = [mean for picture in pictures for mean in _means(picture)]
    draws = driver_of(env) if env.contract.cameras else NOBODY
    return RenderFingerprint(
        env.contract.simulator,
        draws,
        Arithmetic.here().kind,
        physics.hexdigest()[:16],
        pixels.hexdigest()[:16],
        tuple(env.physics.tolist()),
        tuple(blocks),
    )


def driver_of(env: Env) -> str:
    """Return what draws an environment's pictures, as `driver`; call it after the first picture."""
    return driver() if getattr(env, "draws_with_gl", False) else "the environment's own renderer"


def _means(picture: npt.NDArray[np.uint8]) -> list[float]:
    """Return the mean grey levels of BLOCKS x BLOCKS parts of an (H, W, 3) picture, row by row."""
    rows = np.array_split(picture.mean(-1), BLOCKS)
    return [round(float(part.mean()), 3) for row in rows for part in np.array_split(row, BLOCKS, axis=1)]


def processor_name() -> str:
    """Return the processor's name: numerical libraries choose their kernels by it, and these round
    differently.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "an unknown processor",
    )
