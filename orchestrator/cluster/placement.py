"""Division of a cluster's resources among a sweep's processes, as pure functions.

`ResourcePlan.fit` fixes once what each process claims. `share_out` decides who gets the GPUs now: it is asked
every few seconds, with the nodes and the queues of that moment. docs/cluster.md has a table of both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.config.sweep_config import SweepError
from orchestrator.data.clip_stream import DECODE_CPUS, FETCH_CPUS

# Rollout actors per policy server: on a GPU, and on a core, which has a fraction of a GPU's speed.
ACTORS_PER_GPU, ACTORS_PER_CORE = 32, 8
SERVERS, ROLLOUTS = "servers", "rollouts"
"""Roles of nodes that are set apart."""
ROLLOUT_CPUS = 0.5
"""Logical CPUs of a simulator on a cluster with enough cores for every claim."""
SHARED_GPU = 0.25
"""Part of a GPU that a policy server claims beside a training worker, which claims the rest."""
BACKLOG = 2
"""Scores waiting per policy server that shares the GPUs of training; more waiting scores, more servers."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    cpus: float
    gpus: int
    role: str = ""
    """What the node is set apart for (`ray_runtime.ROLE`); empty: anything."""


@dataclass(frozen=True)
class Demand:
    """What a sweep could use at a moment."""

    runs: int
    """Training runs in progress, and those that could start if there were room."""
    workers: int
    """Workers of a training run, one GPU each."""
    episodes: int
    """Episodes that are waiting to be scored, or being played."""
    simulators: int
    """Simulators, each of which queries a policy for one episode at a time."""
    score: int
    """Episodes of a score."""


@dataclass(frozen=True)
class Shares:
    """Who gets a cluster's GPUs at a moment."""

    runs: int
    """Training runs at once."""
    whole_servers: int
    """Policy servers with a GPU each."""
    shared_servers: int
    """Policy servers that claim SHARED_GPU of a training worker's GPU."""

    @property
    def servers(self) -> int:
        """Number of policy servers."""
        return self.whole_servers + self.shared_servers


def share_out(nodes: Sequence[Node], demand: Demand, sweeps: int = 1) -> Shares:
    """Divide the GPUs of a cluster: training first, then policy servers for the episodes that wait.

    A GPU that no training run takes is a policy server's, one per busy simulator at most. Where training
    takes all of them, servers share its GPUs: one per ACTORS_PER_GPU busy simulators, or per BACKLOG waiting
    scores if these are more. Servers on nodes set apart for them share no GPU. Without waiting episodes there
    is no server. sweeps: number of sweeps on the cluster, each of which gets an equal part, and one run and
    one server at least.
    """
    own = sum(node.gpus for node in nodes if node.role != SERVERS)
    apart = sum(node.gpus for node in nodes if node.role == SERVERS)
    room = own // sweeps // demand.workers
    runs = min(demand.runs, max(1, room) if own >= demand.workers else 0)
    busy = min(demand.simulators, demand.episodes)
    if not busy:
        return Shares(runs, 0, 0)
    if apart:
        return Shares(runs, min(max(1, apart // sweeps), busy), 0)
    trained = runs * demand.workers
    whole = min(max(0, own // sweeps - trained), busy)
    if not trained:
        return Shares(runs, max(whole, min(own, 1)), 0)
    needed = max(-(-busy // ACTORS_PER_GPU), -(-demand.episodes // (BACKLOG * demand.score)))
    return Shares(runs, whole, max(0, min(needed - whole, trained, busy)))


def training_bundles(demand: Demand, trainer: dict[str, float], arms: int) -> list[dict[str, float]]:
    """Return the claims of the training workers that a sweep of `arms` arms could use at once, for an
    autoscaler. trainer: claim of one (`ResourcePlan.trainer`).
    """
    return [trainer] * (min(demand.runs, arms) * demand.workers)


def servers_alone(gpus: float, rollout_actors: int) -> tuple[int, float]:
    """Return the number of policy servers where nothing trains, and the GPUs of each: one per GPU, or one per
    ACTORS_PER_CORE simulators on CPUs.
    """
    if gpus:
        return min(int(gpus), rollout_actors), 1.0
    return -(-rollout_actors // ACTORS_PER_CORE), 0.0


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
    """Number of policy servers: on CPUs from the start to the end; on GPUs the most there can be, since they
    come and go (`share_out`).
    """
    server_gpus: float
    """GPUs of a policy server that shares none; 0 on CPUs."""
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
            claims["GPU"] = gpus if gpus > 1 else min(gpus, most)
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
        gpus_apart: float = 0.0,
    ) -> "ResourcePlan":
        """Fit a sweep to a cluster. Raises SweepError, with the numbers, if one arm's workers can never run
        at once.

        cpus_apart: the part of the cluster's CPUs that is on nodes dedicated to simulators. Where training
        fits on the others, simulators get all of these, at full claims, so that nodes added later find
        simulators waiting for them. decode: where training's video is decoded (`data.decode`). gpus_apart:
        the part of the GPUs that is on nodes dedicated to policy servers; without any, a training worker
        leaves SHARED_GPU of its GPU to a server.
        """
        cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
        stream_cpus = DECODE_CPUS if decode == "cluster" else FETCH_CPUS
        arm_cpus = workers * (1 + stream_cpus)
        if apart := cpus_apart >= ROLLOUT_CPUS and cpus - cpus_apart >= arm_cpus:
            cpus -= cpus_apart
            arms = min(arms, int(cpus // arm_cpus))
        servers, server_gpus = servers_alone(gpus_apart or gpus, rollout_actors)
        places = gpus - gpus_apart if gpus else cpus
        if workers > places:
            kind = f"{places:g} GPUs for training" if gpus else f"{cpus:g} CPUs"
            raise SweepError(
                "train.workers", [f"one arm needs {workers} workers at once, the cluster has {kind}"]
            )
        concurrent = max(1, min(arms, int(places // workers)))
        trainers = concurrent * workers
        # Of the CPUs that the trainers' clip streams leave, a rollout actor gets half as much as a trainer.
        claimed = trainers + (0 if apart else rollout_actors * ROLLOUT_CPUS)
        share = min(1.0, (cpus - stream_cpus * trainers) / claimed)
        trainer = {"CPU": math.floor(100 * share) / 100} | (
            {"GPU": 1.0 if gpus_apart else 1 - SHARED_GPU} if gpus else {}
        )
        rollout_cpus = ROLLOUT_CPUS if apart else math.floor(100 * ROLLOUT_CPUS * share) / 100
        most_cpus = cpus - (0 if apart else rollout_actors * rollout_cpus)
        return cls(concurrent, trainer, rollout_cpus, servers, server_gpus, apart, most_cpus)
