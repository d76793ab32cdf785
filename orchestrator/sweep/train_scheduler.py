"""Scheduler of a sweep's training runs: which run is next, which are in progress, and the requests to end
them.

Arms that need the same video model wait for one run of it.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.external.job import ExternalJob
from orchestrator.sweep.arm_search import ArmSearch
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import SweepStatus
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.training.control_channel import ANSWER_S, StopRequest
from orchestrator.training.loop import TrainJob
from orchestrator.training.worker_usage import WorkerUsage

Job = TrainJob | ExternalJob
UNBOUNDED = 1_000_000
"""More training runs than any cluster has room for."""


class TrainScheduler:
    """Queue of training runs (`ray_tune.Runs`) and the runs in progress.

    Thread-safe: Tune's loop calls `next`, `finished` and `trial_ended`; the thread of training events the
    methods that read or end a run; the scorer's thread `request_stop`; the heartbeat `pause` and `limit`.
    """

    def __init__(
        self,
        state: SweepState,
        board: SweepStatus,
        publisher: TrackingPublisher,
        search: ArmSearch,
        channel: Any,
        slots: int,
        resources: Callable[[Job], Mapping[str, float]],
        retry_failed: bool,
    ) -> None:
        """Create the queue; no run starts yet.

        channel: handle of the control actor, which gets jobs and stop requests. slots: limit of concurrent
        runs. resources: those of one worker of a run (`CPU`, `GPU`). retry_failed: train the arms that failed
        before, and no others.
        """
        self._state, self._board, self._publisher, self._search = state, board, publisher, search
        self._channel, self._slots, self._retry_failed = channel, slots, retry_failed
        self._resources = resources
        self._lock = threading.RLock()
        self._running: dict[str, Job] = {}
        self._ending = False
        self._proposed = 0
        self._exhausted = False
        self._waits = False
        """Whether the search had no arm when it was last asked, and waits for a score."""
        self._ready: deque[Job] = deque()
        """Jobs to start before further arms are proposed: those of arms whose video model is trained."""
        self._waiting: dict[str, list[TrainJob]] = {}
        """Jobs of arms that wait for a video model, by its training run."""
        self._over: set[str] = set()
        """Runs whose trial has ended."""
        self._lost = False

    # -- the queue

    def next(self) -> str | None:
        """Return the run to start now, its job ready on the control channel; None if there is none, or no
        free slot.
        """
        import ray

        with self._lock:
            if self._ending or len(self._running) >= self._slots:
                return None
            job = self._next_ready() or self._next_job()
            if job is None:
                return None
            try:
                # before it can be requested to end
                ray.get(self._channel.put_job.remote(job.arm_id, job), timeout=ANSWER_S)
            except ray.exceptions.RayError:  # the thread of training events reports the loss of the actor
                self._ready.appendleft(job)
                return None
            self._running[job.arm_id] = job
            return job.arm_id

    @property
    def finished(self) -> bool:
        """Whether no training run is in progress and no further one will start."""
        with self._lock:
            nothing_left = self._ending or (self._exhausted and not self._ready and not self._waiting)
            return nothing_left and not self._running

    @property
    def demand(self) -> int:
        """Number of training runs in progress or ready to start; without bound while further arms may be
        proposed, unless the search waits for a score.
        """
        with self._lock:
            if not (self._ending or self._exhausted or self._waits):
                return UNBOUNDED
            return len(self._running) + (0 if self._ending else len(self._ready))

    def limit(self, slots: int) -> None:
        """Set the limit of concurrent runs."""
        self._slots = slots

    def _next_ready(self) -> Job | None:
        """Return the next arm's job whose video model is trained, skipping arms that the search stopped
        meanwhile; None if there is none.
        """
        while self._ready:
            job = self._ready.popleft()
            arm = self._board.arms.get(job.arm_id)  # None: a video model
            if arm is None or arm.stopped is None:
                return job
        return None

    def _next_job(self) -> Job | None:
        """Return the next proposed arm's job, or that of the video model it needs first, for which all arms
        that share it wait.
        """
        while (arm := self._search.next()) is not None:
            self._waits = False
            arm_id = self._admit(arm)
            if not self._to_train(arm_id):
                continue
            job, video = self._state.job(arm), self._state.stage_one(arm)
            if video is None or isinstance(job, ExternalJob):
                return job
            if video.train.steps in self._state.checkpoints(video.arm_id):
                return self._on(job, video)
            self._waiting.setdefault(video.arm_id, []).append(job)
            if len(self._waiting[video.arm_id]) == 1:
                return video
        self._exhausted, self._waits = self._search.exhausted, not self._search.exhausted
        return None

    def _on(self, job: TrainJob, video: TrainJob) -> TrainJob:
        """Return the arm's job with a trained video model."""
        return replace(job, video_model=self._state.checkpoint_uri(video.arm_id, video.train.steps))

    def _admit(self, arm: Arm) -> str:
        """Return the arm's id; store, show and publish the arm if it is new."""
        arm_id = self._state.arm_id(arm)
        if arm_id not in self._board.arms:
            self._state.decisions.record_proposal(arm, self._proposed)
            with self._board.lock:
                self._board.arms[arm_id] = self._state.arm_state(arm)
            self._publisher.arm(arm)
        self._proposed += 1
        return arm_id

    def _to_train(self, arm_id: str) -> bool:
        arm = self._board.arms[arm_id]
        if arm.step == arm.steps or arm.stopped is not None:
            return False
        if bool(arm.failure) != self._retry_failed:
            return False
        arm.failure = ""
        return True

    # -- runs in progress

    @property
    def running(self) -> list[str]:
        """Runs in progress."""
        with self._lock:
            return sorted(self._running)

    def is_running(self, run: str) -> bool:
        """Return whether the run has started and not ended."""
        with self._lock:
            return run in self._running

    def steps(self, run: str) -> int:
        """Return the step at which a run in progress ends, or its budget in seconds."""
        with self._lock:
            return self._running[run].train.end

    def waiting_arms(self, run: str) -> list[str]:
        """Return the ids of the arms that wait for the video model of this run; empty if it trains an arm."""
        with self._lock:
            return [job.arm_id for job in self._waiting.get(run, ())]

    def name(self, run: str) -> str:
        """Return the display name of an arm, or of a video model with the arms that wait for it."""
        with self._lock:
            if run in self._board.arms:
                return self._board.arms[run].name
            return f"the video model of {', '.join(job.arm.name for job in self._waiting[run])}"

    def cost(self, run: str, usage: WorkerUsage) -> Cost:
        """Return the cost of the workers of a run in progress."""
        with self._lock:
            gpus = self._resources(self._running[run]).get("GPU", 0.0)
        # a GPU that training leaves a part of to a policy server is training's
        return Cost(
            train_gpu_s=usage.wall_s * math.ceil(gpus), train_cpu_s=usage.cpu_s, bytes_read=usage.bytes_read
        )

    def request_stop(self, run: str, request: StopRequest) -> None:
        """Request a run to end, if it is in progress."""
        with self._lock:
            if run in self._running:
                self._channel.request_stop.remote(run, request)

    def pause(self) -> None:
        """Start no other run; those in progress save a checkpoint and end."""
        with self._lock:
            self._ending = True
            for run in self._running:
                self.request_stop(run, StopRequest.PAUSE)

    # -- ends of runs

    def finish(self, run: str) -> None:
        """Remove a run that was trained to its last step; arms that wait for its video model may start."""
        with self._lock:
            done = self._running.pop(run)
            if isinstance(done, TrainJob):
                self._ready += [self._on(job, done) for job in self._waiting.pop(run, ())]

    def fail(self, run: str) -> list[str]:
        """Remove a run that failed permanently; return the arms that failed with it: its own, or those that
        wait for its video model.
        """
        with self._lock:
            failed = self.waiting_arms(run) or [run]
            self.leave(run)
            for arm_id in failed:
                self._search.failed(self._board.arms[arm_id].arm)
            return failed

    def leave(self, run: str) -> None:
        """Remove a run that the next run of the sweep resumes, and the arms that wait for its video model."""
        with self._lock:
            self._running.pop(run, None)
            self._waiting.pop(run, None)

    def trial_ended(self, run: str) -> None:
        """Record that a run's trial ended; without a control actor, no event will say so."""
        with self._lock:
            self._over.add(run)
            if self._lost:
                self.leave(run)

    @property
    def lost(self) -> bool:
        """Whether the control actor is lost, so that no further events arrive."""
        return self._lost

    def channel_lost(self) -> None:
        """Start no other run; those in progress end when their trial does."""
        with self._lock:
            self._lost = self._ending = True
            for run in self._over & self._running.keys():
                self.leave(run)
