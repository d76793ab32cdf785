"""Outcomes of episodes, and policies whose success rate is a known function of their training data."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.config.arms import Arm
from orchestrator.data.action_error import ActionError
from orchestrator.evaluation.action_error_score import ActionErrorBenchmark, Measured
from policy.interface import ActionChunk, Observation, derived_seed
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import PolicyClient, PolicySource
from sim_workers.rollout.reference_policies import ReferencePolicy
from sim_workers.rollout.suite import EpisodeSpec
from sim_workers.rollout.worker import RolloutJob

REFERENCE_RATES = {"random": 0.0, "replay": 0.3, "expert": 1.0}
"""Success rates of the references of a suite, by name."""
HALF_WAY = 60
"""Number of demos at which half of the highest success rate is reached."""

SuccessRate = Callable[[float, float, int, int], float]
"""(demo count, action-free ratio, step, last step) -> success rate in [0, 1]."""


def success_rate(demo_count: float, action_free_ratio: float, step: int, steps: int) -> float:
    """Return the success rate of a fake policy: increasing in every argument but the last, saturating below
    0.95.
    """
    worth = demo_count * (1 + 0.3 * math.log1p(action_free_ratio))
    return 0.95 * worth / (worth + HALF_WAY) * (1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4))


def stand_still(observation: Observation) -> ActionChunk:
    """Return a chunk of four zero actions of seven dimensions, all to be executed."""
    return ActionChunk(np.zeros((4, 7), np.float32), 4)


@dataclass(frozen=True)
class FakePolicy:
    """Policy source of one checkpoint of a sweep, without weights: it has a success rate and stands still."""

    checkpoint: CheckpointRef
    """Checkpoint whose URI ends in `<arm id>/step_<step>`; its fingerprint has no effect."""
    arms: tuple[tuple[str, Arm], ...]
    """Pairs (arm id, arm) of all arms of the sweep."""
    steps: int
    """Number of optimiser steps of a whole training run."""
    model: SuccessRate = success_rate

    def rate(self) -> float:
        """Return the success rate; raise KeyError if the URI names none of the arms."""
        *_, arm_id, step = self.checkpoint.uri.split("/")
        arm = dict(self.arms)[arm_id]
        return self.model(arm.demo_count, arm.action_free_ratio, int(step.removeprefix("step_")), self.steps)

    def connect(self) -> PolicyClient:
        """Return a policy that stands still."""
        return _Still()


class _Still:
    def act(self, observation: Observation) -> ActionChunk:
        return stand_still(observation)


def make_outcome(spec: EpisodeSpec, won: bool = True, steps: int = 40) -> Outcome:
    """Return a success or a failure of `steps` control steps; a success is first detected ten steps before
    the end.
    """
    return Outcome(
        spec,
        "success" if won else "failure",
        steps,
        steps // 8,
        0.4,
        0.1,
        max(0, steps - 10) if won else None,
        won,
    )


def make_error(spec: EpisodeSpec, cause: str = "the driver is gone") -> Outcome:
    """Return the outcome of an episode that ended with an infrastructure error."""
    return Outcome(spec, "error", 0, 0, 0.0, 0.0, message=cause)


def simulated_action_errors(
    test: ActionErrorBenchmark, source: PolicySource
) -> Iterator[tuple[list[Measured], float]]:
    """Yield action errors of a `FakePolicy` on held-out episodes, four at a time, without reading them: 1.2
    minus its success rate, more or less by a fifth that depends on the episode alone.
    """
    assert isinstance(source, FakePolicy)
    off, width = 1.2 - source.rate(), len(test.contract.action)
    for first in range(0, len(test.entries), 4):
        part = list[Measured]()
        for entry in test.entries[first : first + 4]:
            luck = np.random.default_rng(derived_seed(int(entry.sha256[:12], 16))).uniform(0.8, 1.2)
            error = ActionError(
                entry.episode_id,
                entry.task,
                steps=entry.length,
                looks=entry.length // 4,
                error=float(off * luck),
                dimensions=(float(off * luck),) * width,
                constant=1.2,
            )
            part.append(Measured(entry.episode_id, error))
        yield part, 0.01


def simulated_outcome(job: RolloutJob) -> Outcome:
    """Draw the outcome of a `FakePolicy` or a reference, a success with the probability of its success rate.

    The draw depends on the episode alone: of two policies, the better one succeeds on every episode on which
    the worse one does.
    """
    assert isinstance(job.source, FakePolicy | ReferencePolicy)
    rate = job.source.rate() if isinstance(job.source, FakePolicy) else REFERENCE_RATES[job.source.name]
    luck = np.random.default_rng(derived_seed(job.spec.noise_seed, job.spec.scene_seed)).random()
    won = bool(luck < rate)
    return make_outcome(job.spec, won, steps=40 if won else job.rules.horizon)
