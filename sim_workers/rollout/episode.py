"""One evaluation episode: observe, act for a chunk, observe again, until success or the horizon."""

import time
import uuid
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from policy.interface import PRESENT_ONLY, ActionChunk, Contract, Observation, PolicyNeeds
from sim_workers.rollout.divergence import EpisodeFaultError, refuse_action
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec

NAME_IN_SESSION = 100
"""Maximum characters of the episode's id in the name of a session."""


class Env(Protocol):
    """Task of a simulator, in one process: the contract that every environment keeps.

    - The states after a reset depend on its seed and the actions alone: not on earlier episodes, on the
      process, on the clock or on global generators. Scores of a resumed run rely on it.
    - Nothing is rendered before `observe` or `picture` is called, because most states are never seen.
    - Steps after the task is done are ordinary steps: an episode goes on for `EpisodeRules.settle` of them.
    - An action that is not finite raises `divergence.ActionError` before anything moves
      (`divergence.refuse_action`), and a simulation that leaves the finite numbers raises `DivergedError`;
      both end the episode as an error, and the next reset starts an ordinary one.
    - All methods are called in the thread that made the environment. A process may make another one after
      `close`; a second close does nothing.

    `demoscale task check NAME` plays an environment and checks this (`sim_workers/envs/check.py`).
    """

    contract: Contract
    """Conventions of its observations and actions: what the policy was trained with."""
    film_camera: str
    """Name of the camera that shows the whole scene, for films."""

    def reset(self, seed: int) -> None:
        """Start the episode of scene `seed`. Raises EpisodeFaultError if the simulation diverges."""

    def step(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Apply one (A,) action for one control step. Raises EpisodeFaultError if the simulation diverges."""

    def observe(self, noise_seed: int) -> Observation:
        """Return the policy's observation of the current state, rendered by this call."""

    @property
    def succeeded(self) -> bool:
        """Whether the task is done in the current state."""

    @property
    def physics(self) -> npt.NDArray[np.float64]:
        """State of everything that moves, (N,): equal for equal trajectories."""

    def picture(self, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Return an (H, W, 3) picture of the current state from any camera of the scene."""

    def close(self) -> None:
        """Release the simulator; the environment is not used afterwards."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Result of one listed episode."""

    spec: EpisodeSpec
    result: Literal["success", "failure", "error"]
    """`error`: a component failed, the simulation diverged or an action was not finite; neither a success nor
    a failure.
    """
    steps: int
    """Number of control steps played."""
    looks: int
    """Number of policy observations."""
    sim_s: float
    """Seconds of simulation and rendering."""
    policy_s: float
    """Seconds of waiting for the policy."""
    first_success: int | None = None
    """Number of control steps until the task was done for the first time; None if never."""
    success_at_end: bool = False
    """Whether the task was done in the last step played, `EpisodeRules.settle` steps after the first success
    at the earliest.
    """
    message: str = ""
    """Cause of an error, one line; empty otherwise."""
    worker: str = ""
    """host/pid of the process that played it; empty if unknown."""
    simulated_on: str = ""
    """Arithmetic of that process in words (`sim_workers.arithmetic`); empty if not recorded."""
    acted_on: str = ""
    """Arithmetic of the process that computed the actions; empty if not recorded."""

    @property
    def success_once(self) -> bool:
        """Whether the task was done in any step."""
        return self.first_success is not None

    @property
    def played(self) -> dict[str, Any]:
        """Fields that do not depend on the worker or the time of play: all but the seconds, the worker and
        the arithmetic.
        """
        return {
            name: value
            for name, value in self.to_json().items()
            if name not in ("worker", "simulated_on", "acted_on") and not name.endswith("_s")
        }

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Outcome":
        """Invert `to_json`. Raises KeyError or TypeError if a field is missing or unknown."""
        return cls(**{**data, "spec": EpisodeSpec(**data["spec"])})


class Stepped(NamedTuple):
    """Report of a control step, at which the caller may film or send a heartbeat."""

    steps: int
    """Number of control steps played so far."""
    succeeded: bool
    """Whether the task is done now."""


class _Observer:
    """Observations of one playing of an episode, with the history that the policy needs."""

    def __init__(self, env: Env, spec: EpisodeSpec, needs: PolicyNeeds) -> None:
        self._env, self._preceding = env, needs.observation_steps - 1
        self._session = f"{spec.episode_id[:NAME_IN_SESSION]}-{uuid.uuid4().hex}"
        self._seen: deque[Observation] = deque(maxlen=self._preceding)

    def observe(self, step: int, noise_seed: int) -> Observation:
        """Return the policy's observation after `step` control steps."""
        now = replace(self._env.observe(noise_seed), episode=self._session, step=step)
        if not self._preceding:
            return now
        if not step:
            self._seen.extend([now] * self._preceding)
        history = tuple(replace(seen, noise_seed=noise_seed) for seen in self._seen)
        self._seen.append(now)
        return replace(now, history=history)

    def precede(self, step: int, next_seen: int) -> None:
        """Observe the state after `step` control steps if the observation at `next_seen` shows it."""
        if next_seen - self._preceding <= step < next_seen:
            self._seen.append(replace(self._env.observe(0), episode=self._session, step=step))


def episode(
    env: Env, spec: EpisodeSpec, rules: EpisodeRules, needs: PolicyNeeds = PRESENT_ONLY
) -> Generator[Observation | Stepped, ActionChunk | None, Outcome]:
    """Play one episode and return its outcome. It yields observations, each answered by sending a chunk, and
    Stepped after every control step. The observations of a playing have an `episode` that no other playing
    has.

    Pictures are rendered only for observations and the history that `needs` asks for; success is checked
    after every step. An action that is not finite, a chunk without actions and a simulation that diverges end
    the episode as an error, even after a success.
    """
    began, policy_s, steps, looks = time.perf_counter(), 0.0, 0, 0
    observer = _Observer(env, spec, needs)

    def error(message: str) -> Outcome:
        return Outcome(
            spec, "error", steps, looks, time.perf_counter() - began - policy_s, policy_s, message=message
        )

    try:
        env.reset(spec.scene_seed)
    except EpisodeFaultError as fault:
        return error(f"before the first control step {fault}")
    done = env.succeeded
    first_success = 0 if done else None
    end = min(rules.horizon, rules.settle) if done else rules.horizon
    while steps < end:
        observation = observer.observe(steps, spec.chunk_seed(looks))
        asked = time.perf_counter()
        chunk = yield observation
        assert chunk is not None
        policy_s += time.perf_counter() - asked
        looks += 1
        actions = chunk.actions[: chunk.execute]
        if not len(actions):
            return error(
                f"in control step {steps + 1} the policy answered with an empty chunk; `execute` and the"
                " number of actions must be at least 1"
            )
        next_seen = steps + len(actions)
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
            if next_seen < end:
                observer.precede(steps, next_seen)
    won = done if rules.success == "at_end" else first_success is not None
    sim_s = time.perf_counter() - began - policy_s
    return Outcome(spec, "success" if won else "failure", steps, looks, sim_s, policy_s, first_success, done)


def run_episode(
    env: Env,
    spec: EpisodeSpec,
    rules: EpisodeRules,
    act: Callable[[Observation], ActionChunk],
    needs: PolicyNeeds = PRESENT_ONLY,
) -> Outcome:
    """Play one episode with the policy `act` and return its outcome. Raises what the policy raises."""
    playing = episode(env, spec, rules, needs)
    try:
        said = next(playing)
        while True:
            said = playing.send(None if isinstance(said, Stepped) else act(said))
    except StopIteration as over:
        outcome: Outcome = over.value
        return outcome
