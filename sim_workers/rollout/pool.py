"""Pool of simulator processes, each of which plays one episode at a time.

An episode whose worker dies, hangs or fails is retried on another worker. One that fails on every attempt
gets an error outcome, never a failure.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from sim_workers.arithmetic import pinned_kernels
from sim_workers.checkout import CodeChangedError, Files
from sim_workers.envs.render import backend_of
from sim_workers.envs.render_check import RenderFingerprint
from sim_workers.rollout.assignment import Durations, SceneLoad, choose_scene
from sim_workers.rollout.autoscaler import PoolLoad, ServerUsage
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.node_health import NodeHealth, ServerLocations, node_of
from sim_workers.rollout.pool_state import OnRetry, QueuedEpisode, Usage, Worker
from sim_workers.rollout.ray_policy_client import RayServedPolicy
from sim_workers.rollout.references import References, ReferencesInMemory
from sim_workers.rollout.rollout_video import RecordedVideo
from sim_workers.rollout.staged_worker import RolloutWorker
from sim_workers.rollout.worker import (
    MOST_EPISODES,
    Doing,
    Outdated,
    Played,
    RolloutJob,
    Said,
    Scene,
    Unanswered,
    Unfit,
    WorkerHeartbeat,
    one_line,
)

ATTEMPTS = 3
"""Failed attempts (it raised, or its worker hung) after which an episode counts as an error."""
DEATHS = 6
"""Deaths of its worker after which an episode counts as an error: more than ATTEMPTS, because the machine may
be the cause.
"""
LOOKS_TO_GO_BY = 100
"""Smallest number of policy observations for a balance; fewer give a noisy estimate."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """Timeouts and polling interval of a pool.

    A worker that sends no message for longer than the timeout of its current activity counts as stuck and is
    killed.
    """

    making_timeout_s: float = 120.0
    """Timeout, in seconds, while a worker builds its simulator, during which it sends no message."""
    playing_timeout_s: float = 20.0
    """Timeout, in seconds, while a worker steps its simulator."""
    asking_timeout_s: float = 20.0
    """Timeout, in seconds, while a worker waits for a policy server; its heartbeats continue meanwhile."""
    look_around_s: float = 2.0
    """Seconds between two queries of the draining nodes and of the policy servers' nodes."""

    def silence_s(self, doing: Doing) -> float:
        """Return the timeout, in seconds, of an activity."""
        return {
            "making": self.making_timeout_s,
            "playing": self.playing_timeout_s,
            "asking": self.asking_timeout_s,
        }[doing]


class RolloutPool:
    """Pool that plays jobs on at most `num_workers` processes of `num_cpus` logical CPUs each; outcomes do
    not depend on their number.

    submit() enqueues; results() yields the finished jobs, each once. `gl`: the renderer, egl, osmesa or
    mixed. `nodes`: Ray labels of the nodes over which the processes are spread; any node by default. A
    process that does not fit in the cluster is assigned no episode and blocks no other: it starts when a node
    joins. A process on a draining node gets no further episode. `label`: name of the processes in Ray's logs.
    `worker`: class of the processes' actors, constructed and called like RolloutWorker. A pool must be used
    from one thread.

    `code`: the driver's files (`checkout.file_hashes`); `results` raises CodeChangedError if a process
    imported others. None: not compared.
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
        settings: PoolSettings = PoolSettings(),
        worker: type[Any] = RolloutWorker,
        code: Files | None = None,
        on_retry: OnRetry = lambda kind, job, why: None,
    ) -> None:
        # One native thread: the simulator uses no more, and a worker must not take a core that another one
        # needs.
        environment = {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "LP_NUM_THREADS": "0",
            "MUJOCO_GL": backend_of(gl),
            **pinned_kernels(),
        }
        options = {
            "num_cpus": num_cpus,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": environment},
        }
        self._class = ray.remote(**options)(worker)
        self._nodes = NodeHealth(nodes or {})
        self._arguments = (episodes_per_process, label, *([code] if code else ()))
        self._settings = settings
        self.references = ReferencesInMemory() if references is None else references
        self.usage = Usage()
        self._workers: list[Worker] = []
        self._waiting: dict[Scene, list[QueuedEpisode]] = {}
        self._durations = Durations()
        self._finished: deque[tuple[RolloutJob, Outcome, RecordedVideo | None]] = deque()  # not yet yielded
        self.most_workers = num_workers
        self.on_retry = on_retry
        self.on_failure: Callable[[str, str], None] = lambda how, why: None
        """Called with the kind (a key of `Usage.replaced`) and the cause of every worker that failed, with or
        without an episode.
        """
        self._outdated = ""  # the message of a process that runs other code than the driver
        # source of the job submitted last: all jobs of a pool have the same servers
        self._source: RayServedPolicy | None = None
        self._servers: ServerLocations | None = None
        # servers in place of those that a job's source names; None: these
        self._given: tuple[Any, ...] | None = None
        self._next_look = 0.0
        self._selector = self._nodes.selector()
        self._measured: tuple[float, Usage, ServerUsage] | None = None
        self.resize(num_workers)

    def resize(self, num_workers: int) -> None:
        """Set the number of workers. Surplus workers are dismissed: idle ones now, unplaced ones first, the
        others after their episode.
        """
        self.num_workers = num_workers
        self._fill()
        unneeded = sorted(
            (worker for worker in self._workers if worker.entry is None), key=lambda worker: worker.node != ""
        )
        for worker in unneeded[: max(0, len(self._workers) - num_workers)]:
            self._dismiss(worker)

    @property
    def placed(self) -> int:
        """Number of workers that run on a node of the cluster."""
        return sum(worker.node != "" for worker in self._workers)

    def submit(self, job: RolloutJob) -> None:
        """Enqueue a job."""
        if isinstance(job.source, RayServedPolicy):
            self._source = job.source
            if self._given is not None:
                self._source = replace(job.source, servers=self._given)
            elif self._servers is None or self._servers.servers != job.source.servers:
                self._servers = ServerLocations(job.source.servers)
        self._queue(QueuedEpisode(job))

    def use_servers(self, servers: tuple[Any, ...]) -> tuple[Any, ...]:
        """Query these policy servers from the next episodes on, instead of those of the jobs' sources; return
        those that episodes in progress query. Without any, no episode starts.
        """
        if self._given != servers:
            before = self._servers or ServerLocations(())
            self._servers, self._given = before.followed_by(servers), servers
            for worker in self._workers:
                worker.server = servers.index(worker.asks) if worker.asks in servers else None
            if self._source:
                self._source = replace(self._source, servers=servers)
            self._measured = None  # the counters of other servers
        return tuple(worker.asks for worker in self._workers if worker.entry and worker.asks is not None)

    def withdraw(self, key: str) -> list[RolloutJob]:
        """Remove and return the waiting jobs of a key; results() still yields those that are being played."""
        gone = [entry.job for entries in self._waiting.values() for entry in entries if entry.job.key == key]
        left = {
            scene: [entry for entry in entries if entry.job.key != key]
            for scene, entries in self._waiting.items()
        }
        self._waiting = {scene: entries for scene, entries in left.items() if entries}
        return gone

    @property
    def waiting(self) -> int:
        """Number of jobs that no worker plays yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def unfinished(self) -> int:
        """Number of jobs waiting, running, or finished and not yet yielded."""
        return self.waiting + len(self._finished) + sum(worker.entry is not None for worker in self._workers)

    def results(
        self, timeout_s: float | None = None
    ) -> Iterator[tuple[RolloutJob, Outcome, RecordedVideo | None]]:
        """Keep every worker busy and yield finished jobs until none is left or none has finished for
        `timeout_s` seconds.

        Raises CodeChangedError if a process runs other code than the driver.
        """
        patience = float("inf") if timeout_s is None else timeout_s
        until = time.monotonic() + patience
        while self.unfinished:
            self._look_around()
            self._dispatch()
            self._listen(0.0 if self._finished else min(1.0, max(0.0, until - time.monotonic())))
            for worker in [worker for worker in self._workers if worker.deadline < time.monotonic()]:
                self._fail(worker, "stuck", "the simulator stopped responding and was killed")
            self._dispatch()  # before the caller spends time on recording the results
            while self._finished:
                yield self._finished.popleft()
                until = time.monotonic() + patience
            if self._outdated:
                raise CodeChangedError(self._outdated)
            if time.monotonic() >= until:
                return

    def rebalance(self) -> PoolLoad | None:
        """Resize the pool by the measurements since the last balance and return them; None if there are too
        few (LOOKS_TO_GO_BY).
        """
        if self._source is None or not self._source.servers:
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
        if (done := now[2].since(answered)) is None:
            return None
        sim_s, wait_s = (now[1].sim_s - before.sim_s) / looks, (now[1].policy_s - before.policy_s) / looks
        measured = PoolLoad(self.num_workers, len(self._source.servers), seconds, looks, sim_s, wait_s, done)
        self.resize(measured.wanted(self.most_workers))
        return measured

    def close(self) -> None:
        """Stop every worker; running and waiting jobs and results not yet yielded are lost."""
        for worker in [*self._workers]:
            self._dismiss(worker)
        self._waiting = {}
        self._finished.clear()

    def _queue(self, entry: QueuedEpisode) -> None:
        self._waiting.setdefault(entry.job.scene, []).append(entry)

    def _look_around(self) -> None:
        """Query the draining nodes and the policy servers' nodes, every `look_around_s` seconds at most; fail
        the workers of unavailable servers.
        """
        if time.monotonic() < self._next_look:
            return
        self._nodes.refresh()
        # a pending worker must wait for a node that matches the current selector
        if (selector := self._nodes.selector()) != self._selector:
            self._selector = selector
            for worker in [worker for worker in self._workers if not worker.node]:
                self._dismiss(worker)
        self._fill()
        pause_s = self._settings.look_around_s
        if self._servers and self._servers.servers:
            self._servers.refresh()
            # a worker cannot choose the nearest server before every server's node is known
            if "" in self._servers.nodes:
                pause_s /= 10
            for worker in [
                worker for worker in self._workers if worker.entry and worker.server in self._servers.away
            ]:
                self._fail(worker, "unserved", "its policy server does not answer")
        self._next_look = time.monotonic() + pause_s

    def _dispatch(self) -> None:
        """Assign every idle worker an episode, of its simulator's scene if one is waiting, unless building
        another simulator does not pay.
        """
        # first those that need no other simulator, so that none is built for their episodes
        idle = sorted(
            (worker for worker in self._workers if worker.idle),
            key=lambda worker: worker.scene not in self._waiting,
        )
        busy: Counter[Scene] | None = None
        for worker in idle:
            if not self._waiting or self._without_servers:
                return
            if self._nodes.goes(worker.node):
                self._replace(worker, "leaving")
                continue
            scene = worker.scene
            if scene not in self._waiting:
                busy = self._busy() if busy is None else busy
                scene = choose_scene(self._loads(worker, busy))
            if scene is None:
                continue
            if worker.scene not in (None, scene) and self.references.get(scene) is None:
                # only a fresh process, which never built another scene, may set a reference
                self._replace(worker, "other")
                continue
            worker.entry = self._next(scene)
            worker.began, worker.fresh = time.monotonic(), worker.scene is None
            worker.deadline = worker.began + self._settings.silence_s(
                "playing" if worker.scene == scene else "making"
            )
            worker.scene = scene
            if busy is not None:
                busy[scene] += 1
            worker.told = worker.actor.play.options(num_returns="streaming").remote(
                self._addressed(worker, worker.entry.job)
            )

    def _busy(self) -> Counter[Scene]:
        """Return the number of workers that play a scene now and will play on, by scene."""
        playing = [worker for worker in self._workers if worker.entry and worker.scene]
        gone = {node for node in {worker.node for worker in playing} if self._nodes.goes(node)}
        return Counter(worker.scene for worker in playing if worker.scene and worker.node not in gone)

    def _loads(self, worker: Worker, busy: Counter[Scene]) -> dict[Scene, SceneLoad]:
        """Return the queues of the scenes with waiting episodes, as an idle worker with another scene finds
        them.
        """
        loads = {}
        for scene, entries in self._waiting.items():
            # without a reference, only a fresh process can help
            fresh = worker.scene is None or (busy[scene] > 0 and self.references.get(scene) is None)
            build_s, episode_s = self._durations.build_s(fresh), self._durations.episode_s(scene)
            loads[scene] = SceneLoad(len(entries), busy[scene], build_s, episode_s)
        return loads

    @property
    def _without_servers(self) -> bool:
        """Whether no episode can start, because there is no policy server."""
        return self._servers is not None and not self._servers.servers

    def _next(self, scene: Scene) -> QueuedEpisode:
        entry = self._waiting[scene].pop(0)
        if not self._waiting[scene]:
            del self._waiting[scene]
        else:  # the scenes take turns
            self._waiting[scene] = self._waiting.pop(scene)
        return entry

    def _addressed(self, worker: Worker, job: RolloutJob) -> RolloutJob:
        """Return the job with the worker's place on its node, and the one policy server that it should
        query.
        """
        job = replace(job, slot=worker.slot)
        if not isinstance(job.source, RayServedPolicy) or not self._servers:
            worker.server = worker.asks = None  # of its last episode: this one needs none
            return job
        others = Counter(other.server for other in self._workers if other is not worker)
        worker.server = self._servers.choose(worker.node, worker.server, others, self.num_workers)
        worker.asks = self._servers.servers[worker.server]
        return replace(job, source=replace(job.source, servers=(worker.asks,)))

    def _listen(self, wait_s: float) -> None:
        """Handle one message of every worker that has one, waiting at most `wait_s` seconds for the first.

        Workers past their deadline are polled for up to 1 s more, so that none counts as stuck while a
        message of it is unread.
        """
        told = {worker.told: worker for worker in self._workers if worker.told is not None}
        if not told:
            if self._without_servers:
                time.sleep(wait_s)
            return
        first, _ = ray.wait([*told], timeout=wait_s)
        said, _ = ray.wait([*told], num_returns=len(told), timeout=0) if first else ([], [])
        overdue = [stream for stream, worker in told.items() if worker.deadline < time.monotonic()]
        late, _ = ray.wait(overdue, num_returns=len(overdue), timeout=1.0) if overdue else ([], [])
        for stream in {*first, *said, *late}:
            self._hear(told[stream])

    def _hear(self, worker: Worker) -> None:
        """Handle the worker's next message."""
        try:
            if not worker.node:
                node, worker.told = ray.get(worker.told), None
                taken = {other.slot for other in self._workers if other.node == node}
                worker.slot = next(slot for slot in count() if slot not in taken)
                worker.node = node
                return None
            said: Said = ray.get(next(worker.told))
        except RayActorError as error:
            return self._fail(worker, "died", f"its process died: {one_line(error)}")
        except RayError as error:
            return self._fail(worker, "failed", one_line(error))
        if isinstance(said, WorkerHeartbeat):
            worker.deadline = time.monotonic() + self._settings.silence_s(said.doing)
        elif isinstance(said, RenderFingerprint):
            assert worker.scene
            self._durations.built(time.monotonic() - worker.began, worker.fresh)
            if difference := said.difference(self.references.put(worker.scene, said)):
                if not difference.startswith("contamination"):  # a fault of this process, not of its node
                    self._nodes.refused(worker.node)
                self._fail(worker, "other", f"refused to score, {difference}")
            else:
                self._nodes.fits(worker.node)
        elif isinstance(said, Unfit):
            self._nodes.refused(worker.node)
            self._fail(worker, "failed", said.why)
        elif isinstance(said, Outdated):
            self._outdated = said.why
            self._queue(self._released(worker))
        elif isinstance(said, Unanswered):
            entry = self._released(worker)
            entry.attempts += 1
            self._again(entry, f"the policy did not answer: {said.why}")
        elif isinstance(said, Played):
            entry = self._released(worker)
            if said.outcome.result != "error":
                self._durations.played(entry.job.scene, said.outcome.sim_s + said.outcome.policy_s)
            # others say nothing about how many simulators the servers can feed
            if self._source is None or isinstance(entry.job.source, RayServedPolicy):
                self.usage.sim_s += said.outcome.sim_s
                self.usage.policy_s += said.outcome.policy_s
                self.usage.looks += said.outcome.looks
            if len(self._workers) > self.num_workers:
                self._dismiss(worker)
            elif said.worn:
                self._replace(worker, "worn")
            self._finished.append((entry.job, said.outcome, said.film))

    def _fail(self, worker: Worker, how: str, why: str) -> None:
        """Replace the worker, because its GL context or its process may be broken, and retry or give up its
        episode.

        If the worker has no episode and no worker is placed, the failure counts for the next waiting episode,
        so that a pool on a cluster where no process starts terminates. If a worker is placed, it counts for
        no episode, and `_look_around` starts another process.
        """
        self.on_failure(how, why)
        if worker.entry is None and self.placed:
            self.usage.replace(how)
            return self._dismiss(worker)
        entry = (
            self._released(worker)
            if worker.entry
            else self._next(next(iter(self._waiting)))
            if self._waiting
            else None
        )
        self._replace(worker, how)
        if entry:
            self.on_retry("worker", entry.job, why)
            deadly = how in ("died", "unserved")
            entry.deaths += deadly
            entry.attempts += not deadly
            self._again(entry, why)

    def _again(self, entry: QueuedEpisode, why: str) -> None:
        if entry.attempts < ATTEMPTS and entry.deaths < DEATHS:
            self.on_retry("episode", entry.job, why)
            return self._queue(entry)
        times = entry.attempts + entry.deaths
        error = Outcome(
            entry.job.spec, "error", 0, 0, 0.0, 0.0, message=f"{why} (given up after {times} attempts)"
        )
        self._finished.append((entry.job, error, None))

    def _released(self, worker: Worker) -> QueuedEpisode:
        assert worker.entry
        entry, worker.entry, worker.told, worker.deadline = worker.entry, None, None, float("inf")
        return entry

    def _replace(self, worker: Worker, why: str) -> None:
        self.usage.replace(why)
        self._dismiss(worker)
        self._fill()

    def _fill(self) -> None:
        while len(self._workers) < self.num_workers:
            self._hire()

    def _hire(self) -> None:
        actor = self._class.options(label_selector=self._nodes.selector()).remote(*self._arguments)
        self._workers.append(Worker(actor, node_of(actor)))

    def _dismiss(self, worker: Worker) -> None:
        ray.kill(worker.actor)
        self._workers.remove(worker)
