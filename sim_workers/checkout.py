"""The checkout that a process runs from, file by file: what a process imported is compared with what the driver of its run read at its start.

A sweep's driver names its results by the code it started with. A process that starts later would import files that were edited meanwhile.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "policy", "sim_workers")
"""Folders of the checkout whose modules the processes of a run import."""
Files = Mapping[str, str]
"""Hash of the content by file, as a path below the checkout with `/`."""
MOST_NAMED = 3
"""Files that an error names at most."""
_checked: dict[str, str] = {}  # files of modules that this process imported, with the hash they are known to have had


class CodeChangedError(Exception):
    """One sentence: which files differ from those that the run began with, and what to do."""


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
    names = [name for name in sys.modules.copy() if name.partition(".")[0] in PACKAGES]
    places = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    files = [Path(place) for place in places if place and place.endswith(".py")]
    changed = []
    for file in files:
        if not file.is_relative_to(CHECKOUT):
            continue
        name = file.relative_to(CHECKOUT).as_posix()
        if name not in _checked:
            _checked[name] = content_hash(file.read_bytes()) if file.is_file() else ""
        if _checked[name] != expected.get(name):
            changed.append(name)
    if changed:
        raise CodeChangedError(f"the checkout was edited while the run was in progress ({_listed(sorted(changed))}); start the same command again")


def _listed(files: list[str]) -> str:
    more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
    return ", ".join(files[:MOST_NAMED]) + more
