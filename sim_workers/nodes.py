"""Which nodes of the Ray cluster are about to go, and which policy server a worker should ask."""

import math
import time
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
    """Ids of the nodes that were given notice, e.g. of preemption: Ray places nothing there any more. Asked as Ray Train's own watcher asks."""
    return frozenset(ray._private.state.state.get_draining_nodes())


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
        """Of each; empty of one that is starting."""
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
        silent = frozenset(i for i, since in enumerate(self._since) if now - since > AWAY_S)
        self.away = silent if len(silent) < len(self.servers) else frozenset()
