"""Fake simulators and policies of a sweep."""

from dataclasses import dataclass

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cluster.placement import ResourcePlan
from orchestrator.evaluation.outcome_ledger import RenderReferences
from orchestrator.sweep.eval_scheduler import EvalBackend
from orchestrator.sweep.state import SweepState
from orchestrator.testing.outcomes import (
    FakePolicy,
    SuccessRate,
    simulated_action_errors,
    simulated_outcome,
    success_rate,
)
from orchestrator.testing.rollout_pool import FakeRolloutPool
from sim_workers.rollout.autoscaler import ServerUsage
from sim_workers.rollout.policy_clients import PolicySource
from sim_workers.rollout.pool_state import OnRetry


@dataclass(frozen=True)
class FakeEvalBackend:
    """The `players` argument of `SweepRun`: episodes take no time, and every arm's success rate is known."""

    model: SuccessRate = success_rate

    def __call__(
        self,
        state: SweepState,
        placement: ResourcePlan,
        portraits: RenderReferences,
        on_retry: OnRetry = lambda kind, job, why: None,
    ) -> EvalBackend:
        """Return a backend without simulators or policy servers, whose outcomes are drawn at random."""

        def source(checkpoint: CheckpointRef, imagines: bool) -> PolicySource:
            # evaluated per call: a search proposes arms while the sweep runs
            arms = tuple(state.arms().items())
            return FakePolicy(checkpoint, arms, state.sweep.train.end, self.model)

        return EvalBackend(
            FakeRolloutPool(simulated_outcome, on_retry=on_retry),
            source,
            lambda checkpoint: ServerUsage(),
            action_errors=simulated_action_errors,
        )
