"""Tasks of other packages, found by entry points of the group `demoscale.envs`.

An entry point's name is the task's, as in a sweep file; it leads to a `Task`. In the package's
`pyproject.toml`:

    [project.entry-points."demoscale.envs"]
    "own_tasks/PushT" = "own_tasks:PUSH_T"

A package is imported when one of its tasks is used, so its module should import its simulator in `make`, not
at the top.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from policy import entry_points
from policy.entry_points import TASKS
from policy.entry_points import PluginError as PluginError
from policy.interface import Contract
from sim_workers.rollout.episode import Env

NAME = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*")
"""Form of a task's name, which becomes part of the ids of its episodes."""


class Expert(Protocol):
    """Scripted expert for one episode of a plug-in's task."""

    horizon: int
    """Number of control steps after which the demonstration has failed."""

    def act(self, env: Any) -> npt.NDArray[np.floating[Any]]:
        """Return the (A,) action for the current state of the `Env`, in the contract's units; for a robosuite
        environment the displacement of the hand, (7,) in [-1, 1], whichever controller the contract names.
        """
        ...


@dataclass(frozen=True)
class Task:
    """A task of another package: what its entry point leads to."""

    instruction: str
    """The task as a sentence."""
    cameras: tuple[str, ...]
    """Names of the cameras that a policy may use."""
    contract: Callable[[tuple[str, ...], tuple[int, int], str], Contract]
    """(cameras, image size as rows and columns, render profile) -> conventions of the simulator on this
    machine. `simulator` holds its name and version.
    """
    make: Callable[[Contract], Env]
    """Contract -> environment, in this process, which has no other open one."""
    horizon: int
    """Control steps until an episode counts as failed, where a sweep says `horizon: auto`."""
    expert: Callable[[], Expert] | None = None
    """Returns a new scripted expert, for `demoscale collect`; None if the task has none."""
    noise: tuple[float, ...] = ()
    """Per dimension of the expert's action the standard deviation that a disturbance of 1 adds to what is
    executed; empty: none.
    """
    environment: str = ""
    """Name of a robosuite environment, whose robots, controllers, proprioception, control rates and cameras
    can be chosen; empty for any other simulator.
    """


def names() -> tuple[str, ...]:
    """Return the names of all plug-ins' tasks, sorted; no plug-in is imported."""
    return tuple(name for name in entry_points.names(TASKS) if NAME.fullmatch(name))


def package(name: str) -> str:
    """Return the name and version of the package that offers the task. Raises PluginError if two do."""
    return entry_points.find(TASKS, name).package


@lru_cache
def load(name: str) -> Task:
    """Import the plug-in of a task and return the task. Raises PluginError if that fails."""
    plugin = entry_points.find(TASKS, name)
    task = plugin.load()
    if not isinstance(task, Task):
        raise PluginError(f"{plugin} is a {type(task).__name__}; it must be a sim_workers.envs.plugins.Task")
    return task


def robosuite_task(
    environment: str,
    register: Callable[[], object],
    instruction: str,
    horizon: int,
    expert: Callable[[], Expert] | None = None,
    noise: tuple[float, ...] = (),
) -> Task:
    """Return the task of a robosuite environment of another package, with all embodiments of robosuite's own
    tasks.

    environment: name of the environment's class. register: imports the module of that class, by which
    robosuite knows it; called in the process that plays. Its scene has one arm with a gripper, and the
    cameras of robosuite's table.
    """
    from sim_workers.envs.robosuite import SimEnv, contract
    from sim_workers.envs.tasks import cameras

    def make(conventions: Contract) -> Env:
        from sim_workers.envs.render import choose_backend

        choose_backend()
        register()
        return SimEnv(environment, conventions, environment=environment, instruction=instruction)

    return Task(
        instruction,
        cameras(environment),
        lambda views, size, profile: contract(views, size, profile, environment),
        make,
        horizon,
        expert,
        noise,
        environment,
    )
