"""Policy servers that load no checkpoint."""

import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.data.clips import ClipBatch
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.testing.outcomes import stand_still
from policy.config import ClipShape
from policy.interface import ActionChunk, Imagination, Observation
from sim_workers.rollout.autoscaler import ServerUsage

Act = Callable[[Observation], ActionChunk]


class FakePolicyServer:
    """The calls of `orchestrator.evaluation.policy_server.PolicyServer`, answered by functions; a Ray actor,
    or an object in the caller's process.

    It reports no computing time, so a pool that queries it keeps its number of workers.
    """

    def __init__(self, policy: Act = stand_still, others: Mapping[Hashable, Act] | None = None) -> None:
        """Create a server.

        Args:
            policy: policy of every checkpoint that `others` does not name.
            others: policies by checkpoint.
        """
        self._policy, self._others = policy, others or {}

    def act(self, checkpoint: Hashable, observation: Observation) -> ActionChunk:
        """Return the chunk that the checkpoint's policy gives for one observation."""
        return self._others.get(checkpoint, self._policy)(observation)

    def imagine(self, checkpoint: Hashable, observation: Observation) -> Imagination | None:
        """Return None: fake policies predict no video."""
        return None

    def loss(self, checkpoint: Hashable, clips: ClipBatch, seed: int) -> float | None:
        """Return None: fake policies are not trained."""
        return None

    def clip(self, checkpoint: Hashable) -> ClipShape | None:
        """Return None: fake policies have no loss."""
        return None

    def load(self, checkpoint: Hashable) -> None:
        """Accept any checkpoint."""

    def answered(self, checkpoint: Hashable | None = None) -> ServerUsage:
        """Return usage of zero."""
        return ServerUsage()

    def arithmetic(self) -> str:
        """Return an empty text: not recorded."""
        return ""

    def work(self) -> dict[CheckpointRef | None, ServerUsage]:
        """Return no work."""
        return {}

    def node_id(self) -> str:
        """Return the id of the Ray node on which this actor runs."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def process_id(self) -> int:
        """Return the id of the actor's process."""
        return os.getpid()


class PolicyServerWithoutCheckpoints(PolicyServer):
    """The real policy server with policies that all stand still; queue, batches and metrics are real."""

    def _loaded(self, checkpoint: Hashable) -> Any:
        return _Still()


class _Still:
    imagines = False

    def act(self, observations: list[Observation]) -> list[ActionChunk]:
        return [stand_still(observation) for observation in observations]
