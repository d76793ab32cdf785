"""Comparison of the files that a process imported with those that its run's driver read at its start: of the
checkout, and of installed packages that offer the run's policies and tasks.

A sweep's driver names its results by the code it started with. A process that starts later would import files
that were edited meanwhile; one on another node, those of another version.
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
"""Hash of each file's content, by the file's path relative to the checkout, or to the folder that holds the
installed package, with `/`.
"""
MOST_NAMED = 3
"""Largest number of files that an error names."""
_OWN = tuple(f"{package}/" for package in PACKAGES)
# by the path of a module's file: its key in `Files`, and its hash when first seen
_imported: dict[str, tuple[str, str]] = {}


class CodeChangedError(DemoscaleError):
    """The checkout or an installed package was edited during the run. The message, one sentence, names the
    files that differ and what to do.
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
    """Compare the imported modules of the checkout, and of the installed packages that `expected` has files
    of, with the hashes that the driver read.

    None: nothing to compare. A file is hashed when it is first seen. Call it after the imports that it has to
    check; without a new module it takes a fraction of a millisecond. Raises CodeChangedError if a file
    differs, or one of the checkout was unknown to the driver.
    """
    if not expected:
        return
    packaged = [file for file in expected if not file.startswith(_OWN)]
    watched = {*PACKAGES, *(file.partition("/")[0].removesuffix(".py") for file in packaged)}
    modules = [
        (name, place)
        for name, module in sys.modules.copy().items()
        if name.partition(".")[0] in watched
        and (place := getattr(module, "__file__", None))
        and place.endswith(".py")
    ]
    for name, place in modules:
        if place not in _imported:
            _imported[place] = _name_and_hash(name, Path(place).resolve())
    found = {_imported[place] for _, place in modules}
    own = [file for file, has in found if file.startswith(_OWN) and has != expected.get(file)]
    if own:
        raise CodeChangedError(
            f"the checkout was edited while the run was in progress ({_listed(sorted(own))}); start the"
            " same command again"
        )
    theirs = [file for file, has in found if not file.startswith(_OWN) and has != expected.get(file, has)]
    if theirs:
        raise CodeChangedError(
            "an installed package was edited while the run was in progress, or is another version on this"
            f" node ({_listed(sorted(theirs))}); install one version on every node and start the same command"
            " again"
        )


def _name_and_hash(module: str, file: Path) -> tuple[str, str]:
    """Return the key in `Files` of a module's file, and its hash: no hash for a deleted file, no key for a
    module of PACKAGES from outside the checkout.
    """
    if module.partition(".")[0] not in PACKAGES:
        key = module.replace(".", "/") + ("/__init__.py" if file.name == "__init__.py" else ".py")
    elif file.is_relative_to(CHECKOUT):
        key = file.relative_to(CHECKOUT).as_posix()
    else:
        return "", ""
    return key, content_hash(file.read_bytes()) if file.is_file() else ""


def _listed(files: list[str]) -> str:
    more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
    return ", ".join(files[:MOST_NAMED]) + more
