"""The fixed list of evaluation episodes. Every checkpoint of every arm meets the same list, so arms compare episode by episode."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from policy.interface import derived_seed

# Scene seeds of training demonstrations stay below, those of evaluation start here: no evaluated scene was ever demonstrated.
FIRST_EVALUATION_SEED = 1_000_000


SHIFTS = ("nominal", "lighting", "texture", "camera", "object", "placement", "distractors")
"""Ways in which an evaluated scene may differ from every demonstrated one; `nominal`: in none. `sim_workers/envs/shifts.py` makes them."""
VARIANTS = 5
"""Of each shift; an episode's follows from its scene seed."""


@dataclass(frozen=True, order=True)
class EpisodeSpec:
    """One line of the list: which task, which initial scene, which policy noise, in which shifted world."""

    task: str
    scene_seed: int
    noise_seed: int
    shift: str = "nominal"

    @property
    def episode_id(self) -> str:
        shift = "" if self.shift == "nominal" else f"{self.shift}-"
        return f"{self.task.replace('/', '.')}-{shift}{self.scene_seed}-{self.noise_seed}"

    @staticmethod
    def task_of(episode_id: str) -> str:
        """The task in an episode's id, as it is written there; of nominal episodes."""
        return episode_id.rsplit("-", 2)[0]

    @property
    def variant(self) -> int:
        """Which of the shift's worlds: the same scene seed meets the same one under every policy."""
        return 0 if self.shift == "nominal" else self.scene_seed % VARIANTS

    def chunk_seed(self, chunk: int) -> int:
        """Seed of the policy noise of the `chunk`-th time the policy looks."""
        return derived_seed(self.noise_seed, self.scene_seed, chunk)


@dataclass(frozen=True)
class Rules:
    """When an episode ends, and what counts as success."""

    horizon: int
    """Control steps until it is over."""
    settle: int = 10
    """Control steps that the policy goes on acting after the first success, to see whether it lasts."""
    success: Literal["once", "at_end"] = "once"
    """`once`: at any step; `at_end`: in the last step played."""


@dataclass(frozen=True)
class Suite:
    """tasks x episodes, each played by the same rules."""

    tasks: tuple[str, ...]
    episodes: int
    rules: Rules
    block: int = 0
    """Which block of seeds. Choosing a checkpoint on one block and reporting it on another avoids the winner's curse."""
    shift: str = "nominal"
    """How the scenes differ from the demonstrated ones."""

    def episode_list(self) -> list[EpisodeSpec]:
        """In an order shuffled over tasks and scenes (seeded), so that no worker gets all the hard ones."""
        first = FIRST_EVALUATION_SEED * (1 + self.block)
        specs = [EpisodeSpec(task, first + i, first + i, self.shift) for task in self.tasks for i in range(self.episodes)]
        order = np.random.default_rng(self.block).permutation(len(specs))
        return [specs[i] for i in order]

    def fingerprint(self) -> str:
        """Equal for equal lists played by equal rules."""
        text = json.dumps([[asdict(spec) for spec in sorted(self.episode_list())], asdict(self.rules)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
