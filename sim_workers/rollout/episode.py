"""One evaluation episode: look, act for a chunk, look again, until success or the horizon."""

import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from policy.interface import ActionChunk, Contract, Observation
from sim_workers.rollout.divergence import EpisodeFaultError, refuse_action
from sim_workers.rollout.suite import EpisodeSpec, Rules


class Env(Protocol):
    """A task of some simulator. What follows a reset depends on its seed and the actions alone."""

    contract: Contract
    film_camera: str
    """Shows a person the whole scene."""

    def reset(self, seed: int) -> None:
        """Start the episode of scene `seed`; EpisodeFaultError if the simulation diverges."""

    def step(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Apply one (A,) action for one control step; EpisodeFaultError if the simulation diverges."""

    def look(self, noise_seed: int) -> Observation:
        """What the policy sees now, rendered now."""

    @property
    def succeeded(self) -> bool:
        """Whether the task is done in this very state."""

    @property
    def physics(self) -> npt.NDArray[np.float64]:
        """(N,) everything that moves: equal for equal trajectories."""

    def picture(self, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """(H, W, 3) of any camera of the scene."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one listed episode."""

    spec: EpisodeSpec
    result: Literal["success", "failure", "error"]
    """`error`: the machinery failed, the simulation diverged or an action was not finite; neither a success nor a failure."""
    steps: int
    """Control steps played."""
    looks: int
    """Times the policy was asked."""
    sim_s: float
    """Seconds simulating and rendering."""
    policy_s: float
    """Seconds waiting for the policy."""
    first_success: int | None = None
    """Control steps until the task was done for the first time; None if never."""
    success_at_end: bool = False
    """Whether it was done in the last step played, `Rules.settle` steps after the first success at the earliest."""
    message: str = ""
    """Cause of an error, one line."""
    worker: str = ""
    """host/pid of the process that played it; empty if none is known."""

    @property
    def success_once(self) -> bool:
        return self.first_success is not None

    @property
    def played(self) -> dict[str, Any]:
        """What is the same whoever plays the episode, and whenever: all but the seconds and the worker."""
        return {name: value for name, value in self.to_json().items() if name != "worker" and not name.endswith("_s")}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Outcome":
        return cls(**{**data, "spec": EpisodeSpec(**data["spec"])})


class Stepped(NamedTuple):
    """A control step was made: a moment to film it, or to say that one is alive."""

    steps: int
    """Control steps played so far."""
    succeeded: bool
    """Whether the task is done now."""


def episode(env: Env, spec: EpisodeSpec, rules: Rules) -> Generator[Observation | Stepped, ActionChunk | None, Outcome]:
    """Play one episode and return its outcome. It yields what the policy sees, to be sent the chunk that answers it, and Stepped in between.

    Pictures are rendered only when the policy looks; success is checked after every step. An action that is not finite, a chunk without actions
    and a simulation that diverges end the episode as an error, whatever was reached before.
    """
    began, policy_s, steps, looks = time.perf_counter(), 0.0, 0, 0

    def error(message: str) -> Outcome:
        return Outcome(spec, "error", steps, looks, time.perf_counter() - began - policy_s, policy_s, message=message)

    try:
        env.reset(spec.scene_seed)
    except EpisodeFaultError as fault:
        return error(f"before the first control step {fault}")
    done = env.succeeded
    first_success = 0 if done else None
    end = min(rules.horizon, rules.settle) if done else rules.horizon
    while steps < end:
        observation = env.look(spec.chunk_seed(looks))
        asked = time.perf_counter()
        chunk = yield observation
        assert chunk is not None
        policy_s += time.perf_counter() - asked
        looks += 1
        actions = chunk.actions[: chunk.execute]
        if not len(actions):
            return error(
                f"in control step {steps + 1} the policy answered with a chunk of no actions; its `execute` and its actions need one at least"
            )
        for action in actions:
            try:
                if not np.isfinite(action).all():
                    refuse_action(action, env.contract.action)
                env.step(action)
            except EpisodeFaultError as fault:
                return error(f"in control step {steps + 1} {fault}")
            steps += 1
            done = env.succeeded
            if done and first_success is None:
                first_success, end = steps, min(rules.horizon, steps + rules.settle)
            yield Stepped(steps, done)
            if steps == end:
                break
    won = done if rules.success == "at_end" else first_success is not None
    sim_s = time.perf_counter() - began - policy_s
    return Outcome(spec, "success" if won else "failure", steps, looks, sim_s, policy_s, first_success, done)


def run_episode(env: Env, spec: EpisodeSpec, rules: Rules, act: Callable[[Observation], ActionChunk]) -> Outcome:
    """Play one episode with a policy at hand."""
    playing = episode(env, spec, rules)
    try:
        said = next(playing)
        while True:
            said = playing.send(None if isinstance(said, Stepped) else act(said))
    except StopIteration as over:
        outcome: Outcome = over.value
        return outcome
