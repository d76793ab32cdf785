"""Rollout worker process: one simulator, one policy client, one episode at a time."""

import logging
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from policy.interface import (
    ActionChunk,
    Contract,
    Imagination,
    LostSessionError,
    Observation,
    PolicyNeeds,
    needs_of,
)
from sim_workers.arithmetic import Arithmetic
from sim_workers.checkout import CodeChangedError, Files, check_imported
from sim_workers.envs.registry import make_env
from sim_workers.envs.render import share_renderers
from sim_workers.envs.render_check import RenderFingerprint, render_fingerprint
from sim_workers.rollout.episode import Env, Outcome, Stepped, episode
from sim_workers.rollout.policy_clients import PolicyClient, PolicySource
from sim_workers.rollout.rollout_video import RecordedVideo, RolloutRecorder
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec, Reset

_log = logging.getLogger(__name__)
T = TypeVar("T")

BEAT_S = 2.0
"""Seconds between two heartbeats of a worker while it waits for the policy or plays."""
ANSWER_S = 900.0
"""Timeout, in seconds, of one policy answer, including the time to load the policy."""
PLAYINGS = 6
"""Playings of an episode that may end because the policy has lost the session; after the last one, the policy
counts as one that did not answer.
"""
MOST_EPISODES = 2000
"""Episodes after which a process is replaced, which bounds a memory leak of a GL driver."""
MOST_GROWTH = 512 * 2**20
"""Growth of a process since its first episode, in bytes, after which it is replaced."""


Doing = Literal["making", "playing", "asking"]
"""Activity of a worker: it builds a simulator, steps it, or waits for a policy."""


@dataclass(frozen=True)
class Scene:
    """Configuration that a simulator is built for; another scene needs another simulator."""

    task: str
    contract: Contract
    shift: str = "nominal"
    variant: int = 0
    reset: Reset = "settled"


@dataclass(frozen=True)
class RolloutJob:
    """One episode to play, and the source of its policy."""

    spec: EpisodeSpec
    rules: EpisodeRules
    contract: Contract
    source: PolicySource
    key: str = ""
    """Identifier chosen by the caller; several jobs may share one."""
    film: bool = False
    """Whether to return a film of the episode too."""
    checkpoint: str = ""
    """Name of the policy's checkpoint, for messages."""

    slot: int = 0
    """Number of the process among the simulators of its node, by which they share its GPUs for rendering."""
    reset: Reset = "settled"
    """How the episode begins, `Suite.reset`."""

    def __str__(self) -> str:
        return f"{self.spec.episode_id} of {self.checkpoint}" if self.checkpoint else self.spec.episode_id

    @property
    def scene(self) -> Scene:
        """Scene in which the episode is played; a worker keeps its simulator while it stays the same."""
        return Scene(self.spec.task, self.contract, self.spec.shift, self.spec.variant, self.reset)


@dataclass(frozen=True)
class WorkerHeartbeat:
    """Heartbeat of a worker with its current activity."""

    doing: Doing


@dataclass(frozen=True)
class Played:
    """Result of a finished episode."""

    outcome: Outcome
    film: RecordedVideo | None
    worn: bool
    """Whether the process should be replaced before it plays again."""


@dataclass(frozen=True)
class Unanswered:
    """Failure of the policy to answer; the simulator remains usable."""

    why: str


@dataclass(frozen=True)
class Unfit:
    """Failure to build a simulator in this process, or to render with it."""

    why: str


@dataclass(frozen=True)
class Outdated:
    """Report that the process, or its policy server, runs other code than the driver; no further episode
    counts.
    """

    why: str


Said = WorkerHeartbeat | RenderFingerprint | Played | Unanswered | Unfit | Outdated


class RolloutWorker:
    """Process with one simulator. A change of scene closes the old simulator first: two would corrupt each
    other's pictures.
    """

    def __init__(
        self, most_episodes: int = MOST_EPISODES, label: str = "", code: Files | None = None
    ) -> None:
        """label: its name in Ray's logs, such as the sweep's. code: the driver's files; None: not
        compared.
        """
        self._code = code
        self._most_episodes, self._label = most_episodes, label
        self._env: Env | None = None
        self._scene: Scene | None = None
        self._asker: tuple[PolicySource, PolicyClient] | None = None
        # so that this thread, which must render, can send heartbeats while it waits
        self._asking = ThreadPoolExecutor(1)
        self._episodes = 0
        self._first_size = 0

    def __repr__(self) -> str:
        return f"RolloutWorker({self._label})"

    def play(self, job: RolloutJob) -> Iterator[Said]:
        """Play one episode and yield messages, the last one Played, Unanswered, Unfit or Outdated.

        Errors are logged with the episode's name; an error of the simulator is raised.
        """
        try:
            for said in self._play(job):
                # the simulator and the episode have imported their modules now
                if isinstance(said, RenderFingerprint | Played):
                    check_imported(self._code)
                if isinstance(said, Unanswered):
                    _log.warning("%s: the policy did not answer: %s", job, said.why)
                yield said
        except CodeChangedError as error:
            _log.error("%s: %s", job, error)
            yield Outdated(str(error))
        except Exception:
            _log.exception("%s: the simulator failed", job)
            raise

    def _play(self, job: RolloutJob) -> Iterator[Said]:
        check_imported(self._code)
        if self._env is None or self._scene != job.scene:
            yield WorkerHeartbeat("making")
            share_renderers(job.slot)
            if self._env is not None:
                self._env.close()
            try:
                self._env, self._scene = (
                    make_env(job.spec.task, job.contract, job.spec.shift, job.spec.variant, job.reset),
                    job.scene,
                )
                drawn = render_fingerprint(self._env)
            except Exception as error:
                drawing = f", drawing with {os.environ.get('MUJOCO_GL')}" if job.contract.cameras else ""
                yield Unfit(
                    f"{socket.gethostname()} cannot simulate {job.spec.task}{drawing}: {one_line(error)}"
                )
                return
            yield drawn
            yield WorkerHeartbeat("playing")
        try:
            asker = self._connected(job.source)
            needs = yield from self._answered(partial(needs_of, asker))
        except Exception as error:
            yield Unanswered(one_line(error))
            return
        for playing in range(1, PLAYINGS + 1):
            try:
                yield from self._playing(job, asker, needs)
                return
            except LostSessionError as lost:
                if playing == PLAYINGS:
                    yield Unanswered(f"{one_line(lost)} (in {PLAYINGS} playings of the episode)")
                else:
                    _log.warning("%s is played again from its start: %s", job, one_line(lost))

    def _playing(self, job: RolloutJob, asker: PolicyClient, needs: PolicyNeeds) -> Iterator[Said]:
        """Play the episode once from its start. Raises LostSessionError if the policy lost its session."""
        assert self._env is not None
        if attach := getattr(asker, "attach", None):  # a reference that reads the simulator's state
            attach(self._env, job.spec)
        film = RolloutRecorder(self._env) if job.film else None
        imagine = getattr(asker, "imagine", None) if film else None
        beat = time.monotonic()
        playing = episode(self._env, job.spec, job.rules, needs)
        try:
            said = next(playing)
            while True:
                chunk: ActionChunk | None = None
                if isinstance(said, Stepped):
                    if film:
                        film.stepped(*said)
                else:
                    try:
                        chunk, imagined = yield from self._answered(partial(_ask, asker, imagine, said))
                    except CodeChangedError as error:
                        yield Outdated(one_line(error))
                        return
                    except LostSessionError:
                        raise
                    except Exception as error:
                        yield Unanswered(one_line(error))
                        return
                    if film:
                        film.observed(imagined)
                if time.monotonic() - beat > BEAT_S:
                    yield WorkerHeartbeat("playing")
                    beat = time.monotonic()
                said = playing.send(chunk)
        except StopIteration as over:
            self._episodes += 1
            here = str(Arithmetic.here())
            outcome = replace(
                over.value,
                worker=f"{socket.gethostname()}/{os.getpid()}",
                simulated_on=here,
                acted_on=getattr(asker, "arithmetic", here),
            )
            yield Played(outcome, film.done(outcome) if film else None, self._worn())

    def _answered(self, ask: Callable[[], T]) -> Generator[WorkerHeartbeat, None, T]:
        """Return what `ask` returns in another thread, and send heartbeats meanwhile. Raises TimeoutError
        after ANSWER_S, and what `ask` raises.
        """
        answer, asked = self._asking.submit(ask), time.monotonic()
        while not wait([answer], BEAT_S).done:
            if time.monotonic() - asked > ANSWER_S:
                self._asking = ThreadPoolExecutor(1)
                raise TimeoutError(f"no answer within {ANSWER_S:.0f} s")
            yield WorkerHeartbeat("asking")
        return answer.result()

    def _connected(self, source: PolicySource) -> PolicyClient:
        if self._asker is None or self._asker[0] != source:
            self._asker = source, source.connect()
        return self._asker[1]

    def _worn(self) -> bool:
        size = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self._first_size = self._first_size or size
        return self._episodes >= self._most_episodes or size - self._first_size > MOST_GROWTH


def _ask(
    asker: PolicyClient, imagine: Callable[[Observation], Imagination | None] | None, observation: Observation
) -> tuple[ActionChunk, Imagination | None]:
    return asker.act(observation), imagine(observation) if imagine else None


def one_line(error: BaseException) -> str:
    """Return the last line of the error's message, or its type if it has none; at most 500 characters."""
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__)[:500]
