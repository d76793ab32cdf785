"""Fake simulators and policies of a sweep."""

from dataclasses import dataclass

from orchestrator.cluster.placement import Placement
from orchestrator.evaluation.outcome_ledger import Portraits
from orchestrator.sweep.eval_scheduler import Players
from orchestrator.sweep.state import SweepState
from orchestrator.testing.outcomes import FakePolicy, SuccessRate, simulated_outcome, success_rate
from orchestrator.testing.rollout_pool import FakeRolloutPool
from sim_workers.rollout.autoscaler import Answered
from sim_workers.rollout.policy_clients import PolicySource


@dataclass(frozen=True)
class FakePlayers:
    """The `players` argument of `SweepRun`: episodes take no time, and every arm's success rate is known."""

    model: SuccessRate = success_rate

    def __call__(self, state: SweepState, placement: Placement, portraits: Portraits) -> Players:
        def source(uri: str, imagines: bool) -> PolicySource:
            # evaluated per call: a search proposes arms while the sweep runs
            arms = tuple(state.arms().items())
            return FakePolicy(uri, arms, state.sweep.train.steps, self.model)

        return Players(FakeRolloutPool(simulated_outcome), source, lambda uri: Answered())
