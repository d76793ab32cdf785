"""Observation of an environment's states while a rollout worker plays an episode in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sim_workers.rollout.episode import Env


class Watch(Protocol):
    """Reader of an episode's states, which changes none."""

    def begin(self) -> None:
        """Read the state after a reset."""

    def look(self) -> None:
        """Read the state after a control step."""


@contextmanager
def watched(env: Env, watch: Watch) -> Iterator[None]:
    """Let the watch see every reset and control step of the environment. Two methods are shadowed meanwhile,
    so the environment stays the same object for policies that read its state.
    """
    reset, step = env.reset, env.step

    def watched_reset(seed: int) -> None:
        reset(seed)
        watch.begin()

    def watched_step(action: Any) -> None:
        step(action)
        watch.look()

    vars(env).update(reset=watched_reset, step=watched_step)
    try:
        yield
    finally:
        for name in ("reset", "step"):
            vars(env).pop(name)
