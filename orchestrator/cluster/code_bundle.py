"""Bundle of the code that is sent to a cluster: the checkout's packages and nothing else, in a temporary
folder.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.provenance import CHECKOUT
from policy.errors import DemoscaleError

SHIPPED: tuple[str, ...] = (
    "jobs",
    "orchestrator",
    "policies",
    "policy",
    "sim_workers",
    "examples",
    "pyproject.toml",
    "constraints.txt",
)
"""Paths of the checkout that are sent; data, videos, results, caches and environments are not."""
LIMIT_BYTES = 100 * 2**20
"""Limit of a Ray head for one request, in bytes."""


class CodeBundleError(DemoscaleError):
    """Error if the code cannot be sent: one sentence with the reason."""


@dataclass(frozen=True)
class CodeBundle:
    """Bundle on this machine's disk: its folder, number of files and size in bytes."""

    folder: Path
    files: int
    nbytes: int


@contextmanager
def code_bundle(
    texts: Mapping[str, str | bytes], checkout: Path = CHECKOUT, limit_bytes: int = LIMIT_BYTES
) -> Iterator[CodeBundle]:
    """Copy the code, and `texts` by path relative to it, into a temporary folder. Raises CodeBundleError if
    that is more than `limit_bytes`.
    """
    with tempfile.TemporaryDirectory(prefix="demoscale-") as name:
        folder, files = Path(name), list(shipped_files(checkout))
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / file, folder / file)
        for file_name, text in texts.items():
            (folder / file_name).parent.mkdir(parents=True, exist_ok=True)
            (folder / file_name).write_bytes(text.encode() if isinstance(text, str) else text)
        sizes = {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in folder.rglob("*")
            if file.is_file()
        }
        if sum(sizes.values()) > limit_bytes:
            largest = max(sizes, key=lambda name: sizes[name])
            raise CodeBundleError(
                f"{sum(sizes.values()) / 2**20:.0f} MiB would be sent, and a Ray head accepts"
                f" {limit_bytes / 2**20:.0f} MiB; the largest file is {largest} ({sizes[largest] / 2**20:.0f}"
                " MiB): keep data and weights in s3:// or on a file system that all nodes share"
            )
        yield CodeBundle(folder, len(sizes), sum(sizes.values()))


def shipped_files(checkout: Path) -> Iterator[Path]:
    """Yield the files to send: those tracked by git, in their current state, and untracked Python modules;
    without git, all but caches.
    """
    if not (checkout / ".git").exists():
        yield from _walked(checkout)
        return
    # An untracked file may be a secret, so it is left out; an untracked module may be imported, so it is
    # sent.
    modules = [f"{name}/*.py" for name in SHIPPED if "." not in name]
    names = [
        *_git(checkout, "--cached", "--", *SHIPPED),
        *_git(checkout, "--others", "--exclude-standard", "--", *modules),
    ]
    yield from (Path(name) for name in sorted(set(names)) if (checkout / name).is_file())


def _git(checkout: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z", *arguments], cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise CodeBundleError(
            f"git cannot list the files of {checkout} ({done.stderr.strip()}); repair the checkout"
        )
    return [name for name in done.stdout.split("\0") if name]


def _walked(checkout: Path) -> Iterator[Path]:
    for name in SHIPPED:
        if (checkout / name).is_file():
            yield Path(name)
        for folder, folders, files in os.walk(checkout / name):
            folders[:] = sorted(
                inner
                for inner in folders
                if not inner.startswith(".") and inner != "__pycache__" and not inner.endswith(".egg-info")
            )
            yield from (
                Path(folder, file).relative_to(checkout) for file in sorted(files) if not file.startswith(".")
            )
