"""The checkout that a process runs from, file by file: what a process imported is compared with what the driver of its run read at its start.

A sweep's driver names its results by the code it started with. A process that starts later would import files that were edited meanwhile.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from policy.errors import DemoscaleError

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "policy", "sim_workers")
"""Folders of the checkout whose modules the processes of a run import."""
Files = Mapping[str, str]
"""Hash of the content by file, as a path below the checkout with `/`."""
MOST_NAMED = 3
"""Files that an error names at most."""
_imported: dict[str, tuple[str, str]] = {}  # by the place of a module's file: what it is called in `Files`, and its hash when first seen


class CodeChangedError(DemoscaleError):
    """One sentence: which files differ from those that the run began with, and what to do."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on


def content_hash(data: bytes) -> str:
    """Return what stands for a file's content."""
    return hashlib.sha256(data).hexdigest()[:16]


@lru_cache
def sources(root: Path = CHECKOUT) -> dict[str, bytes]:
    """Return every Python file of PACKAGES with its content, as it was when this process first asked."""
    found = (Path(folder, name) for package in PACKAGES for folder, _, names in os.walk(root / package) for name in names if name.endswith(".py"))
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(found)}


@lru_cache
def file_hashes(root: Path = CHECKOUT) -> dict[str, str]:
    """Return the hash of every file of `sources`."""
    return {file: content_hash(data) for file, data in sources(root).items()}


def check_imported(expected: Files | None) -> None:
    """Compare the modules that this process has imported since the last call with `expected`, the driver's `file_hashes`; None: nothing to compare.

    Call it after the imports that it has to see; without a new module it takes a fraction of a millisecond. CodeChangedError if a file differs
    or was unknown to the driver.
    """
    if not expected:
        return
    modules = [module for name, module in sys.modules.copy().items() if name.partition(".")[0] in PACKAGES]
    places = [place for module in modules if (place := getattr(module, "__file__", None)) and place.endswith(".py")]
    for place in places:
        if place not in _imported:
            _imported[place] = _name_and_hash(Path(place).resolve())
    changed = [name for name, found in map(_imported.__getitem__, places) if name and found != expected.get(name)]
    if changed:
        raise CodeChangedError(f"the checkout was edited while the run was in progress ({_listed(sorted(changed))}); start the same command again")


def _name_and_hash(file: Path) -> tuple[str, str]:
    """No name for a file that is no part of the checkout, no hash for one that is gone."""
    if not file.is_relative_to(CHECKOUT):
        return "", ""
    return file.relative_to(CHECKOUT).as_posix(), content_hash(file.read_bytes()) if file.is_file() else ""


def _listed(files: list[str]) -> str:
    more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
    return ", ".join(files[:MOST_NAMED]) + more
