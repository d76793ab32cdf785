"""Policy sources of a rollout process: a function, a named function, or a URL."""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from policy.foreign import foreign_policy
from policy.foreign.layout import Layout
from policy.http_policy import RemotePolicies
from policy.interface import ActionChunk, Contract, Observation, Policy, needs_of
from sim_workers.arithmetic import Arithmetic


class PolicyClient(Protocol):
    """Policy client of one rollout process. It may also have `imagine(observation) -> Imagination`, the
    `memory` and `observation_steps` of a policy (`policy.interface.PolicyNeeds`), and `arithmetic`: in words
    that of the process which computes the actions, if it is another one.
    """

    def act(self, observation: Observation) -> ActionChunk:
        """Return the chunk for one observation. Called in a thread of the rollout process. After a
        LostSessionError the episode is played again; any other error counts as a policy that did not answer.
        """
        ...


class PolicySource(Protocol):
    """Description from which a rollout process connects to its policy; small and picklable, because every job
    carries it.

    Equal sources lead to the same policy, so that a process connects once and not for every episode.
    """

    def connect(self) -> PolicyClient:
        """Return a client. Called in the rollout process before its first episode with this source."""
        ...


@dataclass(frozen=True)
class UnbatchedClient:
    """Client that queries a policy with one observation at a time."""

    policy: Policy
    arithmetic: str = field(default_factory=lambda: str(Arithmetic.here()))
    """Arithmetic of the process that computes the actions in words; empty if it is unknown."""

    @property
    def memory(self) -> bool:
        """Whether the policy has memory."""
        return needs_of(self.policy).memory

    @property
    def observation_steps(self) -> int:
        """Observations of consecutive control steps that the policy takes at once."""
        return needs_of(self.policy).observation_steps

    def act(self, observation: Observation) -> ActionChunk:
        """Return the policy's chunk for one observation."""
        return self.policy.act([observation])[0]


@dataclass(frozen=True, eq=False)
class InProcessPolicy:
    """Policy that `make()` builds in every rollout process; it shares the simulator's one core.

    make: picklable, so a module's function, or functools.partial of one. Sources are equal if these are.
    """

    make: Callable[[], Policy]

    @property
    def name(self) -> str:
        """MODULE:FUNCTION, with the partial's arguments in parentheses."""
        function, arguments, keywords = _parts(self.make)
        told = [*map(str, arguments), *(f"{key}={value}" for key, value in keywords.items())]
        return f"{function.__module__}:{function.__qualname__}" + (f"({', '.join(told)})" if told else "")

    def connect(self) -> UnbatchedClient:
        """Build the policy in this process."""
        return UnbatchedClient(self.make())

    def __eq__(self, other: object) -> bool:  # an unpickled partial equals no other one
        return isinstance(other, InProcessPolicy) and _parts(self.make) == _parts(other.make)

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class FactoryPolicy:
    """Policy returned by a module's function, which every rollout process calls: `name` is
    MODULE:FUNCTION.
    """

    name: str

    def make(self) -> Policy:
        """Import and call the function. Raises ValueError, with one sentence, if there is none or it returns
        no policy.
        """
        module, _, function = self.name.partition(":")
        if not module or not function.isidentifier():
            raise ValueError(f"{self.name} names no policy: it must look like package.module:function")
        try:
            make = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{self.name}: {error}; modules are looked for where the command runs and on PYTHONPATH"
            ) from None
        except AttributeError:
            raise ValueError(f"{self.name}: the module {module} has no {function}") from None
        policy: Policy = make()
        if not hasattr(policy, "contract") or not hasattr(policy, "act"):
            raise ValueError(
                f"{self.name} returned a {type(policy).__name__}, which is no policy: it must have `contract`"
                " and `act(observations)`"
            )
        return policy

    def connect(self) -> UnbatchedClient:
        """Build the policy in this process. Raises ValueError as `make` does."""
        return UnbatchedClient(self.make())


@dataclass(frozen=True)
class RemoteServer:
    """Policy at a URL, served by `policy/http_server.py`, or at several of them with commas between; each
    rollout process queries one and passes to the next when it is unreachable.
    """

    url: str

    @property
    def name(self) -> str:
        """The URL, or the URLs."""
        return self.url

    def connect(self) -> UnbatchedClient:
        """Return a client of the servers; the first request opens the connection."""
        return UnbatchedClient(RemotePolicies(self.url.split(","), os.getpid()), arithmetic="")


@dataclass(frozen=True)
class ForeignServer:
    """Policy at a URL, served in the protocol of another project."""

    url: str
    contract: Contract
    layout: Layout
    execute: int
    """Actions of a chunk that are executed before the next observation; 0: all."""

    @property
    def name(self) -> str:
        """The URL."""
        return self.url

    def connect(self) -> UnbatchedClient:
        """Return a client of the server; the first request opens the connection."""
        return UnbatchedClient(
            foreign_policy(self.url, self.contract, self.layout, self.execute), arithmetic=""
        )


def _parts(make: Callable[[], Policy]) -> tuple[Any, tuple[Any, ...], Mapping[str, Any]]:
    return (make.func, make.args, make.keywords) if isinstance(make, partial) else (make, (), {})
