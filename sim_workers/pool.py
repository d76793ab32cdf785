"""Many simulators at once: one process each, handed one episode after another. The only file here with ray.

An episode whose worker dies or fails is played again elsewhere. What fails every time becomes an error outcome, never a failure.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from policy.interface import ActionChunk, Contract, Observation
from sim_workers.env import CONTROL_HZ, SimEnv
from sim_workers.rollout import Outcome, run_episode
from sim_workers.suite import EpisodeSpec, Rules
from sim_workers.video import mp4

ATTEMPTS = 3
FILM_CAMERA, FILM_SIZE, FILM_EVERY = "frontview", (256, 256), 2  # every second control step: 10 frames per second


@dataclass(frozen=True)
class RolloutJob:
    """One episode to play, and whom to ask for actions."""

    spec: EpisodeSpec
    rules: Rules
    contract: Contract
    server: Any
    """Handle of an actor with `act(policy, observation) -> ActionChunk`."""
    policy: str
    """Which of the server's policies."""
    film: bool = False
    """Also return an MP4 of the episode."""
    attempt: int = 1


class RolloutWorker:
    """A process with one simulator. Changing the task closes the old one first: two would spoil each other's pictures."""

    def __init__(self) -> None:
        self._env: SimEnv | None = None
        self._made_for: tuple[str, Contract] | None = None

    def play(self, job: RolloutJob) -> tuple[Outcome, bytes | None]:
        """The outcome and, if asked for, the film."""
        env = self._env_for(job.spec.task, job.contract)
        frames: list[Any] = []

        def act(observation: Observation) -> ActionChunk:
            chunk: ActionChunk = ray.get(job.server.act.remote(job.policy, observation))
            return chunk

        def record(steps: int) -> None:
            if steps % FILM_EVERY == 0:
                frames.append(env.picture(FILM_CAMERA, FILM_SIZE))

        outcome = run_episode(env, job.spec, job.rules, act)
        return outcome, mp4(frames, CONTROL_HZ / FILM_EVERY) if frames else None

    def _env_for(self, task: str, contract: Contract) -> SimEnv:
        if self._env is None or self._made_for != (task, contract):
            if self._env is not None:
                self._env.close()
            self._env = SimEnv(task, contract)
            self._made_for = (task, contract)
        return self._env


class RolloutPool:
    """Plays jobs on `num_workers` processes of `num_cpus` logical CPUs each; outcomes do not depend on how many.

    submit() queues; results() yields what has finished. Not thread-safe: one thread owns a pool.
    """

    def __init__(self, num_workers: int, num_cpus: float = 1.0) -> None:
        # One native thread: the simulator uses no more, and a worker never takes a core that another one needs.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
        self._make = ray.remote(RolloutWorker).options(num_cpus=num_cpus, runtime_env={"env_vars": environment}).remote
        self._idle: list[Any] = [self._make() for _ in range(num_workers)]
        self._queue: deque[RolloutJob] = deque()
        self._running: dict[Any, tuple[RolloutJob, Any]] = {}

    def submit(self, job: RolloutJob) -> None:
        self._queue.append(job)

    @property
    def unfinished(self) -> int:
        """Jobs queued or running."""
        return len(self._queue) + len(self._running)

    def results(self, timeout_s: float | None = None) -> Iterator[tuple[RolloutJob, Outcome, bytes | None]]:
        """Keep every worker busy and yield what finishes within `timeout_s` of waiting for the first; all there is if None."""
        while self.unfinished:
            while self._idle and self._queue:
                worker, job = self._idle.pop(), self._queue.popleft()
                self._running[worker.play.remote(job)] = job, worker
            done, _ = ray.wait(list(self._running), timeout=timeout_s)
            if not done:
                return
            for reference in done:
                job, worker = self._running.pop(reference)
                try:
                    outcome, film = ray.get(reference)
                except RayError as error:
                    # A worker that failed is not trusted again: its GL context or its process may be what is broken.
                    ray.kill(worker)
                    self._idle.append(self._make())
                    if job.attempt < ATTEMPTS:
                        self._queue.append(replace(job, attempt=job.attempt + 1))
                        continue
                    outcome, film = Outcome(job.spec, "error", 0, 0, 0.0, 0.0, _one_line(error)), None
                else:
                    self._idle.append(worker)
                yield job, outcome, film

    def close(self) -> None:
        """Stop every worker; what was running is lost."""
        for worker in [*self._idle, *(worker for _, worker in self._running.values())]:
            ray.kill(worker)
        self._idle, self._running = [], {}


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:500]
