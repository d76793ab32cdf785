"""Many simulators at once: one process each, handed one episode after another.

An episode whose worker dies, hangs or fails is played again elsewhere. What fails every time becomes an error outcome, never a failure.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError

from sim_workers.balance import Answered, Balance
from sim_workers.rollout import Outcome
from sim_workers.selftest import Portrait
from sim_workers.served import Served
from sim_workers.video import Filmed
from sim_workers.worker import MOST_EPISODES, Beat, Played, RolloutJob, RolloutWorker, Said, Scene, Unanswered, one_line

SILENCE_S = {"making": 120.0, "playing": 20.0, "asking": 20.0}
"""How long a worker may say nothing, by what it does, until it is taken for stuck and killed. Building a simulator is one long silence."""
ATTEMPTS = 3
"""An episode may fail so often until it counts as an error: it raised, or its worker hung."""
DEATHS = 6
"""So often if its worker died: a machine that loses processes is no fault of an episode."""


LOOKS_TO_GO_BY = 100
"""A balance drawn from fewer is noise."""


class References(Protocol):
    """The suite's portrait of each scene, which every worker must match: kept for as long as scores are compared."""

    def get(self, scene: Scene) -> Portrait | None: ...
    def put(self, scene: Scene, portrait: Portrait) -> Portrait:
        """Keep the first one; returns the one that is kept."""
        ...


class ReferencesInMemory(dict[Scene, Portrait]):
    """For a pool that stands alone."""

    def put(self, scene: Scene, portrait: Portrait) -> Portrait:
        return self.setdefault(scene, portrait)


@dataclass
class _Entry:
    """An episode on the list."""

    job: RolloutJob
    attempts: int = 0
    deaths: int = 0


@dataclass
class _Worker:
    actor: Any
    scene: Scene | None = None
    """What its simulator is made for; None in a fresh process."""
    entry: _Entry | None = None
    told: Any = None
    """The stream of what it says about the episode it plays."""
    deadline: float = float("inf")
    """When its silence is taken for a hang. A process that has not started yet waits for its place in the cluster."""


@dataclass
class Usage:
    """What the workers did with their time."""

    sim_s: float = 0.0
    policy_s: float = 0.0
    looks: int = 0
    replaced: dict[str, int] = field(default_factory=dict)
    """Workers, by why: died, stuck, failed, worn, other."""


class RolloutPool:
    """Plays jobs on at most `num_workers` processes of `num_cpus` logical CPUs each; outcomes do not depend on how many.

    submit() queues; results() yields what has finished, each job once. `gl`: MuJoCo's GL backend, egl or osmesa. `nodes`: the Ray labels of those
    that may have its processes; any node's by default. `label`: of those processes in Ray's logs. One thread owns a pool.
    """

    def __init__(
        self,
        num_workers: int,
        num_cpus: float = 1.0,
        gl: str = "egl",
        references: References | None = None,
        episodes_per_process: int = MOST_EPISODES,
        nodes: dict[str, str] | None = None,
        label: str = "",
    ) -> None:
        # One native thread: the simulator uses no more, and a worker never takes a core that another one needs.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0", "MUJOCO_GL": gl}
        options = {"num_cpus": num_cpus, "label_selector": nodes or None, "runtime_env": {"env_vars": environment}}
        self._make = ray.remote(RolloutWorker).options(**options).remote
        self._episodes_per_process, self._label = episodes_per_process, label
        self.references = ReferencesInMemory() if references is None else references
        self.usage = Usage()
        self._workers: list[_Worker] = []
        self._waiting: dict[Scene, list[_Entry]] = {}
        self._finished: deque[tuple[RolloutJob, Outcome, Filmed | None]] = deque()  # not yet told
        self.most_workers = num_workers
        self.on_retry: Callable[[str, RolloutJob, str], None] = lambda kind, job, why: None
        """Hears of a job that is to be played again (`episode`) and of a process that was replaced for it (`worker`), and why."""
        self._source: Served | None = None  # of the job submitted last: all of a pool's have the same servers
        self._measured: tuple[float, Usage, Answered] | None = None
        self.resize(num_workers)

    def resize(self, num_workers: int) -> None:
        """Have so many workers; those beyond it leave once they have finished their episode."""
        self.num_workers = num_workers
        while len(self._workers) < num_workers:
            self._hire()
        for worker in [worker for worker in self._workers if worker.entry is None][: len(self._workers) - num_workers]:
            self._dismiss(worker)

    def submit(self, job: RolloutJob) -> None:
        if isinstance(job.source, Served):
            self._source = job.source
        self._queue(_Entry(job))

    def withdraw(self, key: str) -> list[RolloutJob]:
        """Take back the jobs of a key that no worker plays yet; what is being played is still told of."""
        gone = [entry.job for entries in self._waiting.values() for entry in entries if entry.job.key == key]
        left = {scene: [entry for entry in entries if entry.job.key != key] for scene, entries in self._waiting.items()}
        self._waiting = {scene: entries for scene, entries in left.items() if entries}
        return gone

    @property
    def waiting(self) -> int:
        """Jobs that no worker plays yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def unfinished(self) -> int:
        """Jobs queued, running, or finished and not yet told of."""
        return self.waiting + len(self._finished) + sum(worker.entry is not None for worker in self._workers)

    def results(self, timeout_s: float | None = None) -> Iterator[tuple[RolloutJob, Outcome, Filmed | None]]:
        """Keep every worker busy and yield what finishes; ends when nothing is left, or nothing has finished for `timeout_s`."""
        patience = float("inf") if timeout_s is None else timeout_s
        until = time.monotonic() + patience
        while self.unfinished:
            self._dispatch()
            streams = {worker.told: worker for worker in self._workers if worker.entry}
            wait_s = 0.0 if self._finished else min(1.0, max(0.0, until - time.monotonic()))
            said, _ = ray.wait(list(streams), timeout=wait_s) if streams else ([], [])
            for stream in said:
                self._hear(streams[stream])
            for worker in [worker for worker in self._workers if worker.deadline < time.monotonic()]:
                self._fail(worker, "stuck", "the simulator fell silent and was killed")
            self._dispatch()  # before whoever listens takes the time to write things down
            while self._finished:
                yield self._finished.popleft()
                until = time.monotonic() + patience
            if time.monotonic() >= until:
                return

    def rebalance(self) -> Balance | None:
        """What was measured since the last time, after fitting the number of workers to it; None before there is enough to go by."""
        if self._source is None:
            return None
        now = time.monotonic(), replace(self.usage), self._source.measure()
        if self._measured is None:
            self._measured = now
            return None
        then, before, answered = self._measured
        looks, seconds = now[1].looks - before.looks, now[0] - then
        if looks < LOOKS_TO_GO_BY:
            return None
        self._measured = now
        sim_s, wait_s = (now[1].sim_s - before.sim_s) / looks, (now[1].policy_s - before.policy_s) / looks
        measured = Balance(self.num_workers, len(self._source.servers), seconds, looks, sim_s, wait_s, now[2].since(answered))
        self.resize(measured.wanted(self.most_workers))
        return measured

    def close(self) -> None:
        """Stop every worker; what was running is lost."""
        for worker in [*self._workers]:
            self._dismiss(worker)
        self._waiting = {}
        self._finished.clear()

    def _queue(self, entry: _Entry) -> None:
        self._waiting.setdefault(entry.job.scene, []).append(entry)

    def _dispatch(self) -> None:
        """Hand every idle worker an episode, of the scene it is made for if there is one."""
        for worker in [worker for worker in self._workers if worker.entry is None]:
            if not self._waiting:
                return
            scene = worker.scene if worker.scene in self._waiting else next(iter(self._waiting))
            if worker.scene not in (None, scene) and self.references.get(scene) is None:
                worker = self._replace(worker, "other")  # only a fresh process, that never held another scene, may set a reference
            worker.entry = self._waiting[scene].pop(0)
            if not self._waiting[scene]:
                del self._waiting[scene]
            else:  # the scenes take turns
                self._waiting[scene] = self._waiting.pop(scene)
            doing = "playing" if worker.scene == scene else "making"
            worker.deadline = float("inf") if worker.scene is None else time.monotonic() + SILENCE_S[doing]
            worker.scene = scene
            worker.told = worker.actor.play.options(num_returns="streaming").remote(worker.entry.job)

    def _hear(self, worker: _Worker) -> None:
        """Act on what the worker says next."""
        assert worker.entry
        try:
            said: Said = ray.get(next(worker.told))
        except RayActorError as error:
            return self._fail(worker, "died", f"its process died: {one_line(error)}")
        except RayError as error:
            return self._fail(worker, "failed", one_line(error))
        if isinstance(said, Beat):
            worker.deadline = time.monotonic() + SILENCE_S[said.doing]
        elif isinstance(said, Portrait):
            assert worker.scene
            if difference := said.difference(self.references.put(worker.scene, said)):
                self._fail(worker, "other", f"refused to score, {difference}")
        elif isinstance(said, Unanswered):
            entry = self._released(worker)
            entry.attempts += 1
            self._again(entry, f"the policy did not answer: {said.why}")
        elif isinstance(said, Played):
            entry = self._released(worker)
            self.usage.sim_s += said.outcome.sim_s
            self.usage.policy_s += said.outcome.policy_s
            self.usage.looks += said.outcome.looks
            if len(self._workers) > self.num_workers:
                self._dismiss(worker)
            elif said.worn:
                self._replace(worker, "worn")
            self._finished.append((entry.job, said.outcome, said.film))

    def _fail(self, worker: _Worker, how: str, why: str) -> None:
        """Replace the worker: its GL context or its process may be what is broken. Its episode is played again, or given up."""
        entry = self._released(worker)
        self._replace(worker, how)
        self.on_retry("worker", entry.job, why)
        entry.deaths += how == "died"
        entry.attempts += how != "died"
        self._again(entry, why)

    def _again(self, entry: _Entry, why: str) -> None:
        if entry.attempts < ATTEMPTS and entry.deaths < DEATHS:
            self.on_retry("episode", entry.job, why)
            return self._queue(entry)
        times = entry.attempts + entry.deaths
        error = Outcome(entry.job.spec, "error", 0, 0, 0.0, 0.0, message=f"{why} (given up after {times} attempts)")
        self._finished.append((entry.job, error, None))

    def _released(self, worker: _Worker) -> _Entry:
        assert worker.entry
        entry, worker.entry, worker.told, worker.deadline = worker.entry, None, None, float("inf")
        return entry

    def _replace(self, worker: _Worker, why: str) -> _Worker:
        self.usage.replaced[why] = self.usage.replaced.get(why, 0) + 1
        self._dismiss(worker)
        return self._hire()

    def _hire(self) -> _Worker:
        worker = _Worker(self._make(self._episodes_per_process, self._label))
        self._workers.append(worker)
        return worker

    def _dismiss(self, worker: _Worker) -> None:
        ray.kill(worker.actor)
        self._workers.remove(worker)
