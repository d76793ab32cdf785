"""Scheduler of a sweep's evaluation: the suites of each checkpoint, policy servers, simulators, and the
receivers of scores.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cluster.placement import ResourcePlan
from orchestrator.cluster.ray_runtime import node_selector
from orchestrator.cost import Cost, CostLedger, of_outcome
from orchestrator.evaluation.outcome_ledger import RenderReferences
from orchestrator.evaluation.ray_actors import policy_servers, video_judge
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, Score
from orchestrator.evaluation.video_score import VideoBenchmark, VideoScore
from orchestrator.prometheus import EPISODES, RETRIES
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import SweepStatus
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.sweep.video_eval_queue import VideoEvalQueue
from sim_workers.checkout import file_hashes
from sim_workers.rollout.autoscaler import ServerUsage
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import PolicySource
from sim_workers.rollout.rollout_video import RecordedVideo
from sim_workers.rollout.worker import RolloutJob

MEASURE_S = 7200.0
"""Seconds after which scoring a checkpoint's video times out; the next run retries."""


@dataclass(frozen=True)
class EvalBackend:
    """Simulators and policy servers that play a sweep's episodes."""

    pool: Any
    """A RolloutPool, or an object with its interface."""
    source: Callable[[CheckpointRef, bool], PolicySource]
    """(checkpoint, whether its policy imagines a video) -> the policy."""
    answered: Callable[[CheckpointRef], ServerUsage]
    """Checkpoint -> the computation spent on it so far."""
    server_gpus: float = 0.0
    """GPUs of each policy server; may be a fraction."""
    judge: Callable[[VideoBenchmark, PolicySource], tuple[VideoScore, float]] | None = None
    """Returns the score of a policy's generated video and the CPU seconds of computing it; None: video is not
    scored.
    """


def eval_backend(state: SweepState, placement: ResourcePlan, portraits: RenderReferences) -> EvalBackend:
    """Start simulators and policy servers on a connected Ray."""
    from sim_workers.rollout.pool import RolloutPool
    from sim_workers.rollout.ray_policy_client import RayServedPolicy

    suite = state.sweep.suite
    servers = policy_servers(placement.servers, placement.server_gpus, suite.rung, state.sweep.name)
    judge = lru_cache(video_judge)  # started on first use

    def judged(test: VideoBenchmark, source: PolicySource) -> tuple[VideoScore, float]:
        import ray

        told: tuple[VideoScore, float] = ray.get(judge().measure.remote(test, source), timeout=MEASURE_S)
        return told

    simulators = state.sweep.rollout_actors
    # On other nodes they would take the cores that the next training run waits for, and another CPU model may
    # render other images.
    where = node_selector("rollouts", CPU=placement.rollout_cpus * (1 if placement.apart else simulators))
    return EvalBackend(
        pool=RolloutPool(
            simulators,
            placement.rollout_cpus,
            suite.gl,
            portraits,
            nodes=where,
            label=state.sweep.name,
            code=file_hashes(),
        ),
        source=lambda checkpoint, imagines: RayServedPolicy(servers, checkpoint, imagines),
        answered=lambda checkpoint: RayServedPolicy(servers, checkpoint).measure(checkpoint),
        server_gpus=placement.server_gpus,
        judge=judged,
    )


class EvalScheduler:
    """Evaluation of every submitted checkpoint on the sweep's suite, and of every arm's last one also on the
    shifted suites.
    """

    def __init__(
        self,
        state: SweepState,
        board: SweepStatus,
        views: TrackingPublisher,
        spending: CostLedger,
        playing: EvalBackend,
        on_score: Callable[[str, int, Score], None],
        decides: Callable[[int], bool],
        say: Callable[[str], None],
    ) -> None:
        """Start the scorer. on_score: receives (arm id, step, complete score) of the sweep's own suite.
        decides: as for `Scorer`.
        """
        self._state, self._board, self._views, self._spending, self._playing = (
            state,
            board,
            views,
            spending,
            playing,
        )
        self._on_score, self.say = on_score, say
        self._charged: dict[CheckpointRef, float] = {}  # seconds of answers charged to an arm, by checkpoint
        self._cameras = len(state.manifest.contract.cameras)
        playing.pool.on_retry = self._on_retry
        self.scorer = Scorer(state.storage, state.manifest.contract, playing.pool, self, decides)
        self.videos = VideoEvalQueue(state, views, self._judge, say)

    def submit(self, arm_id: str, step: int, fingerprint: str) -> None:
        """Enqueue the arm's checkpoint of this step, identified by its fingerprint, for scoring."""
        state = self._state
        checkpoint = CheckpointRef(state.checkpoint_uri(arm_id, step), fingerprint)
        last, arm = step == state.sweep.train.steps, self._board.arms[arm_id].arm
        source = self._playing.source(checkpoint, arm.kind == "video_action")
        for shift in ("nominal", *(state.sweep.suite.shifts if last else ())):
            suite = state.sweep.to_suite(shift)
            rule, reference = (
                (state.rule(arm), state.sweep.is_reference(arm)) if shift == "nominal" else (None, False)
            )
            protocol, name = state.protocol_of(shift), self._board.arms[arm_id].name
            self.scorer.submit(
                EvalJob(arm_id, step, checkpoint, suite, protocol, source, last, rule, reference, name)
            )

    @property
    def workers(self) -> int:
        """Number of simulators placed in the cluster."""
        number: int = self._playing.pool.placed
        return number

    def _on_retry(self, kind: str, rollout: RolloutJob, why: str) -> None:
        RETRIES.record(1, self._state.sweep.name, kind=kind)
        if kind == "episode":
            self.say(f"playing {rollout} again: {why}")

    def on_outcomes(self, job: EvalJob, outcomes: Sequence[Outcome], done: int) -> None:
        """Record new outcomes as metrics, cost and progress. done: episodes of the job with an outcome so
        far.
        """
        for (task, result), number in Counter(
            (outcome.spec.task, outcome.result) for outcome in outcomes
        ).items():
            EPISODES.record(number, self._state.sweep.name, task=task, result=result)
        for outcome in outcomes:
            self._spending.add(job.arm_id, of_outcome(outcome, self._cameras))
        if job.suite.shift == "nominal":
            with self._board.lock:
                self._board.arms[job.arm_id].scoring[job.step] = done, self._state.sweep.suite.listed

    def on_score(self, job: EvalJob, score: Score, outcomes: Sequence[Outcome]) -> None:
        """Record a checkpoint's score and its inference cost; publish a complete one and submit its video."""
        arm, shift = self._board.arms[job.arm_id], job.suite.shift
        with self._board.lock:
            if shift == "nominal":
                arm.scores[job.step] = score
                if score.verdict:  # decided: no further episodes are listed
                    arm.scoring[job.step] = score.episodes, score.episodes
            else:
                arm.shifted[shift] = score
        self.say(f"score {job}: {score}")
        for episode, cause in score.causes:
            self.say(f"quarantined {episode} of {job}: {cause}")
        # a checkpoint scored on several suites has several scores
        charged = self._charged.get(job.checkpoint, 0.0)
        # a restarted server counts from zero
        self._charged[job.checkpoint] = max(charged, self._playing.answered(job.checkpoint).busy_s)
        busy_s = self._charged[job.checkpoint] - charged
        gpus = self._playing.server_gpus
        self._spending.add(job.arm_id, Cost(infer_gpu_s=busy_s * gpus, infer_cpu_s=0.0 if gpus else busy_s))
        if score.complete:
            self._views.score(job.arm_id, job.step, job.checkpoint.fingerprint, shift, score, outcomes)
            if shift == "nominal":
                if self._playing.judge and arm.arm.kind == "video_action":
                    self.videos.submit(job, arm.name)
                self._on_score(job.arm_id, job.step, score)

    def _judge(self, job: EvalJob, test: VideoBenchmark) -> VideoScore:
        """Score a checkpoint's video and charge its cost; runs in the thread of `VideoEvalQueue`."""
        assert self._playing.judge
        before = self._playing.answered(job.checkpoint).imagined_s
        score, cpu_s = self._playing.judge(test, job.source)
        imagined_s = max(0.0, self._playing.answered(job.checkpoint).imagined_s - before)
        gpus = self._playing.server_gpus
        self._spending.add(
            job.arm_id, Cost(infer_gpu_s=imagined_s * gpus, infer_cpu_s=cpu_s + (0.0 if gpus else imagined_s))
        )
        return score

    def on_film(self, job: EvalJob, episode: str, film: RecordedVideo) -> None:
        self._views.film(job.arm_id, job.step, episode, film)
