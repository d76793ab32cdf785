"""A policy behind Ray actors, as rollout processes reach it."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from policy.interface import ActionChunk, Imagination, Observation
from sim_workers.rollout.autoscaler import Answered


@dataclass(frozen=True)
class Served:
    """A policy of Ray actors with `act(key, observation) -> ActionChunk` and `answered(key) -> Answered`; each rollout process asks one of them."""

    servers: tuple[Any, ...]
    key: str
    """Which of the servers' policies."""
    imagines: bool = False
    """The servers have `imagine(key, observation) -> Imagination` too."""

    def measure(self, key: str = "") -> Answered:
        """What all servers together have done so far, for one policy or for all; nothing of one that is starting or cannot."""
        done, _ = ray.wait([server.answered.remote(key) for server in self.servers], num_returns=len(self.servers), timeout=1.0)
        total = Answered()
        for part in done:
            with suppress(RayActorError):
                total += ray.get(part)
        return total

    def connect(self) -> "ServedAsker":
        own = int(ray.get_runtime_context().get_actor_id() or "0", 16)
        return ServedAsker(self.servers[own % len(self.servers)], self)

    def __eq__(self, other: object) -> bool:  # handles compare by identity, and these travelled
        return isinstance(other, Served) and self.key == other.key and [*map(str, self.servers)] == [*map(str, other.servers)]

    def __hash__(self) -> int:
        return hash(self.key)


class ServedAsker:
    def __init__(self, server: Any, source: Served) -> None:
        self._server, self._key = server, source.key
        self.imagine = self._imagine if source.imagines else None

    def act(self, observation: Observation) -> ActionChunk:
        chunk: ActionChunk = ray.get(self._server.act.remote(self._key, observation))
        return chunk

    def _imagine(self, observation: Observation) -> Imagination:
        imagination: Imagination = ray.get(self._server.imagine.remote(self._key, observation))
        return imagination
