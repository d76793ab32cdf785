"""Division of a cluster's resources among a sweep's processes, as a pure function."""

import math
from dataclasses import dataclass
from typing import Literal

from orchestrator.config.sweep_config import SweepError
from orchestrator.data.clip_stream import DECODE_CPUS, FETCH_CPUS

# Rollout actors per policy server: on a GPU, and on a core, which has a fraction of a GPU's speed.
ACTORS_PER_GPU, ACTORS_PER_CORE = 32, 8
ROLLOUT_CPUS = 0.5
"""Logical CPUs of a simulator on a cluster with enough cores for every claim."""


@dataclass(frozen=True)
class ResourcePlan:
    """Resources of a sweep's processes. On a machine smaller than the sweep, claims shrink and the processes
    share its cores.
    """

    concurrent_arms: int
    """Training runs at once."""
    trainer: dict[str, float]
    """Logical resources of one training worker."""
    rollout_cpus: float
    """Logical CPUs of one simulator."""
    servers: int
    """Number of policy servers."""
    server_gpus: float
    """GPUs of each policy server; may be a fraction."""
    apart: bool = False
    """Whether simulators run only on their dedicated nodes; those without room there wait for more such
    nodes.
    """

    most_cpus: float = 1.0
    """Logical CPUs that a training run can have at most, where no other runs."""

    def external(self, cpus: float, gpus: float) -> dict[str, float]:
        """Return the logical resources of a training run of an external policy that takes so many cores, and
        so many GPUs where there are any.
        """
        claims = {"CPU": math.floor(100 * min(cpus * self.trainer["CPU"], self.most_cpus)) / 100}
        if gpus and (most := self.trainer.get("GPU", 0.0)):
            claims["GPU"] = gpus if most == 1 else min(gpus, most)
        return claims

    @classmethod
    def fit(
        cls,
        cluster: dict[str, float],
        workers: int,
        rollout_actors: int,
        arms: int,
        cpus_apart: float = 0.0,
        decode: Literal["trainer", "cluster"] = "trainer",
    ) -> "ResourcePlan":
        """Fit a sweep to a cluster. Raises SweepError, with the numbers, if one arm's workers can never run
        at once.

        cpus_apart: the part of the cluster's CPUs that is on nodes dedicated to simulators. Where training
        fits on the others, simulators get all of these, at full claims, so that nodes added later find
        simulators waiting for them. decode: where training's video is decoded (`data.decode`).
        """
        cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
        stream_cpus = DECODE_CPUS if decode == "cluster" else FETCH_CPUS
        arm_cpus = workers * (1 + stream_cpus)
        if apart := cpus_apart >= ROLLOUT_CPUS and cpus - cpus_apart >= arm_cpus:
            cpus -= cpus_apart
            arms = min(arms, int(cpus // arm_cpus))
        server_gpus = min(1.0, gpus / 4)
        servers = (
            max(1, min(int(gpus) // 4, -(-rollout_actors // ACTORS_PER_GPU)))
            if gpus
            else -(-rollout_actors // ACTORS_PER_CORE)
        )
        places = gpus - servers * server_gpus if gpus >= 2 else (1 if gpus else cpus)
        if workers > places:
            kind = f"{gpus:g} GPUs, {servers} of them for policy servers" if gpus else f"{cpus:g} CPUs"
            raise SweepError(
                "train.workers", [f"one arm needs {workers} workers at once, the cluster has {kind}"]
            )
        concurrent = max(1, min(arms, int(places // workers)))
        trainers = concurrent * workers
        # Of the CPUs that the trainers' clip streams leave, a rollout actor gets half as much as a trainer.
        claimed = trainers + (0 if apart else rollout_actors * ROLLOUT_CPUS)
        share = min(1.0, (cpus - stream_cpus * trainers) / claimed)
        trainer = {"CPU": math.floor(100 * share) / 100} | (
            {"GPU": 1.0 if gpus >= 2 else 1 - server_gpus} if gpus else {}
        )
        rollout_cpus = ROLLOUT_CPUS if apart else math.floor(100 * ROLLOUT_CPUS * share) / 100
        most_cpus = cpus - (0 if apart else rollout_actors * rollout_cpus)
        return cls(concurrent, trainer, rollout_cpus, servers, server_gpus, apart, most_cpus)
