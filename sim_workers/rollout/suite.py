"""Fixed list of evaluation episodes. Every checkpoint of every arm plays the same list, so arms compare
episode by episode.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from policy.interface import derived_seed

# Scene seeds of training demonstrations stay below, those of evaluation start here: no evaluated scene is
# ever demonstrated.
FIRST_EVALUATION_SEED = 1_000_000


SHIFTS = ("nominal", "lighting", "texture", "camera", "object", "placement", "distractors")
"""Ways in which an evaluated scene may differ from every demonstrated one; `nominal`: none.
`sim_workers/envs/shifts.py` builds them.
"""
VARIANTS = 5
"""Number of variants of each shift; an episode's scene seed determines its variant."""


@dataclass(frozen=True, order=True)
class EpisodeSpec:
    """Entry of the list: a task, the seeds of its initial scene and of the policy noise, and the shift of its
    world.
    """

    task: str
    scene_seed: int
    noise_seed: int
    shift: str = "nominal"

    @property
    def episode_id(self) -> str:
        """Id that is unique within a suite: task, shift unless nominal, and both seeds."""
        shift = "" if self.shift == "nominal" else f"{self.shift}-"
        return f"{self.task.replace('/', '.')}-{shift}{self.scene_seed}-{self.noise_seed}"

    @staticmethod
    def task_of(episode_id: str) -> str:
        """Return the task in a nominal episode's id, with `.` in place of `/`."""
        return episode_id.rsplit("-", 2)[0]

    @property
    def variant(self) -> int:
        """Index of the shift's world: the same for the same scene seed under every policy; 0 for nominal."""
        return 0 if self.shift == "nominal" else self.scene_seed % VARIANTS

    def chunk_seed(self, chunk: int) -> int:
        """Return the seed of the policy noise for the `chunk`-th observation, counted from 0."""
        return derived_seed(self.noise_seed, self.scene_seed, chunk)


@dataclass(frozen=True)
class EpisodeRules:
    """Rules for the end of an episode and for its success."""

    horizon: int
    """Largest number of control steps of an episode."""
    settle: int = 10
    """Control steps that the policy continues to act after the first success, to show whether the success
    lasts.
    """
    success: Literal["once", "at_end"] = "once"
    """`once`: at any step; `at_end`: in the last step played."""


@dataclass(frozen=True)
class Suite:
    """Evaluation of tasks x episodes, all played by the same rules."""

    tasks: tuple[str, ...]
    episodes: int
    """Number of episodes per task."""
    rules: EpisodeRules
    block: int = 0
    """Index of the block of seeds. Choosing a checkpoint on one block and reporting it on another avoids the
    winner's curse.
    """
    shift: str = "nominal"
    """Difference between the scenes and the demonstrated ones; one of SHIFTS."""

    def episode_list(self) -> list[EpisodeSpec]:
        """Return the episodes in an order shuffled over tasks and scenes (seeded), so that no worker gets all
        the hard ones.
        """
        first = FIRST_EVALUATION_SEED * (1 + self.block)
        specs = [
            EpisodeSpec(task, first + i, first + i, self.shift)
            for task in self.tasks
            for i in range(self.episodes)
        ]
        order = np.random.default_rng(self.block).permutation(len(specs))
        return [specs[i] for i in order]

    def fingerprint(self) -> str:
        """Return a hash that is equal for equal lists played by equal rules."""
        text = json.dumps([[asdict(spec) for spec in sorted(self.episode_list())], asdict(self.rules)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
