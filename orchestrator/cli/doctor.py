"""Checks of this machine. Each says what it found and, if it failed, how to fix it."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from orchestrator.provenance import CHECKOUT, git_commit

ROOMS = ("jobs", "orchestrator", "policy", "sim_workers")
DEBIAN_PACKAGES = "libegl1 libopengl0 libgl1 libgl1-mesa-dri libglib2.0-0"

_RENDER = """
from sim_workers.envs.robosuite import SimEnv, contract
env = SimEnv("Lift", contract(("robot0_eye_in_hand",), (64, 64), "fast"))
env.reset(0)
picture = env.observe(0).images["robot0_eye_in_hand"]
import OpenGL.GL as gl
print(gl.glGetString(gl.GL_RENDERER).decode(), "pixels", picture.mean().round(3))
print("lean" if not env.own_step else f"robosuite's own, several times slower: {env.own_step}")
env.close()
"""


@dataclass(frozen=True)
class Check:
    """Result of one check of `demoscale doctor`."""

    name: str
    passed: bool
    finding: str


def shadowed_packages() -> dict[str, str]:
    """Rooms of this project that Python would import from somewhere else: another distribution may use the
    same top-level name.
    """
    found = {}
    for room in ROOMS:
        file = importlib.import_module(room).__file__
        if file is None or not Path(file).resolve().is_relative_to(CHECKOUT):
            found[room] = str(file)
    return found


def checks() -> Iterator[Check]:
    """Cheap ones first; the last renders a picture in a process of its own."""
    python = sys.version.split()[0]
    yield Check("python", (3, 11) <= sys.version_info[:2] < (3, 13), f"{python} (3.11 or 3.12 is needed)")
    foreign = shadowed_packages()
    yield Check(
        "checkout",
        not foreign,
        (
            f"{CHECKOUT} at {git_commit()}"
            if not foreign
            else "; ".join(
                f"`{room}` comes from {file}, not from {CHECKOUT}" for room, file in foreign.items()
            )
            + ": uninstall that package or use a fresh environment"
        ),
    )
    wrong = list(_unmet())
    yield Check(
        "packages", not wrong, "as asked for" if not wrong else f"{', '.join(wrong)}; run `make setup`"
    )
    cores, memory = os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Check(
        "machine",
        memory >= 6,
        f"{cores} cores, {memory:.0f} GiB memory"
        + ("" if memory >= 6 else "; the quickstart needs about 6 GiB"),
    )
    free = shutil.disk_usage(CHECKOUT).free / 2**30
    yield Check(
        "disk",
        free >= 2,
        f"{free:.0f} GiB free" + ("" if free >= 2 else "; make room: a quickstart sweep needs about 1 GiB"),
    )
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RENDER], cwd=CHECKOUT, capture_output=True, text=True
    )
    rendered = shown.returncode == 0
    said = (shown.stdout if rendered else shown.stderr).strip().splitlines() or ["no output"]
    if rendered:
        yield Check("control step", True, f"{said.pop()} (the default robot and controller)")
    yield Check(
        "rendering",
        rendered,
        said[-1] if rendered else f"{said[-1]}; on Debian or Ubuntu: apt-get install {DEBIAN_PACKAGES}",
    )


def _unmet() -> Iterator[str]:
    """Direct dependencies that are missing or not of a version that the package asks for."""
    for requirement in map(Requirement, requires("demoscale") or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or found not in requirement.specifier:
            yield f"{requirement.name} {found} instead of {requirement.specifier or 'any'}"
