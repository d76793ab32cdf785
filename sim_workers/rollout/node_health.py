"""Choice of the Ray nodes that may run workers, and of the policy server that a worker queries."""

import math
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

AWAY_S = 30.0
"""Seconds without an answer after which a policy server counts as unavailable: it died, or has not been
placed on a node.
"""


def node_of(actor: Any) -> Any:
    """Return a reference to the id of the actor's node; ready once the actor runs, an error if it
    never will.
    """
    return actor.__ray_call__.remote(_node)


def _node(_: object) -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node


def leaving() -> frozenset[str]:
    """Return the ids of the draining nodes, e.g. before a preemption, on which Ray places nothing more. The
    query is Ray Train's own.

    Empty on a Ray without that function: a departing node is then noticed only when it is lost.
    """
    try:
        draining = ray._private.state.state.get_draining_nodes
    except AttributeError:
        return frozenset()
    return frozenset(draining())


REFUSALS = 2
"""Refusals of workers after which a node without a fit worker gets no more workers while another node has a
fit one.
"""


class NodeHealth:
    """Health of the nodes that a pool's workers run on, by node id."""

    def __init__(self, labels: dict[str, str]) -> None:
        """labels: Ray labels of the nodes that may run workers."""
        self._labels = labels
        self._leaving: frozenset[str] = frozenset()
        self._refusals = Counter[str]()
        self._fit: set[str] = set()

    def refresh(self) -> None:
        """Query the draining and the dead nodes; a dead node no longer counts as fit, so no other node is
        excluded because of it.
        """
        self._leaving = leaving()
        self._fit &= {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def refused(self, node: str) -> None:
        """Record that a worker on the node cannot simulate, or differs from the reference in pictures or
        physics.
        """
        self._refusals[node] += 1

    def fits(self, node: str) -> None:
        """Record that a worker on the node matches the reference."""
        self._fit.add(node)

    @property
    def unfit(self) -> set[str]:
        """Ids of the nodes to exclude. Empty while no node is fit: a fault that all nodes share must surface
        as errors.
        """
        return (
            {node for node, times in self._refusals.items() if times >= REFUSALS} - self._fit
            if self._fit
            else set()
        )

    def goes(self, node: str) -> bool:
        """Return whether no further episode may start on the node, because it drains or is unfit."""
        return node in self._leaving or node in self.unfit

    def selector(self) -> dict[str, str] | None:
        """Return the label selector of the nodes on which a new worker may start; Ray itself excludes the
        draining ones.
        """
        unfit = {"ray.io/node-id": f"!in({','.join(sorted(self.unfit))})"} if self.unfit else {}
        return self._labels | unfit or None


def nearest(
    node: str,
    own: int | None,
    servers: Sequence[str],
    away: Container[int | None],
    asked: Sequence[int],
    most: int,
) -> int:
    """Return the index of the server that a worker on `node` should query; `own` is the one it queried last.

    servers: the node of each server. asked: the number of other workers that query each. Preferred in this
    order: an available server, one with fewer than `most` workers, one on the same node, the worker's last
    one, the one with the fewest workers. Pure.
    """
    return min(
        range(len(servers)),
        key=lambda i: (i in away, asked[i] >= most, servers[i] != node, i != own, asked[i]),
    )


class ServerLocations:
    """Nodes of a pool's policy servers, queried repeatedly, because a server that dies restarts on
    any node.
    """

    def __init__(self, servers: tuple[Any, ...]) -> None:
        self.servers = servers
        self.nodes = [""] * len(servers)
        """Last known node id of each server; empty for a server that has not started or is unavailable."""
        self.away: frozenset[int | None] = frozenset()
        """Indices of the servers that do not answer while others do."""
        self._asked = [node_of(server) for server in servers]
        self._since = [time.monotonic()] * len(servers)

    def followed_by(self, servers: tuple[Any, ...]) -> "ServerLocations":
        """Return the locations of other servers, with what is known of those that are among these."""
        told = ServerLocations(servers)
        for i, server in enumerate(servers):
            if server in self.servers:
                own = self.servers.index(server)
                told.nodes[i], told._asked[i] = self.nodes[own], self._asked[own]
                told._since[i] = self._since[own]
        return told

    def choose(self, node: str, own: int | None, others: Mapping[int | None, int], workers: int) -> int:
        """Return the index of the server that one of `workers` workers should query. others: number of other
        workers per server.
        """
        asked = [others.get(i, 0) for i in range(len(self.servers))]
        return nearest(node, own, self.nodes, self.away, asked, math.ceil(workers / len(asked)))

    def refresh(self) -> None:
        """Collect the servers' answers without waiting, and query each answering server again."""
        now = time.monotonic()
        said, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
        for i, answer in enumerate(self._asked):
            if answer in said:
                self._asked[i] = node_of(self.servers[i])
                try:
                    self.nodes[i], self._since[i] = ray.get(answer), now
                except RayError:  # the actor is dead and will not be restarted
                    continue
        for i, since in enumerate(self._since):
            if now - since > AWAY_S:
                self.nodes[i] = ""
        silent = frozenset(i for i, since in enumerate(self._since) if now - since > AWAY_S)
        self.away = silent if len(silent) < len(self.servers) else frozenset()
