"""Portrait of one fixed scene, compared between processes before they score, to detect differences in
pictures or physics.

Two environments in one process, another driver or another processor change pictures and trajectories without
an error; a portrait shows it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim_workers.envs.render import driver
from sim_workers.rollout.episode import Env

SCENE_SEED = 0  # a demonstrated scene: never an evaluated one
STEPS = 4


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
    physics: str
    """Hash of every joint's position and velocity at the start and after each of STEPS steps."""
    pixels: str
    """Hash of the policy's camera pictures at the start and after the last step."""

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
    physics, pixels = hashlib.sha256(), hashlib.sha256()
    rng = np.random.default_rng(SCENE_SEED)
    env.reset(SCENE_SEED)
    for step in range(STEPS + 1):
        if step:
            env.step(rng.uniform(-1, 1, len(env.contract.action)))
        physics.update(env.physics.tobytes())
        if step in (0, STEPS):
            for _, picture in sorted(env.observe(SCENE_SEED).images.items()):
                pixels.update(picture.tobytes())
    draws = "nobody"
    if env.contract.cameras:
        draws = driver() if getattr(env, "draws_with_gl", False) else "the environment's own renderer"
    return RenderFingerprint(
        env.contract.simulator, draws, processor_name(), physics.hexdigest()[:16], pixels.hexdigest()[:16]
    )


def processor_name() -> str:
    """Return the processor's name: numerical libraries choose their kernels by it, and these round
    differently.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "an unknown processor",
    )
