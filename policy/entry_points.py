"""Reader of what installed packages offer by Python entry points: policies (`policy.learner`) and tasks
(`sim_workers.envs.plugins`). Needs the standard library only.

An entry point's name is that of the policy or task, as in a sweep file. Names are read from the installed
packages' metadata; a package is imported when something of it is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from policy.errors import DemoscaleError
from policy.untrusted import printable


class PluginError(DemoscaleError):
    """A policy or task of another package cannot be used; one sentence, which names the package."""


@dataclass(frozen=True)
class Group:
    """Group of entry points."""

    name: str
    """Name in a package's `pyproject.toml`."""
    offers: str
    """What an entry point of the group is, in a sentence."""


POLICIES = Group("demoscale.policies", "policy")
TASKS = Group("demoscale.envs", "task")


@dataclass(frozen=True)
class Plugin:
    """What one installed package offers under a name."""

    group: Group
    point: EntryPoint

    def __str__(self) -> str:
        return f"the {self.group.offers} {self.point.name} of the package {self.package} ({self.point.value})"

    @property
    def package(self) -> str:
        """Name and version of the package, as pip lists it."""
        distribution = self.point.dist
        return f"{distribution.name} {distribution.version}" if distribution else self.point.module

    def load(self) -> Any:
        """Import the package and return what the entry point leads to. Raises PluginError if that fails."""
        try:
            return self.point.load()
        except Exception as error:
            raise PluginError(
                f"{self} cannot be loaded: {one_line(error)}; repair or uninstall the package"
            ) from error

    def files(self) -> dict[str, Path]:
        """Return the files of the import package, which may shape results, by their path from its parent
        folder: code, and other files next to it. Nothing of it is imported.

        Raises PluginError if there is no such module.
        """
        parts = self.point.module.split(".")
        for length in range(1, len(parts) + 1):
            module = ".".join(parts[:length])
            spec = self._spec(module)
            if spec.origin:  # else a namespace, which several packages share
                break
        path = module.replace(".", "/")
        folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
        if not folders:
            assert spec.origin
            return {f"{path}{Path(spec.origin).suffix}": Path(spec.origin)}
        return {
            f"{path}/{file.relative_to(folder).as_posix()}": file
            for folder in folders
            for file in sorted(folder.rglob("*"))
            if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
        }

    def _spec(self, module: str) -> ModuleSpec:
        try:
            spec = find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or not (spec.submodule_search_locations or spec.origin):
            raise PluginError(f"{self}: there is no module {module}; repair or uninstall the package")
        return spec


def one_line(error: Exception) -> str:
    """Return an error's type and message on one line, at most about 300 characters."""
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"


@lru_cache
def _points(group: Group) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points by name; a name that two packages offer has two."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=group.name):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def forget() -> None:
    """Read the installed packages again at the next call; for tests that install one."""
    _points.cache_clear()


def names(group: Group) -> tuple[str, ...]:
    """Return the names that installed packages offer, sorted; none is imported."""
    return tuple(sorted(_points(group)))


def find(group: Group, name: str) -> Plugin:
    """Return what is offered under a name, without importing it. Raises PluginError if no package offers the
    name, or several do.
    """
    found = {
        str(plugin): plugin for plugin in (Plugin(group, point) for point in _points(group).get(name, ()))
    }
    if not found:
        raise PluginError(
            f"no installed package offers a {group.offers} {printable(name, 100)}; installed are"
            f" {', '.join(names(group)) or 'none'} (entry points {group.name}); install its package on every"
            " node"
        )
    if len(found) > 1:
        packages = sorted(f"{plugin.package} ({plugin.point.value})" for plugin in found.values())
        raise PluginError(
            f"the {group.offers} {name} is offered by {' and '.join(packages)}; uninstall all but one"
        )
    return next(iter(found.values()))
