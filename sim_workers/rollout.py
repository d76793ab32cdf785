"""One evaluation episode: look, act for a chunk, look again, until success or the horizon."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from policy.interface import ActionChunk, Observation
from sim_workers.suite import EpisodeSpec


class Env(Protocol):
    """What an episode needs of a simulator."""

    def reset(self, seed: int) -> None: ...
    def step(self, action: npt.NDArray[np.floating[Any]]) -> None: ...
    def look(self, noise_seed: int) -> Observation: ...
    @property
    def succeeded(self) -> bool: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one listed episode."""

    spec: EpisodeSpec
    result: Literal["success", "failure", "error"]
    """`error`: the machinery failed, not the policy; neither a success nor a failure."""
    steps: int
    """Control steps played."""
    looks: int
    """Times the policy was asked."""
    sim_s: float
    """Seconds simulating and rendering."""
    policy_s: float
    """Seconds waiting for the policy."""
    message: str = ""
    """Cause of an error, one line."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Outcome":
        return cls(**{**data, "spec": EpisodeSpec(**data["spec"])})


def run_episode(
    env: Env, spec: EpisodeSpec, horizon: int, act: Callable[[Observation], ActionChunk], after_step: Callable[[int], None] | None = None
) -> Outcome:
    """Play one episode. Pictures are rendered only when the policy looks; success is checked after every step and ends it.

    after_step(steps done) is called after each control step, for whoever records a video.
    """
    began, policy_s, steps, looks = time.perf_counter(), 0.0, 0, 0
    env.reset(spec.scene_seed)
    while steps < horizon and not env.succeeded:
        observation = env.look(spec.chunk_seed(looks))
        asked = time.perf_counter()
        chunk = act(observation)
        policy_s += time.perf_counter() - asked
        looks += 1
        for action in chunk.actions[: chunk.execute]:
            env.step(action)
            steps += 1
            if after_step:
                after_step(steps)
            if env.succeeded or steps == horizon:
                break
    result: Literal["success", "failure"] = "success" if env.succeeded else "failure"
    return Outcome(spec, result, steps, looks, time.perf_counter() - began - policy_s, policy_s)
