"""The run of a sweep: Ray Tune trains arms, a thread scores checkpoints, the search receives scores, MLflow
receives everything.

Finished work is found in the storage and not repeated, so the same command starts, resumes and completes a
sweep.
"""

import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from typing import Any

from orchestrator.cluster.placement import ResourcePlan
from orchestrator.cluster.ray_runtime import acting_device, connect, dedicated_resources, resources
from orchestrator.cluster.sharing import presence
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.cost import Cost, CostLedger, of_outcome
from orchestrator.data.drawn_by import difference, drivers_of
from orchestrator.evaluation.action_error_score import ActionErrorScore
from orchestrator.evaluation.outcome_ledger import RenderReferences
from orchestrator.evaluation.score_events import (
    ActionErrorScored,
    ActionErrorsRecorded,
    GeneratedVideoScored,
    OutcomesRecorded,
    RolloutVideoStored,
    ScoreConcluded,
    ScoreEvent,
)
from orchestrator.evaluation.scores import Score, render_references_of
from orchestrator.infrastructure import InfrastructureError, cause_in, cause_of
from orchestrator.planning.plan import planned_arms
from orchestrator.prometheus import (
    CLIPS,
    EPISODES,
    LOADER_STALL_S,
    OPTIMISER_STEP_S,
    OPTIMISER_STEPS,
    RETRIES,
)
from orchestrator.redaction import redact, redacting
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.storage.base import open_storage
from orchestrator.sweep.arm_search import ArmPruner, ArmSearch, GridSearch, OptunaSearch
from orchestrator.sweep.driver_lease import Lease
from orchestrator.sweep.eval_scheduler import EvalBackend, EvalScheduler, eval_backend
from orchestrator.sweep.heartbeat import Heartbeat
from orchestrator.sweep.next_search import NextArmSearch, adopt_trained
from orchestrator.sweep.ray_tune import Fit, fit, resources_of, run_trials
from orchestrator.sweep.republish import publish_curve
from orchestrator.sweep.retention import CheckpointPruner
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher, ended_as
from orchestrator.sweep.train_scheduler import TrainScheduler
from orchestrator.tracking.mlflow_writer import FAILED, KILLED, TrackingError, local_folder
from orchestrator.tracking.outbox_relay import DEFAULT_OUTBOX, OutboxSettings
from orchestrator.training.control_channel import StopRequest, open_control_channel, receiving
from orchestrator.training.train_events import Failed, Finished, Reported, Retried, TrainEvent
from policy.errors import DemoscaleError
from sim_workers.envs.render_check import NOBODY
from sim_workers.rollout.pool_state import OnRetry
from sim_workers.rollout.worker import RolloutJob, one_line

Players = Callable[[SweepState, ResourcePlan, RenderReferences, OnRetry], EvalBackend]
"""Starts simulators and policy servers; `eval_backend`."""


class UnfinishedError(DemoscaleError):
    """Error that lists the arms without a place on the curve, one sentence each."""


class SweepRun:
    """One run of a sweep, from its stored state to its end.

    The schedulers, the scorer and the control channel know nothing of each other: each sends its events to
    `handle`, which calls the others.
    """

    evaluation: EvalScheduler
    """Evaluation of checkpoints, from the time at which the cluster is connected."""
    training: TrainScheduler
    """Training runs, from the time at which the control channel is open."""

    def __init__(
        self,
        sweep: SweepConfig,
        say: Callable[[str], None],
        retry_failed: bool = False,
        fit: Fit = fit,
        players: Players = eval_backend,
        outbox: OutboxSettings = DEFAULT_OUTBOX,
        take_over: bool = False,
    ) -> None:
        """Claim the sweep's lease and read its state. Raises HeldError if another driver holds it; take_over:
        end that driver instead.

        say: called with one line per event. retry_failed: train the arms that failed before, and no others.
        outbox: how long the end of the run waits for MLflow.
        """
        say = redacting(say)
        self.ending = self._cause = ""
        """`ending`: why no new work is started, empty otherwise. `_cause`: the infrastructure failure that
        ended the run, empty if none.
        """
        self.interrupted = False
        """Whether the run was requested to end; `Heartbeat` polls it."""
        self.taken_over = ""
        """Sentence that names the driver which takes the sweep over; empty if none does."""
        self._training_failure: BaseException | None = None
        self._drivers = set[str]()
        """Drivers of the suite's pictures that were compared with the stores'."""
        self._ends_of_runs = threading.RLock()
        """Held while a training event is handled, so that Tune's loop does not end its run meanwhile."""
        self.say, self._retry_failed, self._fit, self._players = say, retry_failed, fit, players
        with ExitStack() as held:
            held.enter_context(
                Lease(open_storage(sweep.storage), sweep.name, self._taken_over).claim(say, take_over)
            )
            self.state = SweepState.open(sweep, pin=True)
            if sweep.data.on_corrupt == "quarantine":
                self.state = self._without_damaged(say)
            if sweep.search.next:
                adopt_trained(self.state)
            self.board = self.state.board()
            torn = self.state.without_torn(self.board)
            if torn:
                self.board = self.state.board()
            for arm_id, steps in torn.items():
                say(
                    f"{self.board.arms[arm_id].name}: the checkpoints of steps {', '.join(map(str, steps))}"
                    " are damaged; they are trained again"
                )
            self.spending = CostLedger(self.state.storage, sweep.name, uuid.uuid4().hex[:8])
            self._outbox = outbox
            self._pruner = ArmPruner(sweep)
            self._search: ArmSearch = GridSearch(
                sorted(sweep.grid(), key=lambda arm: not sweep.is_reference(arm))
            )
            if sweep.search.optuna:
                self._search = OptunaSearch(
                    sweep,
                    local_folder(sweep.storage) / f"{sweep.name}-optuna.log",
                    self.state.decisions.proposed(),
                )
            if sweep.search.next:
                self._search = NextArmSearch(
                    sweep,
                    self.state.decisions,
                    self.state.arm_id,
                    self._outcomes_of,
                    self.spending.by_arm,
                    say,
                    choosing=not retry_failed,
                )
                for arm in self.board.arms.values():
                    if arm.failure:
                        self._search.failed(arm.arm)
            self._held = held.pop_all()

    def _taken_over(self, why: str) -> None:
        self.taken_over = why

    def _outcomes_of(self, arm: Arm) -> dict[str, bool]:
        """Return whether the episodes of the score succeeded by which the search judges an arm."""
        arm_id, last = self.state.arm_id(arm), self.state.sweep.train_of(arm).end
        checkpoint = self.state.checkpoints(arm_id)[last].fingerprint
        _, outcomes = self.state.score(arm, checkpoint, self.state.sweep.suite.decided_on)
        return {outcome.spec.episode_id: outcome.result == "success" for outcome in outcomes}

    @cached_property
    def _publisher(self) -> TrackingPublisher:
        """Publisher to MLflow, created on first use: the keys that name its runs are known only once the
        cluster is connected.
        """
        return TrackingPublisher(self.state, self.say, settings=self._outbox)

    @cached_property
    def _checkpoints(self) -> CheckpointPruner:
        """Removes checkpoints that `train.keep` does not name; created on first use, as the publisher."""
        return CheckpointPruner(self.state, self.board, self.say)

    def _without_damaged(self, say: Callable[[str], None]) -> SweepState:
        """Return the sweep's state after reading every episode it needs once."""
        say("reading every episode the sweep needs, to set damaged ones aside")
        before = self.state.quarantined
        state = self.state.without_damaged(
            lambda done, todo: (
                say(f"read {done} of {todo} episodes") if done % 1000 == 0 or done == todo else None
            )
        )
        for episode, problem in state.quarantined.items():
            say(f"quarantined {'' if episode in before else 'now '}{episode}: {problem}")
        return state

    def run(self) -> Curve | HeldOutCurve | None:
        """Train and score what the storage lacks; return the curve of the complete arms, None if there is
        none.

        Raises KeyboardInterrupt if the run was paused, InfrastructureError if what it runs on failed (such as
        Ray or the storage), and UnfinishedError if an arm failed, after all others were finished.
        """
        with self._held:
            return self._run()

    def _run(self) -> Curve | HeldOutCurve | None:
        sweep = self.state.sweep
        connect()
        cpus_apart = dedicated_resources("rollouts").get("CPU", 0.0)
        gpus_apart = dedicated_resources("servers").get("GPU", 0.0)
        placement = ResourcePlan.fit(
            resources(),
            sweep.train.workers,
            sweep.scoring_processes,
            len(planned_arms(sweep)),
            cpus_apart,
            sweep.data.decode,
            gpus_apart,
        )
        self._act_on(acting_device(placement.server_gpus))
        self.state.keep_keys()
        if reused := sorted(arm.name for arm in self.board.arms.values() if arm.step == arm.steps):
            self.say(f"already trained, not trained again: {', '.join(reused)}")
        if scored := sum(len(arm.scores) for arm in self.board.arms.values()):
            again = "measured" if self.state.held_out else "played"
            self.say(f"already scored, not {again} again: {scored} checkpoints")
        portraits = render_references_of(
            self.state.storage, sweep.suite.gl, sweep.suite.tasks, sweep.suite.processors
        )
        portraits.on_drawn = self._drawn_by
        backend = self._players(self.state, placement, portraits, self._on_episode_retry)
        self.evaluation = EvalScheduler(
            self.state, self.board, backend, self._pruner.decides, self.handle, self.say
        )
        self._publisher.start(
            arm_id
            for arm_id, arm in self.board.arms.items()
            if ended_as(arm, sweep.suite.shifts) in ("", *([FAILED] if self._retry_failed else []))
        )
        with self._ending_cleanly():
            try:
                with open_control_channel(presence()) as channel:
                    self._train_and_score(channel, placement)
                self._check_training()  # the last events were handled when the channel closed
                if failure := self._publisher.failure:
                    raise failure
            finally:
                self.evaluation.scorer.close()
                self.evaluation.videos.wind_down()
                self.spending.close()
                self._checkpoints.close()
            if not self.state.held_out:
                self._publisher.artifact("portraits.json", json.dumps(portraits.all(), indent=1).encode())
            if self.state.sweep.search.next:
                decided = {"chosen": self.state.decisions.choices(), "ended": self.state.decisions.ends()}
                self._publisher.artifact("choices.json", json.dumps(decided, indent=1).encode())
            self.board.charge(CostLedger.read_all(self.state.storage).by_arm())
            self._publisher.costs(
                {arm_id: arm.cost for arm_id, arm in self.board.arms.items()}, self.spending.total()
            )
            unfinished = [*self._unfinished()]
            done = not unfinished and not self.ending
            curve = publish_curve(self._publisher, self.state, complete=done)
        return self._concluded(curve, unfinished)

    def _train_and_score(self, channel: Any, placement: ResourcePlan) -> None:
        """Train and score until nothing is left, or the run is to end. channel: handle of the control
        actor.
        """
        self.training = TrainScheduler(
            self.state,
            self.board,
            self._publisher,
            self._search,
            channel,
            placement.concurrent_arms,
            partial(resources_of, placement),
            self._retry_failed,
        )
        self._replay()
        with receiving(channel, self.handle, self._on_channel_lost), Heartbeat(self, placement):
            run_trials(
                self.training,
                self._on_trial_end,
                self._fit,
                self.state.uri("arms"),
                partial(resources_of, placement),
                channel,
                self.state.sweep.attempts,
            )
            self._check_training()
            self.evaluation.scorer.drain()
            self.evaluation.videos.drain()
            for arm_id in self.board.arms:
                self._checkpoints.look(arm_id)

    def _drawn_by(self, driver: str) -> None:
        """Say, once per driver of the suite's pictures, if the stores' pictures were drawn by another one."""
        if driver in self._drivers or driver == NOBODY:
            return
        self._drivers.add(driver)
        manifest = self.state.manifest
        stores = [part.store for part in manifest.parts] or [self.state.episodes]
        if said := difference([(uri, drivers_of(open_storage(uri))) for uri in stores], driver):
            self.say(said)

    @contextmanager
    def _ending_cleanly(self) -> Iterator[None]:
        """On an error, publish what there is; raise InfrastructureError if one was its cause."""
        try:
            yield
        except BaseException as error:
            with suppress(TrackingError):  # of a full disk, of which `error` is the news
                self._publish_ends(KILLED if isinstance(error, KeyboardInterrupt) else FAILED)
            if left := self._publisher.finish(done=False):
                self.say(left)
            if cause := self._cause or cause_of(error):
                raise self._suspended(cause) from error
            raise

    def _act_on(self, device: str) -> None:
        """Set the device class that checkpoints act on, which is part of their scores' keys."""
        before, checkpoints = self.state.device, any(arm.step for arm in self.board.arms.values())
        self.state = self.state.on_device(device)
        if before != device:
            self.board = self.state.board()
        if before and before != device and checkpoints:
            self.say(
                f"checkpoints act on {device}, earlier on {before}: scores of the two are not mixed, so they"
                f" are {'measured' if self.state.held_out else 'played'} again on {device}"
            )

    def _concluded(
        self, curve: Curve | HeldOutCurve | None, unfinished: list[str]
    ) -> Curve | HeldOutCurve | None:
        """Publish what is left and return the curve, or raise why the sweep is not complete."""
        self._publish_ends(FAILED if self._cause or not self.ending else KILLED)
        if left := self._publisher.finish(done=not unfinished and not self.ending):
            self.say(left)
        if self._cause:
            raise self._suspended(self._cause)
        if self.ending == "stopped":
            raise KeyboardInterrupt
        if unfinished and not self.ending:
            raise UnfinishedError(
                f"{self.state.sweep.name}: not everything could be done\n"
                + "\n".join(f"  - {one}" for one in unfinished)
            )
        return curve

    def _publish_ends(self, status: str) -> None:
        """Publish how the arms ended, and `status` for the sweep unless it is complete; nothing if another
        driver took the sweep over, which publishes its own.
        """
        if self.taken_over:
            return
        otherwise = KILLED if self.ending or self._retry_failed else FAILED
        for arm_id, arm in self.board.arms.items():
            self._publisher.end_arm(arm_id, arm, otherwise)
        if self.ending or [*self._unfinished()]:
            self._publisher.end(status)

    def end(self, why: str) -> None:
        """Start no new work: training runs save a checkpoint and end, episodes in progress are finished. The
        same command resumes.
        """
        if not self.ending:
            self.ending = why
            self.say(f"ending: {why}; training saves its state, episodes in progress are finished")
            self.training.pause()
            self.evaluation.scorer.wind_down()
            self.evaluation.videos.wind_down()

    def suspend(self, cause: str) -> None:
        """End the run cleanly after an infrastructure failure: no arm is marked as failed, and the same
        command resumes.
        """
        self._cause = self._cause or cause
        self.end(cause)

    def _suspended(self, cause: str) -> InfrastructureError:
        return InfrastructureError(
            f"{self.state.sweep.name}: {cause}; what was finished is kept, no arm failed by it, and the same"
            " command goes on"
        )

    def failed_thread(self) -> str:
        """Return the name of a thread that failed, empty if none did. Its error is raised once the run has
        ended cleanly.
        """
        failures = {
            "scoring": self.evaluation.scorer.failure,
            "video scoring": self.evaluation.videos.failure,
            "reporting to MLflow": self._publisher.failure,
        }
        return next((name for name, failure in failures.items() if failure), "")

    @property
    def untold(self) -> int:
        """Number of records not yet published to MLflow."""
        return self._publisher.untold

    # -- events

    def handle(self, event: TrainEvent | ScoreEvent) -> None:
        """Process an event of training or scoring.

        Called by three threads, each with one event at a time: training events come from the thread of
        `receiving`, scored generated videos from that of `VideoEvalQueue`, other score events from the
        scorer's. Schedulers, status, cost ledger and publisher are thread-safe; once checkpoints are
        submitted, the pruner is used by the scorer's thread alone. An error in a score event ends the thread
        it came from, and so the run. An error in a training event pauses training and is raised at its end.
        """
        match event:
            case OutcomesRecorded():
                self._on_outcomes(event)
            case ScoreConcluded():
                self._on_score(event)
            case RolloutVideoStored():
                self._publisher.film(event.job.arm_id, event.job.step, event.episode, event.video)
            case ActionErrorsRecorded():
                self._on_action_errors(event)
            case ActionErrorScored():
                self._on_action_error_score(event)
            case GeneratedVideoScored():
                self.spending.add(event.job.arm_id, event.cost)
                self._publisher.video(event.job.arm_id, event.job.step, event.score)
                self._checkpoints.look(event.job.arm_id)
            case _:
                self._on_train_event(event)

    def _on_train_event(self, event: TrainEvent) -> None:
        with self._ends_of_runs:
            if not self.training.is_running(event.run):
                return  # its trial died; the next run of the sweep resumes it
            try:
                match event:
                    case Reported():
                        self._on_report(event)
                    case Retried():
                        RETRIES.record(1, self.state.sweep.name, kind="training")
                        self.say(f"training {self.training.name(event.run)} again: {_sentence(event.cause)}")
                    case Finished():
                        self._on_finished(event)
                    case Failed():
                        self._on_failed(event)
            except BaseException as error:
                self._training_failure = error
                if isinstance(event, Finished | Failed):
                    self.training.leave(event.run)  # no further event of this run will come
                self.training.pause()

    def _check_training(self) -> None:
        """Raise the error that occurred while training events were handled, if any."""
        if self._training_failure:
            raise self._training_failure

    def _on_report(self, event: Reported, earlier: bool = False) -> None:
        """Record a report. earlier: the checkpoint is of a run that was killed before it received the report;
        its usage is not charged.
        """
        run, step, name = event.run, event.step, self.state.sweep.name
        arms = self.training.waiting_arms(run)
        if arms:
            self.board.record_video_training(arms, step, event.loss)
        else:
            self.board.record_training(run, step, event.loss)
        if not earlier:
            self.spending.add(run, self.training.cost(run, event.usage))
            CLIPS.record(event.usage.clips, name)
            OPTIMISER_STEPS.record(event.usage.steps, name)
            OPTIMISER_STEP_S.record(event.usage.step_s, name)
            LOADER_STALL_S.record(event.usage.stall_s, name)
        for arm_id in arms:
            self._publisher.stage_one(arm_id, step, event.loss_video)
        if not arms:
            self._publisher.training(run, step, event.metrics)
        scheduled = (
            (self.training.steps(run),)
            if arms
            else self.state.sweep.checkpoint_steps(self.board.arms[run].arm)
        )
        if event.checkpoint and step in scheduled:
            self.state.record_checkpoint(event)
            if not arms:
                self.board.record_trained_on(run, event.trained_on)
                self._publisher.trained_on(run, event.trained_on)
                self._publisher.checkpoint(run, step, event.checkpoint)
                self.evaluation.submit(run, step, event.checkpoint)
                self._checkpoints.look(run)

    def _on_finished(self, event: Finished) -> None:
        known = self.state.checkpoints(event.run)
        for report in event.checkpoints:
            if report.step not in known:
                self._on_report(report, earlier=True)
        if not event.checkpoints or event.checkpoints[-1].step < self.training.steps(event.run):
            return self.training.leave(event.run)  # paused or stopped
        self.say(f"trained {self.training.name(event.run)}")
        self.training.finish(event.run)

    def _on_failed(self, event: Failed) -> None:
        if cause := cause_in(event.trace):
            return self._suspend_run(event.run, cause)
        sentence = _sentence(event.trace)
        self.say(f"FAILED {self.training.name(event.run)}: {sentence}")
        for arm_id in self.training.fail(event.run):
            self.state.record_failure(arm_id, sentence, event.trace)
            self.board.record_failure(arm_id, self.state.failures()[arm_id])
            self._publisher.end_arm(arm_id, self.board.arms[arm_id])

    def _on_trial_end(self, run: str, died: bool) -> None:
        """Process the end of a trial; called by Tune's loop. died: its process died in every attempt."""
        with self._ends_of_runs:
            self.training.trial_ended(run)
            if died and self.training.is_running(run):
                self._suspend_run(run, "the process that starts its training died again and again")

    def _suspend_run(self, run: str, cause: str) -> None:
        """End a training run and the sweep after an infrastructure failure; the next run resumes both."""
        self.say(f"paused {self.training.name(run)}: {cause}")
        self.training.leave(run)
        self.suspend(cause)

    def _on_channel_lost(self, error: BaseException) -> None:
        """End the sweep: the control actor died or timed out. Training runs save their state and end; the
        next run resumes from it.
        """
        self.training.channel_lost()
        self.suspend(f"the control actor of the sweep is lost ({one_line(error)})")

    def _on_episode_retry(self, kind: str, rollout: RolloutJob, why: str) -> None:
        """Report an episode that is played again; called by the scorer's thread, see `OnRetry`."""
        RETRIES.record(1, self.state.sweep.name, kind=kind)
        if kind == "episode":
            self.say(f"playing {rollout} again: {why}")

    def _on_outcomes(self, event: OutcomesRecorded) -> None:
        job, sweep = event.job, self.state.sweep
        results = Counter((outcome.spec.task, outcome.result) for outcome in event.outcomes)
        for (task, result), number in results.items():
            EPISODES.record(number, sweep.name, task=task, result=result)
        cameras = len((job.contract or self.state.manifest.contract).cameras)
        for outcome in event.outcomes:
            self.spending.add(job.arm_id, of_outcome(outcome, cameras))
        if job.part == sweep.suite.decided_on and not job.contract:
            self.board.record_outcomes(job.arm_id, job.step, event.done, sweep.suite.deciding)

    def _on_score(self, event: ScoreConcluded) -> None:
        job, score, part = event.job, event.score, event.job.part
        decides = part == self.state.sweep.suite.decided_on
        if decides and not job.contract:
            self.board.record_score(job.arm_id, job.step, "nominal", score)
        elif part == "nominal" and not job.contract:
            self.board.record_report(job.arm_id, job.step, score)
        elif not job.contract:
            self.board.record_score(job.arm_id, job.step, part, score)
        self.say(f"score {job}: {score}")
        for episode, cause in score.causes:
            self.say(f"quarantined {episode} of {job}: {cause}")
        self.spending.add(job.arm_id, self.evaluation.inference_cost(job))
        if job.contract:  # a reference of the suite has no arm
            return
        if not score.complete:
            arm = self.board.arms[job.arm_id]
            if decides and job.step == arm.steps:
                self._search.unscored(arm.arm)
            return
        self._publisher.score(job.arm_id, job.step, job.checkpoint.fingerprint, part, score, event.outcomes)
        if decides:
            self.evaluation.submit_video(job)
            self._search_on(job.arm_id, job.step, score)
            self._report_best(job.arm_id)
        self._publisher.end_arm(job.arm_id, self.board.arms[job.arm_id])
        self._checkpoints.look(job.arm_id)

    def _report_best(self, arm_id: str) -> None:
        """Once every checkpoint of an arm has a score on the scenes of `suite.select`, enqueue the best one
        for the episodes that the curve shows, if `suite.report` asks for it.
        """
        arm = self.board.arms[arm_id]
        step = None if arm.stopped is not None else self.state.best_checkpoint(arm_id, arm)
        self.board.record_best(arm_id, step)
        if step is None:
            return
        self._publisher.best(arm_id, step)
        if step != arm.steps and step not in arm.reports:  # the last one is enqueued already
            self.evaluation.submit_report(arm_id, step, self.state.checkpoints(arm_id)[step].fingerprint)

    def _on_action_errors(self, event: ActionErrorsRecorded) -> None:
        job = event.job
        self.spending.add(job.arm_id, Cost(infer_cpu_s=event.cpu_s) + self.evaluation.inference_cost(job))
        self.board.record_outcomes(job.arm_id, job.step, event.done, event.listed)

    def _on_action_error_score(self, event: ActionErrorScored) -> None:
        job, score = event.job, event.score
        self.board.record_action_error(job.arm_id, job.step, score)
        self.say(f"{job}: {score}")
        for episode, cause in score.causes:
            self.say(f"not measured: {episode} of {job}: {cause}")
        if not score.complete:
            return
        self._publisher.action_error(job.arm_id, job.step, job.checkpoint.fingerprint, score)
        self.evaluation.submit_video(job)
        self._search_on(job.arm_id, job.step, score)
        self._publisher.end_arm(job.arm_id, self.board.arms[job.arm_id])
        self._checkpoints.look(job.arm_id)

    def _search_on(self, arm_id: str, step: int, score: Score | ActionErrorScore) -> None:
        """Let the search decide on a complete score: stop the arm, or learn its result."""
        arm = self.board.arms[arm_id]
        if arm.stopped is None and self._pruner.stops(arm_id, step, score.merit):
            arm.stopped = step
            self.state.decisions.record_stop(arm_id, step)
            self.say(f"stopped {arm.name} after {step} {arm.unit}: it is behind at {score}")
            self.training.request_stop(arm_id, StopRequest.STOP)
            self.evaluation.scorer.drop(arm_id)
        if arm.stopped is not None or step == arm.steps:
            cost = self.spending.of(arm_id)
            self._search.tell(arm.arm, score.merit, cost.cpu_s + cost.gpu_s, arm.stopped)

    # -- start and end

    def _replay(self) -> None:
        """Report stored scores to the pruner in the order of their steps, and enqueue every checkpoint
        of unstopped arms for scoring.
        """
        scores = sorted((step, arm_id) for arm_id, arm in self.board.arms.items() for step in arm.scores)
        for step, arm_id in scores:
            self._pruner.stops(arm_id, step, self.board.arms[arm_id].scores[step].merit)
        for arm_id, arm in sorted(
            self.board.arms.items(), key=lambda told: not self.state.sweep.is_reference(told[1].arm)
        ):
            if arm.stopped is not None:
                continue
            for step, checkpoint in self.state.checkpoints(arm_id).items():
                self.evaluation.submit(arm_id, step, checkpoint.fingerprint)
            self._report_best(arm_id)
            self._checkpoints.look(arm_id)
        self.evaluation.submit_references()

    def _unfinished(self) -> Iterator[str]:
        """Yield why arms have no place on the curve, one sentence each."""
        for arm in self.board.arms.values():
            if arm.failure:
                yield f"{arm.name}: {arm.failure}"
                continue
            if arm.stopped is None and arm.steps not in arm.scores and not self._retry_failed:
                yield (
                    f"{arm.name}: its last checkpoint has no score ({arm.state}, {arm.step} of {arm.steps}"
                    f" {arm.unit}); run again to go on"
                )
            if arm.stopped is None and arm.steps in arm.scores and not (arm.reported or self._retry_failed):
                which = "last" if arm.report is None else "best"
                yield f"{arm.name}: its {which} checkpoint has no score to report; run again to go on"
            for shift, score in {"": arm.scores.get(arm.steps), **arm.shifted}.items():
                if score and not score.complete:
                    causes = "; ".join(sorted({cause for _, cause in score.causes}))
                    if isinstance(score, ActionErrorScore):
                        yield (
                            f"{arm.name}: {len(score.causes)} held-out episodes could not be measured"
                            f" ({causes}); run again to measure them again"
                        )
                        continue
                    where = f" under the {shift} shift" if shift else ""
                    yield (
                        f"{arm.name}: {score.errors} episodes{where} ended in an error ({causes}); run again"
                        " to play them again"
                    )

    def films(self) -> dict[str, list[str]]:
        """Return the URIs of the rollout videos of every arm's last checkpoint, by the arm's name."""
        return {
            arm.name: [self.state.uri(key) for key in films.values()]
            for arm in self.board.arms.values()
            if (films := self.state.films(arm.arm))
        }


def _sentence(trace: str) -> str:
    """Return the error at a trace's end without its module, at most 300 characters; expected demoscale errors
    without their class.
    """
    # before it is cut, which would hide where a secret ends
    last = re.sub(r"^[\w.]+\.(?=[A-Z]\w*: )", "", redact(trace).strip().splitlines()[-1])
    return re.sub(
        r"^(EpisodeError|WeightsError|CheckpointError|NotFiniteError|Command(Refused)?Error): ", "", last
    )[:300]
