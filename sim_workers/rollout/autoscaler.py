"""Number of rollout workers that the policy servers can serve, from measurements of both. Pure functions."""

import math
from dataclasses import dataclass, fields

BUSY = 0.8
"""Utilisation of a server above which workers queue (the rule of vla-evaluation-harness: demand below 0.8 of
the server's capacity).
"""


@dataclass(frozen=True)
class ServerUsage:
    """Work that a policy server has done so far."""

    batches: int = 0
    rows: int = 0
    """Number of observations answered."""
    busy_s: float = 0.0
    """Seconds spent on answers."""
    imagined_s: float = 0.0
    """Seconds spent on the policies' imaginations, not included in `busy_s`."""

    def __add__(self, other: "ServerUsage") -> "ServerUsage":
        return ServerUsage(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )

    def since(self, before: "ServerUsage") -> "ServerUsage | None":
        """Return the work since `before`; None if there is less now: a restarted server counts from zero, an
        unavailable one reports none.
        """
        if before.batches > self.batches:
            return None
        return ServerUsage(
            *(getattr(self, field.name) - getattr(before, field.name) for field in fields(self))
        )


@dataclass(frozen=True)
class PoolLoad:
    """Measurements of one interval of scoring: the cost of an observation to the workers, and the servers'
    utilisation.
    """

    workers: int
    servers: int
    seconds: float
    """Seconds of wall-clock time of the interval."""
    looks: int
    """Number of policy observations."""
    sim_s: float
    """Seconds that a worker simulates and renders from one observation to the next."""
    wait_s: float
    """Seconds that a worker waits for an answer."""
    answered: ServerUsage
    """Work of all servers together."""

    @property
    def answer_s(self) -> float:
        """Seconds that a server takes to compute one batch."""
        return self.answered.busy_s / max(self.answered.batches, 1)

    @property
    def busy(self) -> float:
        """Share of the interval in which a server computed, averaged over the servers."""
        return self.answered.busy_s / (self.seconds * self.servers)

    def wanted(self, limit: int) -> int:
        """Return the number of workers for the next interval, at most `limit`.

        A worker waits at most for two batches, the one in progress and its own. A longer wait is a queue that
        a smaller pool would not have, and that does not raise the throughput (Little's law). Servers with
        spare capacity get more workers.
        """
        if self.wait_s > 2 * self.answer_s and self.busy > BUSY:
            needed = math.ceil(self.looks / self.seconds * (self.sim_s + 2 * self.answer_s) - 1e-9)
            return max(1, min(limit, self.workers, needed))
        if self.busy < BUSY:
            return max(1, min(limit, math.floor(self.workers * BUSY / max(self.busy, 1e-3))))
        return min(limit, self.workers)

    def __str__(self) -> str:
        return (
            f"{self.workers} workers, {self.looks / self.seconds:.1f} observations/s: each costs"
            f" {self.sim_s:.3f} s of simulation and {self.wait_s:.3f} s of waiting for the policy;"
            f" {self.servers} policy"
            f" server{'s' if self.servers > 1 else ''} busy {self.busy:.0%},"
            f" {self.answered.rows / max(self.answered.batches, 1):.1f} observations per batch"
        )
