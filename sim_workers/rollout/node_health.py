"""Which nodes of the Ray cluster may have workers, and which policy server a worker should ask."""

import math
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

AWAY_S = 30.0
"""A policy server that does not say for so long where it is has died and waits for a place, or has not found one yet."""


def node_of(actor: Any) -> Any:
    """A reference to the id of the node that the actor runs on; ready once it runs, an error if it never will."""
    return actor.__ray_call__.remote(_node)


def _node(_: object) -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node


def leaving() -> frozenset[str]:
    """Ids of the nodes that were given notice, e.g. of preemption: Ray places nothing there any more. Asked as Ray Train's own watcher asks.

    None on a Ray that has no such function: then a node that goes is noticed once it is gone.
    """
    try:
        draining = ray._private.state.state.get_draining_nodes
    except AttributeError:
        return frozenset()
    return frozenset(draining())


REFUSALS = 2
"""A node on which so many workers had to refuse, and none was fit, gets no more of them while others elsewhere are."""


class Nodes:
    """What a pool has learnt of the nodes that its workers run on, by their ids."""

    def __init__(self, labels: dict[str, str]) -> None:
        """labels: of the nodes that may have workers."""
        self._labels = labels
        self._leaving: frozenset[str] = frozenset()
        self._refusals = Counter[str]()
        self._fit: set[str] = set()

    def look(self) -> None:
        """Which are about to go, and which are gone: those say nothing of the others any more."""
        self._leaving = leaving()
        self._fit &= {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def refused(self, node: str) -> None:
        """A worker there cannot simulate, or does not draw or move as the reference does."""
        self._refusals[node] += 1

    def fits(self, node: str) -> None:
        """A worker there simulates as the reference does."""
        self._fit.add(node)

    @property
    def unfit(self) -> set[str]:
        """None where none is fit: if all are alike, what is wrong must come to light as errors."""
        return {node for node, times in self._refusals.items() if times >= REFUSALS} - self._fit if self._fit else set()

    def goes(self, node: str) -> bool:
        """Whether no further episode may begin there."""
        return node in self._leaving or node in self.unfit

    def selector(self) -> dict[str, str] | None:
        """Ray labels of the nodes on which a new worker may start; Ray itself leaves out those that are about to go."""
        unfit = {"ray.io/node-id": f"!in({','.join(sorted(self.unfit))})"} if self.unfit else {}
        return self._labels | unfit or None


def nearest(node: str, own: int | None, servers: Sequence[str], away: Container[int | None], asked: Sequence[int], most: int) -> int:
    """Index of the server that a worker on `node` should ask, `own` being the one it asked last.

    servers: the node of each. asked: how many other workers ask each. One that is not away, then one with fewer than `most` askers, then one on
    the same node, then the one it knows, then the one with fewest askers. Pure.
    """
    return min(range(len(servers)), key=lambda i: (i in away, asked[i] >= most, servers[i] != node, i != own, asked[i]))


class Whereabouts:
    """Where a pool's policy servers are, asked again and again: one that dies starts anew on any node."""

    def __init__(self, servers: tuple[Any, ...]) -> None:
        self.servers = servers
        self.nodes = [""] * len(servers)
        """Of each, where it was last; empty of one that has not started or is away."""
        self.away: frozenset[int | None] = frozenset()
        """Those that do not answer while others do."""
        self._asked = [node_of(server) for server in servers]
        self._since = [time.monotonic()] * len(servers)

    def choose(self, node: str, own: int | None, others: Mapping[int | None, int], workers: int) -> int:
        """Index of the server that one of so many workers should ask. others: by server, how many other workers ask it."""
        asked = [others.get(i, 0) for i in range(len(self.servers))]
        return nearest(node, own, self.nodes, self.away, asked, math.ceil(workers / len(asked)))

    def look(self) -> None:
        """Hear what they say, and ask again."""
        now = time.monotonic()
        said, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
        for i, answer in enumerate(self._asked):
            if answer in said:
                self._asked[i] = node_of(self.servers[i])
                try:
                    self.nodes[i], self._since[i] = ray.get(answer), now
                except RayError:  # it is gone for good
                    continue
        for i, since in enumerate(self._since):
            if now - since > AWAY_S:
                self.nodes[i] = ""
        silent = frozenset(i for i, since in enumerate(self._since) if now - since > AWAY_S)
        self.away = silent if len(silent) < len(self.servers) else frozenset()
