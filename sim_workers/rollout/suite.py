"""Fixed list of evaluation episodes. Every checkpoint of every arm plays the same list, so arms compare
episode by episode.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from policy.interface import derived_seed

# Scene seeds of training demonstrations stay below, those of evaluation start here: no evaluated scene is
# ever demonstrated.
FIRST_EVALUATION_SEED = 1_000_000


SHIFTS = ("nominal", "lighting", "texture", "camera", "object", "placement", "distractors")
"""Ways in which an evaluated scene may differ from every demonstrated one; `nominal`: none.
`sim_workers/envs/shifts.py` builds them.
"""
Reset = Literal["settled", "libero", "openvla"]
"""How an episode of LIBERO begins, as `sim_workers.envs.libero.LiberoEnv` says; every other task is
`settled`.
"""
SELECT_BLOCK = 1
"""Block of the scenes on which searches decide, where they have scenes of their own; others are reported."""
VARIANTS = 5
"""Number of variants of each shift; an episode's scene seed determines its variant."""


def task_in_ids(task: str) -> str:
    """Return a task's name as ids and file names have it: with `.` in place of `/`."""
    return task.replace("/", ".")


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
        return f"{task_in_ids(self.task)}-{shift}{self.scene_seed}-{self.noise_seed}"

    @staticmethod
    def task_of(episode_id: str) -> str:
        """Return the task in a nominal episode's id, as `task_in_ids` writes it."""
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
    horizons: tuple[tuple[str, int], ...] = ()
    """Pairs of a task and its own horizon, in place of the rules'; sorted, only where it is another."""
    processors: Literal["one", "mixed"] = "one"
    """`mixed`: processors whose simulation differs in rounding may play its episodes; `one`: they may not."""
    offset: int = 0
    """Number of scenes of the block that come before the first one."""
    reset: Reset = "settled"
    """How its episodes begin; other than `settled` only for LIBERO's tasks."""

    @classmethod
    def of(
        cls,
        tasks: tuple[str, ...],
        episodes: int,
        rules: EpisodeRules,
        horizons: Mapping[str, int],
        block: int = 0,
        shift: str = "nominal",
    ) -> "Suite":
        """Return the suite whose tasks have the horizons; the rules' own is replaced by the longest. With one
        horizon for all it equals a suite without `horizons`.
        """
        longest = max(horizons[task] for task in tasks)
        others = tuple(sorted((task, horizons[task]) for task in tasks if horizons[task] != longest))
        return cls(tasks, episodes, replace(rules, horizon=longest), block, shift, others)

    def rules_of(self, task: str) -> EpisodeRules:
        """Return the rules by which the task is played."""
        own = dict(self.horizons).get(task)
        return self.rules if own is None else replace(self.rules, horizon=own)

    @property
    def control_steps(self) -> int:
        """Largest number of control steps of all episodes together."""
        return self.episodes * sum(self.rules_of(task).horizon for task in self.tasks)

    def to_json(self) -> dict[str, Any]:
        """Return what decides how the list is played, JSON-safe; `horizons` only where tasks have own ones,
        `processors` only where they are mixed, `offset` only if there is one, `reset` only if it is not
        `settled`.
        """
        return {
            "tasks": self.tasks,
            "episodes": self.episodes,
            "shift": self.shift,
            "block": self.block,
            **asdict(self.rules),
            **({"horizons": dict(self.horizons)} if self.horizons else {}),
            **({"processors": self.processors} if self.processors != "one" else {}),
            **({"offset": self.offset} if self.offset else {}),
            **({"reset": self.reset} if self.reset != "settled" else {}),
        }

    def episode_list(self) -> list[EpisodeSpec]:
        """Return the episodes in an order shuffled over tasks and scenes (seeded), so that no worker gets all
        the hard ones.
        """
        first = FIRST_EVALUATION_SEED * (1 + self.block) + self.offset
        specs = [
            EpisodeSpec(task, first + i, first + i, self.shift)
            for task in self.tasks
            for i in range(self.episodes)
        ]
        order = np.random.default_rng(self.block).permutation(len(specs))
        return [specs[i] for i in order]

    def fingerprint(self) -> str:
        """Return a hash that is equal for equal lists played by equal rules."""
        facts: list[Any] = [[asdict(spec) for spec in sorted(self.episode_list())], asdict(self.rules)]
        facts += [dict(self.horizons)] if self.horizons else []
        facts += [{"processors": self.processors}] if self.processors != "one" else []
        facts += [{"reset": self.reset}] if self.reset != "settled" else []
        text = json.dumps(facts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
