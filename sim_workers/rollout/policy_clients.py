"""Whom a rollout process asks for actions."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from policy.http_policy import RemotePolicy
from policy.interface import ActionChunk, Observation, Policy


class Asker(Protocol):
    """A policy within reach of one rollout process. It may have `imagine(observation) -> Imagination` too."""

    def act(self, observation: Observation) -> ActionChunk: ...


class PolicySource(Protocol):
    """How a rollout process comes to its policy; small and picklable: it travels with every episode.

    Equal sources lead to the same policy, so that a process connects once and not for every episode.
    """

    def connect(self) -> Asker: ...


@dataclass(frozen=True)
class OneByOne:
    """Asks a policy about one observation at a time."""

    policy: Policy

    def act(self, observation: Observation) -> ActionChunk:
        return self.policy.act([observation])[0]


@dataclass(frozen=True, eq=False)
class InProcess:
    """A policy built by `make()` in every rollout process; it shares the simulator's one core.

    make: picklable, so a function of a module, or functools.partial of one. Sources are equal if these are.
    """

    make: Callable[[], Policy]

    @property
    def name(self) -> str:
        function, arguments, keywords = _parts(self.make)
        told = [*map(str, arguments), *(f"{key}={value}" for key, value in keywords.items())]
        return f"{function.__module__}:{function.__qualname__}" + (f"({', '.join(told)})" if told else "")

    def connect(self) -> OneByOne:
        return OneByOne(self.make())

    def __eq__(self, other: object) -> bool:  # a partial that travelled is equal to no other one
        return isinstance(other, InProcess) and _parts(self.make) == _parts(other.make)

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Named:
    """The policy that a function of a module returns, called in every rollout process: `name` is MODULE:FUNCTION."""

    name: str

    def make(self) -> Policy:
        """ValueError with a sentence if there is none."""
        module, _, function = self.name.partition(":")
        if not module or not function.isidentifier():
            raise ValueError(f"{self.name} names no policy: it must look like package.module:function")
        try:
            make = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            raise ValueError(f"{self.name}: {error}; modules are looked for where the command runs and on PYTHONPATH") from None
        except AttributeError:
            raise ValueError(f"{self.name}: the module {module} has no {function}") from None
        policy: Policy = make()
        if not hasattr(policy, "contract") or not hasattr(policy, "act"):
            raise ValueError(f"{self.name} returned a {type(policy).__name__}, which is no policy: it must have `contract` and `act(observations)`")
        return policy

    def connect(self) -> OneByOne:
        return OneByOne(self.make())


@dataclass(frozen=True)
class Remote:
    """The policy behind a URL, as `policy/http_policy.py` serves it."""

    url: str

    @property
    def name(self) -> str:
        return self.url

    def connect(self) -> OneByOne:
        return OneByOne(RemotePolicy(self.url))


def _parts(make: Callable[[], Policy]) -> tuple[Any, tuple[Any, ...], Mapping[str, Any]]:
    return (make.func, make.args, make.keywords) if isinstance(make, partial) else (make, (), {})
