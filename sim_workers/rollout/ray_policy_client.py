"""Client of a policy that Ray actors serve, for rollout processes."""

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from policy.interface import PRESENT_ONLY, ActionChunk, Imagination, Observation, PolicyNeeds
from sim_workers.rollout.autoscaler import ServerUsage

ARITHMETIC_S = 5.0
"""Seconds after which the question for a server's arithmetic times out."""


@dataclass(frozen=True)
class RayServedPolicy:
    """Policy served by Ray actors with `act(key, observation) -> ActionChunk` and `answered(key) ->
    ServerUsage`, the sum over all policies if the key is None.

    Each rollout process queries one of them, for whole episodes, so that a policy with memory may keep its
    sessions in the server's process.
    """

    servers: tuple[Any, ...]
    key: Hashable
    """Identifier of the policy on the servers, such as the reference to a checkpoint."""
    imagines: bool = False
    """Whether the servers also have `imagine(key, observation) -> Imagination`."""
    needs: PolicyNeeds = PRESENT_ONLY
    """What the policy needs besides the present observation."""

    def measure(self, key: Hashable | None = None) -> ServerUsage:
        """Return the sum of all servers' work so far, for one policy; None: for all.

        A server that is starting, dead, or silent for 1 s adds nothing.
        """
        done, _ = ray.wait(
            [server.answered.remote(key) for server in self.servers],
            num_returns=len(self.servers),
            timeout=1.0,
        )
        total = ServerUsage()
        for part in done:
            with suppress(RayActorError):
                total += ray.get(part)
        return total

    def connect(self) -> "RayPolicyClient":
        """Return a client of one server, chosen by the id of the calling actor."""
        own = int(ray.get_runtime_context().get_actor_id() or "0", 16)
        return RayPolicyClient(self.servers[own % len(self.servers)], self)

    def __eq__(self, other: object) -> bool:  # handles compare by identity, which pickling does not keep
        return (
            isinstance(other, RayServedPolicy)
            and self.key == other.key
            and self.needs == other.needs
            and [*map(str, self.servers)] == [*map(str, other.servers)]
        )

    def __hash__(self) -> int:
        return hash(self.key)


class RayPolicyClient:
    """Client of one policy on one server."""

    def __init__(self, server: Any, source: RayServedPolicy) -> None:
        self._server, self._key, self._arithmetic = server, source.key, ""
        self.imagine = self._imagine if source.imagines else None
        self.memory, self.observation_steps = source.needs.memory, source.needs.observation_steps

    @property
    def arithmetic(self) -> str:
        """Arithmetic of the server's process in words, asked for once; empty if it does not say."""
        if not self._arithmetic and hasattr(self._server, "arithmetic"):
            with suppress(RayError):  # a lost server must not fail an episode that has ended
                self._arithmetic = ray.get(self._server.arithmetic.remote(), timeout=ARITHMETIC_S)
        return self._arithmetic

    def act(self, observation: Observation) -> ActionChunk:
        """Return the server's chunk for one observation. Raises Ray's errors if the server is gone, and
        LostSessionError if it was restarted in the middle of the episode of a policy with memory.
        """
        chunk: ActionChunk = ray.get(self._server.act.remote(self._key, observation))
        return chunk

    def loss(self, clips: Any, seed: int) -> float | None:
        """Return the loss of the policy's actions on clips; None for a policy without one. clips: as the
        server's `loss` takes them.
        """
        loss: float | None = ray.get(self._server.loss.remote(self._key, clips, seed))
        return loss

    def clip(self) -> Any:
        """Return the shape of the clips of `loss`; None for a policy without one."""
        return ray.get(self._server.clip.remote(self._key))

    def _imagine(self, observation: Observation) -> Imagination:
        imagination: Imagination = ray.get(self._server.imagine.remote(self._key, observation))
        return imagination
