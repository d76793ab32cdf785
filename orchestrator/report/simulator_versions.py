"""Versions of the simulator that a sweep was played on, as its tags in MLflow say them. Pure."""

from collections.abc import Mapping

VERSION_TAG = "demoscale.version."
"""Beginning of the tags of a sweep's run with the versions of its packages."""
SIMULATOR_TAG = "demoscale.simulator"
"""Tag of the runs of arms: name and versions of the simulator, `Contract.simulator`."""


def simulator_of(tags: Mapping[str, str]) -> str:
    """Return name and versions of the simulator; empty if the tags do not say."""
    if stated := tags.get(SIMULATOR_TAG):
        return stated
    known = [(name, tags.get(f"{VERSION_TAG}{name}")) for name in ("robosuite", "mujoco")]
    return ", ".join(f"{name} {version}" for name, version in known if version)
