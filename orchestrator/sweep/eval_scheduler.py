"""Scheduler of a sweep's evaluation: the suites of each checkpoint, policy servers, and simulators."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cluster.placement import SHARED_GPU, ResourcePlan, Shares
from orchestrator.cluster.ray_runtime import node_selector
from orchestrator.code_fingerprint import run_files
from orchestrator.cost import Cost
from orchestrator.evaluation.action_error_score import (
    ASKED_AT_ONCE,
    ActionErrorBenchmark,
    Measured,
)
from orchestrator.evaluation.held_out_scorer import ActionErrors, HeldOutScorer
from orchestrator.evaluation.outcome_ledger import RenderReferences
from orchestrator.evaluation.ray_actors import (
    RayServerHost,
    held_out_actor,
    needs_of_checkpoint,
    policy_servers,
)
from orchestrator.evaluation.score_events import ScoreEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, HeldOutJob
from orchestrator.evaluation.server_fleet import ServerFleet
from orchestrator.evaluation.video_score import VideoBenchmark, VideoScore
from orchestrator.sweep.references import references_of
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import SweepStatus
from orchestrator.sweep.video_eval_queue import VideoEvalQueue
from sim_workers.rollout.autoscaler import ServerUsage
from sim_workers.rollout.policy_clients import PolicySource
from sim_workers.rollout.pool_state import OnRetry

MEASURE_S = 7200.0
"""Seconds after which scoring a checkpoint's video times out; the next run retries."""

LINGER_S = 60.0
"""Seconds for which a policy server stays without work: the next checkpoint may be near, and loading takes
long.
"""


@dataclass(frozen=True)
class EvalBackend:
    """Simulators and policy servers that play a sweep's episodes, or policy servers and readers of held-out
    episodes.
    """

    pool: Any
    """A RolloutPool, or an object with its interface; None for a sweep of held-out episodes."""
    source: Callable[[CheckpointRef, bool], PolicySource]
    """(checkpoint, whether its policy imagines a video) -> the policy."""
    answered: Callable[[CheckpointRef], ServerUsage]
    """Checkpoint -> the computation spent on it so far."""
    server_gpus: float = 0.0
    """GPUs of a policy server, by which its seconds are billed."""
    fleet: ServerFleet | None = None
    """Policy servers that come and go; None where they stay from the start to the end."""
    judge: Callable[[VideoBenchmark, PolicySource], tuple[VideoScore, float]] | None = None
    """Returns the score of a policy's generated video and the CPU seconds of computing it; None: video is not
    scored.
    """
    action_errors: ActionErrors | None = None
    """Measures a policy on held-out episodes; None for a sweep that plays episodes."""


def eval_backend(
    state: SweepState, placement: ResourcePlan, portraits: RenderReferences, on_retry: OnRetry
) -> EvalBackend:
    """Start simulators and policy servers on a connected Ray. on_retry: called when the pool retries an
    episode.
    """
    from sim_workers.rollout.ray_policy_client import RayServedPolicy

    suite = state.sweep.suite
    fleet = None
    servers: tuple[Any, ...] = ()
    name, learners = state.sweep.name, [line.learner for line in state.sweep.lines]
    if placement.server_gpus:
        fleet = ServerFleet(RayServerHost(suite.rung, name, suite.sampler, learners), SHARED_GPU)
    else:
        servers = policy_servers(placement.servers, 0.0, suite.rung, name, learners, suite.sampler)
    judge = lru_cache(held_out_actor)  # started on first use

    def judged(test: VideoBenchmark, source: PolicySource) -> tuple[VideoScore, float]:
        import ray

        with _served(fleet, source) as reached:
            told: tuple[VideoScore, float] = ray.get(judge().measure.remote(test, reached), timeout=MEASURE_S)
        return told

    without_pool = EvalBackend(
        pool=None,
        source=lambda checkpoint, imagines: RayServedPolicy(
            servers, checkpoint, imagines, needs_of_checkpoint(checkpoint)
        ),
        answered=(
            fleet.work
            if fleet
            else lambda checkpoint: RayServedPolicy(servers, checkpoint).measure(checkpoint)
        ),
        server_gpus=placement.server_gpus,
        fleet=fleet,
        judge=judged,
    )
    if suite.held_out is not None:
        return replace(without_pool, action_errors=_readers(placement.servers, fleet))
    from sim_workers.rollout.pool import RolloutPool

    simulators = state.sweep.rollout_actors
    # On other nodes they would take the cores that the next training run waits for, and another CPU model may
    # render other images.
    where = node_selector("rollouts", CPU=placement.rollout_cpus * (1 if placement.apart else simulators))
    pool = RolloutPool(
        simulators,
        placement.rollout_cpus,
        suite.gl,
        portraits,
        nodes=where,
        label=state.sweep.name,
        code=run_files(suite.tasks),
        on_retry=on_retry,
    )
    return replace(without_pool, pool=pool)


@contextmanager
def _served(fleet: ServerFleet | None, source: PolicySource) -> Iterator[PolicySource]:
    """Yield the policy on the fleet's servers of now, which do not end meanwhile; unchanged without a
    fleet.
    """
    if fleet is None:
        yield source
        return
    with fleet.leased(MEASURE_S) as servers:
        yield replace(cast(Any, source), servers=servers)


def _readers(number: int, fleet: ServerFleet | None) -> ActionErrors:
    """Start `number` processes that read held-out episodes; return the function that divides a test's
    episodes among them.
    """
    readers = [held_out_actor() for _ in range(number)]

    def measure(test: ActionErrorBenchmark, source: PolicySource) -> Iterator[tuple[list[Measured], float]]:
        with _served(fleet, source) as reached:
            yield from measured(test, reached)

    def measured(test: ActionErrorBenchmark, source: PolicySource) -> Iterator[tuple[list[Measured], float]]:
        import ray

        parts = [
            replace(test, entries=test.entries[first : first + ASKED_AT_ONCE])
            for first in range(0, len(test.entries), ASKED_AT_ONCE)
        ]
        waiting = [
            readers[place % number].action_errors.remote(part, source) for place, part in enumerate(parts)
        ]
        while waiting:
            done, waiting = ray.wait(waiting, timeout=MEASURE_S)
            yield ray.get(done[0]) if done else ray.get(waiting[0], timeout=0)

    return measure


class EvalScheduler:
    """Evaluation of every submitted checkpoint on the sweep's suite, and of every arm's last one also on the
    shifted suites; or of every checkpoint on the held-out episodes.

    `submit` may be called by any thread; `inference_cost` by the one that receives the scorer's events.
    """

    def __init__(
        self,
        state: SweepState,
        board: SweepStatus,
        backend: EvalBackend,
        decides: Callable[[int], bool],
        on_event: Callable[[ScoreEvent], None],
        say: Callable[[str], None],
    ) -> None:
        """Start the scorer and the scoring of generated video, each with a thread of its own that calls
        `on_event`. decides: as for `Scorer`.
        """
        self._state, self._board, self._backend = state, board, backend
        self._last_used = float("-inf")
        """`time.monotonic()` of the last episode that needed a policy server."""
        self._charged: dict[CheckpointRef, float] = {}
        """Seconds of inference charged so far, by checkpoint."""
        self.scorer: Scorer | HeldOutScorer
        if test := state.action_error_test:
            assert backend.action_errors
            self.scorer = HeldOutScorer(state.storage, test, backend.action_errors, on_event, decides)
        else:
            self.scorer = Scorer(state.storage, state.contract, backend.pool, on_event, say, decides)
        self.videos = VideoEvalQueue(state, self._judge, on_event, say)

    def submit(self, arm_id: str, step: int, fingerprint: str) -> None:
        """Enqueue the arm's checkpoint of this step, identified by its fingerprint, for scoring, unless
        `suite.every` passes over it, or it was removed without a score on this suite.
        """
        state, status = self._state, self._board.arms[arm_id]
        if step not in state.sweep.scored_steps(status.arm):
            return None
        if step in status.removed and step not in status.scores:
            return None
        last, arm = step == self._board.arms[arm_id].steps, self._board.arms[arm_id].arm
        checkpoint, source = self._checkpoint(arm_id, step, fingerprint)
        if isinstance(self.scorer, HeldOutScorer):
            protocol = state.protocol_of("nominal", arm)
            return self.scorer.submit(
                HeldOutJob(arm_id, step, checkpoint, protocol, source, arm.name, unit=state.sweep.train.unit)
            )
        decided_on = state.sweep.suite.decided_on
        reported = ("nominal", *state.sweep.suite.shifts) if last else ()
        for shift in dict.fromkeys((decided_on, *reported)):
            rule, reference = (
                (state.rule(arm), state.sweep.is_reference(arm)) if shift == decided_on else (None, False)
            )
            job = self._job(arm_id, step, checkpoint, source, shift)
            films = last and shift != "select"
            self.scorer.submit(replace(job, films=films, rule=rule, reference=reference))

    def submit_report(self, arm_id: str, step: int, fingerprint: str) -> None:
        """Enqueue the arm's checkpoint of this step for the episodes that the curve shows, without films."""
        if isinstance(self.scorer, Scorer):
            self.scorer.submit(
                self._job(arm_id, step, *self._checkpoint(arm_id, step, fingerprint), "nominal")
            )

    def _checkpoint(self, arm_id: str, step: int, fingerprint: str) -> tuple[CheckpointRef, PolicySource]:
        checkpoint = CheckpointRef(self._state.checkpoint_uri(arm_id, step), fingerprint)
        line = self._state.sweep.line(self._board.arms[arm_id].arm)
        return checkpoint, self._backend.source(checkpoint, line.imagines)

    def _job(
        self, arm_id: str, step: int, checkpoint: CheckpointRef, source: PolicySource, shift: str
    ) -> EvalJob:
        """Return the job of a checkpoint's episodes under a shift, or of those of `select`."""
        state, arm = self._state, self._board.arms[arm_id].arm
        return EvalJob(
            arm_id=arm_id,
            step=step,
            checkpoint=checkpoint,
            suite=state.sweep.to_suite(shift),
            protocol=state.protocol_of(shift, arm),
            source=source,
            arm=arm.name,
            unit=state.sweep.train.unit,
        )

    def submit_references(self) -> None:
        """Enqueue the references of the suite that have no complete score yet."""
        if isinstance(self.scorer, HeldOutScorer):
            return
        for reference in references_of(self._state):
            if not reference.score(self._state).complete:
                reference.key.keep(self._state.storage)
                self.scorer.submit(reference.job(self._state))

    def submit_video(self, job: EvalJob | HeldOutJob) -> None:
        """Enqueue the generated video of a scored checkpoint, if its policy generates any and it is to be
        scored.
        """
        arm = self._board.arms[job.arm_id]
        line = self._state.sweep.line(arm.arm)
        if self._backend.judge and line.imagines and job.step not in arm.removed:
            self.videos.submit(job, line)

    @property
    def demand(self) -> int:
        """Number of episodes that wait for policy servers or use them, and 1 for a video that does; at least
        1 until LINGER_S after the last one.
        """
        scorer, leases = self.scorer, self._backend.fleet.leases if self._backend.fleet else 0
        episodes = scorer.to_play if isinstance(scorer, Scorer) else scorer.waiting
        if episodes or leases:
            self._last_used = time.monotonic()
        linger = time.monotonic() - self._last_used < LINGER_S
        return max(episodes, int(leases > 0 or linger))

    def place(self, shares: Shares) -> None:
        """Have the policy servers of these shares, as soon as they start, and end others once they are
        unused.
        """
        if (fleet := self._backend.fleet) is None:
            return
        fleet.resize(shares.whole_servers, shares.shared_servers)
        if isinstance(self.scorer, Scorer) and self.scorer.alive:
            self.scorer.use_servers(fleet.current, fleet.retire)
        else:
            fleet.retire(())

    @property
    def workers(self) -> int:
        """Number of simulators placed in the cluster."""
        number: int = self._backend.pool.placed if self._backend.pool else 0
        return number

    def inference_cost(self, job: EvalJob | HeldOutJob) -> Cost:
        """Return the cost of a checkpoint's policy queries since the last call for it: one that is scored on
        several suites has several scores.
        """
        policy = job.checkpoint
        charged = self._charged.get(policy, 0.0)
        # a restarted server counts from zero
        self._charged[policy] = max(charged, self._backend.answered(policy).busy_s)
        return self._inference(self._charged[policy] - charged)

    def _inference(self, seconds: float) -> Cost:
        gpus = self._backend.server_gpus
        return Cost(infer_gpu_s=seconds * gpus, infer_cpu_s=0.0 if gpus else seconds)

    def _judge(self, job: EvalJob | HeldOutJob, test: VideoBenchmark) -> tuple[VideoScore, Cost]:
        """Return the score of a checkpoint's video, and its cost; runs in the thread of `VideoEvalQueue`."""
        assert self._backend.judge
        policy = job.checkpoint
        before = self._backend.answered(policy).imagined_s
        score, cpu_s = self._backend.judge(test, job.source)
        imagined_s = max(0.0, self._backend.answered(policy).imagined_s - before)
        return score, self._inference(imagined_s) + Cost(infer_cpu_s=cpu_s)
