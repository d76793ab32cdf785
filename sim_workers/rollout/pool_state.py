"""A pool's records of its episodes and workers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sim_workers.rollout.worker import RolloutJob, Scene

OnRetry = Callable[[str, RolloutJob, str], None]
"""Called by the thread that owns a pool with (kind, job, cause): for a job that is retried (kind `episode`),
and for a job whose process was replaced (kind `worker`).
"""


@dataclass
class QueuedEpisode:
    """Queued or running episode."""

    job: RolloutJob
    attempts: int = 0
    """Number of failed attempts, without deaths."""
    deaths: int = 0
    """Number of attempts that ended with the worker's death or the loss of its policy server."""


@dataclass
class Worker:
    """Worker process of a pool, as its driver sees it."""

    actor: Any
    told: Any
    """Reference to the node id until the worker has started, then the stream of its episode's messages; None
    while it is idle.
    """
    node: str = ""
    """Id of the worker's node; empty while the worker waits for a node or starts."""
    slot: int = 0
    """Its number among the workers of its node, from 0; its GPU for rendering goes by it."""
    scene: Scene | None = None
    """Scene of its simulator; None in a fresh process."""
    entry: QueuedEpisode | None = None
    began: float = 0.0
    """`time.monotonic()` of the last assignment of an episode."""
    fresh: bool = True
    """Whether its process had no simulator before that episode."""
    server: int | None = None
    """Index of the policy server that it queries; None before the first query, or if the server is none of
    the current ones.
    """
    asks: Any = None
    """Handle of that server."""
    deadline: float = float("inf")
    """`time.monotonic()` after which silence counts as a hang; infinite while it is idle."""

    @property
    def idle(self) -> bool:
        """Whether the worker has started and plays no episode."""
        return bool(self.node) and self.entry is None


@dataclass
class Usage:
    """Totals over all episodes of a pool."""

    sim_s: float = 0.0
    policy_s: float = 0.0
    looks: int = 0
    """Number of policy observations."""
    replaced: dict[str, int] = field(default_factory=dict)
    """Replaced workers by cause: died, stuck, failed, worn, leaving (its node drains), unserved (its policy
    server is unavailable), other.
    """

    def replace(self, why: str) -> None:
        """Count one replaced worker."""
        self.replaced[why] = self.replaced.get(why, 0) + 1
