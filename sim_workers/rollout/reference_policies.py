"""Policies that anchor the scale of success rates: random actions, the scripted expert, replayed
demonstrations.

They answer without pictures, so their environments may have no cameras. The expert reads the state of the
simulator of its own process; the worker attaches it.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from policy.interface import ActionChunk, Observation
from sim_workers.demos.recorder import Demonstration, Demonstrator
from sim_workers.rollout.suite import EpisodeSpec

ReferenceName = Literal["random", "expert", "replay"]
REFERENCES: tuple[ReferenceName, ...] = get_args(ReferenceName)
CHUNK = 8
"""Control steps between two observations of random actions."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DemoActions:
    """Actions of one recorded demonstration."""

    episode_id: str
    task: str
    actions: bytes
    """(L, A) float32, row by row."""

    @classmethod
    def of(cls, episode_id: str, task: str, actions_LA: npt.NDArray[np.floating[Any]]) -> "DemoActions":
        """Return the actions of an episode."""
        return cls(episode_id, task, np.ascontiguousarray(actions_LA, np.float32).tobytes())

    def rows(self, width: int) -> Array:
        """Return the (L, A) actions of `width` dimensions."""
        return np.frombuffer(self.actions, np.float32).reshape(-1, width)


@dataclass(frozen=True)
class ReferencePolicy:
    """Policy source of a reference; every rollout process builds its own client."""

    name: ReferenceName
    low: tuple[float, ...]
    """Smallest demonstrated value of every action dimension, (A,)."""
    high: tuple[float, ...]
    """Largest demonstrated value of every action dimension, (A,)."""
    demos: tuple[DemoActions, ...] = ()
    """Demonstrations to replay; none for other references."""

    def connect(self) -> "ReferenceClient":
        """Return a client without an environment."""
        return ReferenceClient(self)

    def to_json(self) -> dict[str, Any]:
        """Return what determines the actions, apart from code, JSON-safe."""
        return {
            "name": self.name,
            "range": [self.low, self.high] if self.name == "random" else None,
            "demos": [demo.episode_id for demo in self.demos],
        }


class ReferenceClient:
    """Client of a reference in one rollout process."""

    def __init__(self, source: ReferencePolicy) -> None:
        self._source = source
        self._expert: Demonstrator | None = None
        self._demo: Array | None = None

    def attach(self, env: Any, spec: EpisodeSpec) -> None:
        """Begin an episode of the environment, before its reset. Raises ValueError if the task has no expert,
        or no demonstration to replay.
        """
        if self._source.name == "expert":
            self._expert = Demonstrator(env, Demonstration(spec.task, spec.scene_seed, 0.0))
        if self._source.name == "replay":
            demos = [demo for demo in self._source.demos if demo.task == spec.task]
            if not demos:
                raise ValueError(f"no demonstration of {spec.task} to replay")
            self._demo = demos[spec.scene_seed % len(demos)].rows(len(self._source.low))

    def act(self, observation: Observation) -> ActionChunk:
        """Return the next actions: random ones for CHUNK steps, the expert's next one, or the whole
        demonstration, whose last action is then repeated.
        """
        if self._expert:
            action, _ = self._expert.act()
            return ActionChunk(action[None].astype(np.float32), 1)
        if self._demo is not None:
            rest = self._demo[observation.step :]
            actions = rest if len(rest) else np.repeat(self._demo[-1:], CHUNK, 0)
            return ActionChunk(actions, len(actions))
        rng = np.random.default_rng(observation.noise_seed)
        low, high = np.array(self._source.low), np.array(self._source.high)
        return ActionChunk(rng.uniform(low, high, (CHUNK, len(low))).astype(np.float32), CHUNK)
