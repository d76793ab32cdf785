"""Scheduler of a sweep's training runs: the choice of the next run, and the news of those in progress.

Arms that need the same video model wait for one run of it.
"""

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.checkpoints.record import CheckpointRecord, write_record
from orchestrator.config.arms import Arm
from orchestrator.cost import Cost, CostLedger
from orchestrator.infrastructure import cause_in
from orchestrator.prometheus import CLIPS, LOADER_STALL_S, OPTIMISER_STEP_S, OPTIMISER_STEPS, RETRIES
from orchestrator.redaction import redact
from orchestrator.sweep.arm_search import ArmSearch
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import SweepStatus
from orchestrator.sweep.tracking_publisher import LOSSES, TrackingPublisher
from orchestrator.training.control_channel import ANSWER_S, News, Wish
from orchestrator.training.loop import CONSUMED, TrainJob
from sim_workers.rollout.worker import one_line


class TrainScheduler:
    """Queue of training runs (`ray_tune.Runs`) that receives their news from the desk; called by Tune's loop,
    the desk's and the scorer's threads.
    """

    desk: Any
    """Control actor that receives jobs and requests to end; set before the first run starts."""

    def __init__(
        self,
        state: SweepState,
        board: SweepStatus,
        views: TrackingPublisher,
        spending: CostLedger,
        proposals: ArmSearch,
        submit: Callable[[str, int, str], None],
        say: Callable[[str], None],
        suspend: Callable[[str], None],
        retry_failed: bool,
    ) -> None:
        """Connect the scheduler to the sweep; no run starts yet.

        submit(arm id, step, fingerprint): enqueue a checkpoint for scoring. suspend(cause): end the run after
        an infrastructure failure. retry_failed: train the arms that failed before, and no others.
        """
        self._state, self._board, self._views, self._spending = state, board, views, spending
        self._proposals, self._submit, self._say, self._retry_failed = proposals, submit, say, retry_failed
        self._suspend = suspend
        self.slots = 1
        """Limit of concurrent runs."""
        self.gpus = 0.0
        """GPUs of one worker; may be a fraction."""
        self.running: dict[str, TrainJob] = {}
        self._lock = threading.RLock()
        self._ending = False
        self._proposed = 0
        self._exhausted = False
        self._ready: deque[TrainJob] = deque()
        """Jobs of arms whose video model is trained."""
        self._sharing: dict[str, list[TrainJob]] = {}
        """Jobs of arms that wait for a video model, by its training run."""
        self._broken: BaseException | None = None
        self._over: set[str] = set()
        """Runs whose trial has ended."""
        self._lost = False
        """Whether the control actor is lost, so that no further news arrive."""

    def ask(self, run: str, wish: Wish) -> None:
        """Ask a run to end, if it is in progress."""
        with self._lock:
            if run in self.running:
                self.desk.ask.remote(run, wish)

    def pause(self) -> None:
        """Start no other run; those in progress save a checkpoint and end."""
        with self._lock:
            self._ending = True
            for run in self.running:
                self.ask(run, "pause")

    def check(self) -> None:
        """Raise the error that occurred while news were processed, if any."""
        if self._broken:
            raise self._broken

    def next(self) -> str | None:
        """Return the run to start now, its job ready on the desk; None if there is none, or no free slot."""
        import ray

        with self._lock:
            if self._ending or len(self.running) >= self.slots:
                return None
            job = self._next_ready() or self._next_job()
            if job is None:
                return None
            try:
                # before it can be requested to end
                ray.get(self.desk.give.remote(job.arm_id, job), timeout=ANSWER_S)
            except ray.exceptions.RayError as error:
                self.lost(error)
                return None
            self.running[job.arm_id] = job
            return job.arm_id

    @property
    def finished(self) -> bool:
        with self._lock:
            nothing_left = self._ending or (self._exhausted and not self._ready and not self._sharing)
            return nothing_left and not self.running

    def ended(self, run: str, died: bool) -> None:
        """Record that the run's trial ended. died: its process died in every attempt, which suspends the
        sweep.
        """
        with self._lock:
            self._over.add(run)
            if died:
                self._suspended(run, "the process that starts its training died again and again")
            elif self._lost:
                self._leave(run)

    def lost(self, error: BaseException) -> None:
        """Suspend the sweep: the control actor died or timed out. Training runs save their state and end; the
        next run resumes from it.
        """
        with self._lock:
            self._lost = self._ending = True
            for run in self._over & self.running.keys():
                self._leave(run)
        self._suspend(f"the control actor of the sweep is lost ({one_line(error)})")

    def _leave(self, run: str) -> None:
        self.running.pop(run, None)
        self._sharing.pop(run, None)

    def _suspended(self, run: str, cause: str) -> None:
        """Record that an infrastructure failure ended the run; the next run of the sweep resumes it."""
        if run in self.running:
            self._say(f"paused {self._names(run)}: {cause}")
            self._leave(run)
            self._suspend(cause)

    def _next_ready(self) -> TrainJob | None:
        """Return the next arm's job whose video model is trained, skipping arms that the search stopped
        meanwhile; None if there is none.
        """
        while self._ready:
            job = self._ready.popleft()
            if self._board.arms[job.arm_id].stopped is None:
                return job
        return None

    def _next_job(self) -> TrainJob | None:
        """Return the next proposed arm's job, or that of the video model it needs first, for which all arms
        that share it wait.
        """
        while (arm := self._proposals.next()) is not None:
            arm_id = self._admit(arm)
            if not self._to_train(arm_id):
                continue
            job, video = self._state.job(arm), self._state.stage_one(arm)
            if video is None:
                return job
            if video.train.steps in self._state.checkpoints(video.arm_id):
                return self._on(job, video)
            self._sharing.setdefault(video.arm_id, []).append(job)
            if len(self._sharing[video.arm_id]) == 1:
                return video
        self._exhausted = True
        return None

    def _on(self, job: TrainJob, video: TrainJob) -> TrainJob:
        """Return the arm's job with a trained video model."""
        return replace(job, video_model=self._state.checkpoint_uri(video.arm_id, video.train.steps))

    def _admit(self, arm: Arm) -> str:
        """Return the arm's id; store, show and publish the arm if it is new."""
        arm_id = arm.arm_id(self._state.training)
        if arm_id not in self._board.arms:
            self._state.record_proposal(arm, self._proposed)
            with self._board.lock:
                self._board.arms[arm_id] = self._state.arm_state(arm)
            self._views.arm(arm)
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

    def on_news(self, run: str, news: News) -> None:
        """Process news that a run sent to the desk."""
        try:
            with self._lock:
                if "failed" in news:
                    self._failed(run, news["failed"])
                elif "retried" in news:
                    self._retried(run, news["retried"])
                elif "trained" in news:
                    self._trained(run, news["trained"])
                else:
                    self._reported(run, news)
        except BaseException as error:  # raised by `check` once the other runs have saved their state
            self._broken = error
            self.pause()

    def _trained(self, run: str, checkpoints: list[dict[str, Any]]) -> None:
        known = self._state.checkpoints(run)
        for checkpoint in checkpoints:  # also those that an earlier run was killed before receiving
            if checkpoint["step"] not in known:
                self._reported(run, checkpoint, again=True)
        job = self.running.pop(run)
        if not checkpoints or checkpoints[-1]["step"] < job.train.steps:
            self._sharing.pop(run, None)  # paused or stopped
            return
        self._say(f"trained {self._names(run)}")
        self._ready += [self._on(arm, job) for arm in self._sharing.pop(run, ())]

    def _reported(self, run: str, news: News, again: bool = False) -> None:
        step, losses = int(news["step"]), {name: float(news[name]) for name in LOSSES}
        job, arms = self.running[run], [arm.arm_id for arm in self._sharing.get(run, ())]
        with self._board.lock:
            for arm_id in arms or [run]:
                state = self._board.arms[arm_id]
                if arms:
                    state.video_step = step
                else:
                    state.step = max(step, state.step)
                state.loss = losses["loss"]
        if not again:
            self._spending.add(run, self._spent(job, news))
            for metric, spent in (
                (CLIPS, "clips"),
                (OPTIMISER_STEPS, "steps"),
                (OPTIMISER_STEP_S, "step_s"),
                (LOADER_STALL_S, "stall_s"),
            ):
                metric.record(news[spent], self._state.sweep.name)
        for arm_id in arms:
            self._views.stage_one(arm_id, step, losses["loss_video"])
        facts = losses | {name: news[name] for name in CONSUMED}
        if not arms:
            self._views.training(run, step, facts)
        scheduled = (job.train.steps,) if arms else self._state.sweep.checkpoint_steps()
        if "checkpoint" in news and step in scheduled:
            # the note must not outlive the checkpoint
            self._state.storage.sync(f"arms/{run}/step_{step:06d}/")
            record = CheckpointRecord.from_json(facts | {"checkpoint": news["checkpoint"]})
            write_record(self._state.storage, run, step, record)
            if not arms:
                self._views.checkpoint(run, step, news["checkpoint"])
                self._submit(run, step, news["checkpoint"])

    def _spent(self, job: TrainJob, news: News) -> Cost:
        return Cost(
            train_gpu_s=news["wall_s"] * self.gpus,
            train_cpu_s=news["cpu_s"],
            bytes_read=int(news["bytes_read"]),
        )

    def _names(self, run: str) -> str:
        """Return the display name of an arm, or of a video model with the arms that wait for it."""
        if run in self._board.arms:
            return self._board.arms[run].name
        return f"the video model of {', '.join(job.arm.name for job in self._sharing[run])}"

    def _retried(self, run: str, trace: str) -> None:
        if run not in self.running:  # it had ended, and its process died after
            return
        RETRIES.record(1, self._state.sweep.name, kind="training")
        self._say(f"training {self._names(run)} again: {_sentence(trace)}")

    def _failed(self, run: str, trace: str) -> None:
        with self._lock:
            if cause := cause_in(trace):
                return self._suspended(run, cause)
            if self.running.pop(run, None) is None:
                return
            sentence = _sentence(trace)
            self._say(f"FAILED {self._names(run)}: {sentence}")
            for arm_id in [job.arm_id for job in self._sharing.pop(run, ())] or [run]:
                self._state.record_failure(arm_id, sentence, trace)
                with self._board.lock:
                    self._board.arms[arm_id].failure = self._state.failures()[arm_id]
                self._proposals.failed(self._board.arms[arm_id].arm)


def _sentence(trace: str) -> str:
    """Return the error at a trace's end without its module, at most 300 characters; expected demoscale errors
    without their class.
    """
    # before it is cut, which would hide where a secret ends
    last = re.sub(r"^[\w.]+\.(?=[A-Z]\w*: )", "", redact(trace).strip().splitlines()[-1])
    return re.sub(r"^(EpisodeError|WeightsError|CheckpointError|NotFiniteError): ", "", last)[:300]
