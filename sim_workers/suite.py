"""The fixed list of evaluation episodes. Every checkpoint of every arm meets the same list, so arms compare episode by episode."""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from policy.interface import derived_seed

TASKS = {
    "Lift": "lift the red cube",
    "Stack": "stack the red cube on the green cube",
    "Door": "open the door",
    "PickPlaceCan": "put the can into its bin",
    "NutAssemblySquare": "put the square nut on the square peg",
}
"""Every task and its instruction."""

# Scene seeds of training demonstrations stay below, those of evaluation start here: no evaluated scene was ever demonstrated.
FIRST_EVALUATION_SEED = 1_000_000


@dataclass(frozen=True, order=True)
class EpisodeSpec:
    """One line of the list: which task, which initial scene, which policy noise."""

    task: str
    scene_seed: int
    noise_seed: int

    @property
    def episode_id(self) -> str:
        return f"{self.task}-{self.scene_seed}-{self.noise_seed}"

    def chunk_seed(self, chunk: int) -> int:
        """Seed of the policy noise of the `chunk`-th time the policy looks."""
        return derived_seed(self.noise_seed, self.scene_seed, chunk)


@dataclass(frozen=True)
class Suite:
    """tasks x episodes, each run for at most `horizon` control steps. A success at any step ends the episode."""

    tasks: tuple[str, ...]
    episodes: int
    horizon: int
    block: int = 0
    """Which block of seeds. Choosing a checkpoint on one block and reporting it on another avoids the winner's curse."""

    def episode_list(self) -> list[EpisodeSpec]:
        """In an order shuffled over tasks and scenes (seeded), so that no worker gets all the hard ones."""
        first = FIRST_EVALUATION_SEED * (1 + self.block)
        specs = [EpisodeSpec(task, first + i, first + i) for task in self.tasks for i in range(self.episodes)]
        order = np.random.default_rng(self.block).permutation(len(specs))
        return [specs[i] for i in order]

    def fingerprint(self) -> str:
        """Equal for equal lists played by equal rules."""
        text = json.dumps([[asdict(spec) for spec in sorted(self.episode_list())], self.horizon, "success at any step"])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
