"""Whom a rollout process asks for actions."""

from typing import Protocol

from policy.interface import ActionChunk, Observation


class Asker(Protocol):
    """A policy within reach of one rollout process."""

    def act(self, observation: Observation) -> ActionChunk: ...


class PolicySource(Protocol):
    """How a rollout process comes to its policy; small and picklable: it travels with every episode."""

    def connect(self) -> Asker: ...
