"""Comparison of the files that a process imported with the checkout that its run's driver read at its start.

A sweep's driver names its results by the code it started with. A process that starts later would import files
that were edited meanwhile.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from policy.errors import RESUMABLE, DemoscaleError

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "policy", "sim_workers")
"""Folders of the checkout whose modules the processes of a run import."""
Files = Mapping[str, str]
"""Hash of each file's content, by the file's path relative to the checkout, with `/`."""
MOST_NAMED = 3
"""Largest number of files that an error names."""
# by the path of a module's file: its key in `Files`, and its hash when first seen
_imported: dict[str, tuple[str, str]] = {}


class CodeChangedError(DemoscaleError):
    """The checkout was edited during the run. The message, one sentence, names the files that differ and what
    to do.
    """

    exit_code = RESUMABLE


def content_hash(data: bytes) -> str:
    """Return the hash that identifies a file's content, 16 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:16]


@lru_cache
def sources(root: Path = CHECKOUT) -> dict[str, bytes]:
    """Return every Python file of PACKAGES with its content, as this process's first call read it."""
    found = (
        Path(folder, name)
        for package in PACKAGES
        for folder, _, names in os.walk(root / package)
        for name in names
        if name.endswith(".py")
    )
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(found)}


@lru_cache
def file_hashes(root: Path = CHECKOUT) -> dict[str, str]:
    """Return the hash of every file of `sources`."""
    return {file: content_hash(data) for file, data in sources(root).items()}


def check_imported(expected: Files | None) -> None:
    """Compare the imported modules of the checkout with `expected`, the driver's `file_hashes`.

    None: nothing to compare. A file is hashed when it is first seen. Call it after the imports that it has to
    check; without a new module it takes a fraction of a millisecond. Raises CodeChangedError if a file
    differs or was unknown to the driver.
    """
    if not expected:
        return
    modules = [module for name, module in sys.modules.copy().items() if name.partition(".")[0] in PACKAGES]
    places = [
        place for module in modules if (place := getattr(module, "__file__", None)) and place.endswith(".py")
    ]
    for place in places:
        if place not in _imported:
            _imported[place] = _name_and_hash(Path(place).resolve())
    changed = [
        name for name, found in map(_imported.__getitem__, places) if name and found != expected.get(name)
    ]
    if changed:
        raise CodeChangedError(
            f"the checkout was edited while the run was in progress ({_listed(sorted(changed))}); start the"
            " same command again"
        )


def _name_and_hash(file: Path) -> tuple[str, str]:
    """Return a file's key in `Files` and its hash: no key outside the checkout, no hash for a deleted
    file.
    """
    if not file.is_relative_to(CHECKOUT):
        return "", ""
    return file.relative_to(CHECKOUT).as_posix(), content_hash(file.read_bytes()) if file.is_file() else ""


def _listed(files: list[str]) -> str:
    more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
    return ", ".join(files[:MOST_NAMED]) + more
