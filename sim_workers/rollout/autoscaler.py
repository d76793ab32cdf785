"""How many rollout workers a policy server can feed, from what both measured. Pure."""

import math
from dataclasses import dataclass, fields

BUSY = 0.8
"""A server busier than this makes its askers queue (the rule of vla-evaluation-harness: demand below 0.8 of what it can answer)."""


@dataclass(frozen=True)
class Answered:
    """What a policy server has done so far."""

    batches: int = 0
    rows: int = 0
    """Observations answered."""
    busy_s: float = 0.0
    imagined_s: float = 0.0
    """Seconds spent on showing what policies imagine: beside those busy with answers."""

    def __add__(self, other: "Answered") -> "Answered":
        return Answered(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def since(self, before: "Answered") -> "Answered | None":
        """None if it is less than before: a server that began anew has forgotten what it did, and one that is away does not tell."""
        if before.batches > self.batches:
            return None
        return Answered(*(getattr(self, field.name) - getattr(before, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Balance:
    """A stretch of scoring: what a look cost the workers, and how busy the servers were."""

    workers: int
    servers: int
    seconds: float
    """Wall time of the stretch."""
    looks: int
    sim_s: float
    """Seconds that a worker simulates and renders from one look to the next."""
    wait_s: float
    """Seconds that it waits for the answer."""
    answered: Answered
    """By all servers together."""

    @property
    def answer_s(self) -> float:
        """Seconds that a server computes one batch."""
        return self.answered.busy_s / max(self.answered.batches, 1)

    @property
    def busy(self) -> float:
        """Share of the time in which a server computed."""
        return self.answered.busy_s / (self.seconds * self.servers)

    def wanted(self, limit: int) -> int:
        """Workers to have from now on, at most `limit`.

        Whoever asks waits for the batch in progress and then for its own: for two at most. Longer waits are a queue that a smaller pool would
        not have, and its answers come no faster for it (Little's law). Servers with time to spare get more workers.
        """
        if self.wait_s > 2 * self.answer_s and self.busy > BUSY:
            needed = math.ceil(self.looks / self.seconds * (self.sim_s + 2 * self.answer_s) - 1e-9)
            return max(1, min(limit, self.workers, needed))
        if self.busy < BUSY:
            return max(1, min(limit, math.floor(self.workers * BUSY / max(self.busy, 1e-3))))
        return min(limit, self.workers)

    def __str__(self) -> str:
        return (
            f"{self.workers} workers, {self.looks / self.seconds:.1f} looks/s: each costs {self.sim_s:.3f} s of simulation and {self.wait_s:.3f} s "
            f"of waiting for the policy; {self.servers} policy server{'s' if self.servers > 1 else ''} busy {self.busy:.0%}, "
            f"{self.answered.rows / max(self.answered.batches, 1):.1f} looks per answer"
        )
