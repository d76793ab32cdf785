"""What a pool knows of its episodes and of its workers."""

from dataclasses import dataclass, field
from typing import Any

from sim_workers.rollout.worker import RolloutJob, Scene


@dataclass
class Entry:
    """An episode on the list."""

    job: RolloutJob
    attempts: int = 0
    deaths: int = 0


@dataclass
class Worker:
    actor: Any
    told: Any
    """What is heard of it next: where it is, once it has started, or the stream about the episode it plays. None while it is idle."""
    node: str = ""
    """Id of the node it runs on; empty as long as it waits for a place in the cluster, or starts."""
    scene: Scene | None = None
    """What its simulator is made for; None in a fresh process."""
    entry: Entry | None = None
    server: int | None = None
    """Which of the policy servers it asks."""
    deadline: float = float("inf")
    """When its silence is taken for a hang."""

    @property
    def idle(self) -> bool:
        return bool(self.node) and self.entry is None


@dataclass
class Usage:
    """What the workers did with their time."""

    sim_s: float = 0.0
    policy_s: float = 0.0
    looks: int = 0
    replaced: dict[str, int] = field(default_factory=dict)
    """Workers, by why: died, stuck, failed, worn, leaving (its node), unserved (its policy server was away), other."""

    def replace(self, why: str) -> None:
        self.replaced[why] = self.replaced.get(why, 0) + 1
