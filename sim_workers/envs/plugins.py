"""Tasks of other packages, found by entry points of the group `demoscale.envs`.

An entry point's name is the task's, as in a sweep file; it leads to a `Task`. In the package's
`pyproject.toml`:

    [project.entry-points."demoscale.envs"]
    "own_tasks/PushT" = "own_tasks:PUSH_T"

Names are read from the installed packages' metadata; a package is imported when one of its tasks is used. So
its module should import its simulator in `make`, not at the top.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from policy.errors import DemoscaleError
from policy.interface import Contract
from sim_workers.rollout.episode import Env

GROUP = "demoscale.envs"
NAME = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*")
"""Form of a task's name, which becomes part of the ids of its episodes."""


class PluginError(DemoscaleError):
    """A task of another package cannot be used; one sentence, which names the package."""


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


@lru_cache
def _points() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points by task; a task that two packages offer has two."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def names() -> tuple[str, ...]:
    """Return the names of all plug-ins' tasks, sorted; no plug-in is imported."""
    return tuple(sorted(name for name in _points() if NAME.fullmatch(name)))


def _point(name: str) -> EntryPoint:
    points = _points()[name]
    if len({(point.value, package_of(point)) for point in points}) > 1:
        offering = " and ".join(sorted({package_of(point) for point in points}))
        raise PluginError(f"the task {name} is offered by {offering}; uninstall all but one")
    return points[0]


def package_of(point: EntryPoint) -> str:
    """Return the name and version of the package of an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


def package(name: str) -> str:
    """Return the name and version of the package that offers the task. Raises PluginError if two do."""
    return package_of(_point(name))


@lru_cache
def load(name: str) -> Task:
    """Import the plug-in of a task and return the task. Raises PluginError if that fails."""
    point = _point(name)
    where = f"the task {name} of the package {package_of(point)} ({point.value})"
    try:
        task = point.load()
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise PluginError(
            f"{where} cannot be loaded: {type(error).__name__}: {said}; repair or uninstall the package"
        ) from error
    if not isinstance(task, Task):
        raise PluginError(f"{where} is a {type(task).__name__}; it must be a sim_workers.envs.plugins.Task")
    return task


def files_of(name: str) -> dict[str, Path]:
    """Return the files of the package that offers a task, which may shape its outcomes, by their path below
    the module's folder: code, and models and textures next to it. Nothing is imported.

    Raises PluginError if the module cannot be found.
    """
    point = _point(name)
    module = point.module.partition(".")[0]
    spec = find_spec(module)
    if spec is None or not (spec.submodule_search_locations or spec.origin):
        raise PluginError(
            f"the task {name} of the package {package_of(point)}: there is no module {module}; repair or"
            " uninstall the package"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders:
        assert spec.origin
        return {Path(spec.origin).name: Path(spec.origin)}
    return {
        f"{module}/{file.relative_to(folder).as_posix()}": file
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    }


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
