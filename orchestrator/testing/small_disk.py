"""A file system of a few MiB that tests fill and free."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoMountError(Exception):
    """File systems cannot be mounted here: that needs root and CAP_SYS_ADMIN."""


class SmallDisk:
    """Mounted file system at `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self._ballast = root, root / "ballast"

    def fill(self) -> None:
        """Write until no byte is left."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def free(self) -> None:
        """Remove what `fill` wrote."""
        self._ballast.unlink()


@contextmanager
def small_disk(root: Path, mib: int = 48) -> Iterator[SmallDisk]:
    """Mount an empty file system of `mib` MiB at `root`, a folder, until the context closes. Raises
    NoMountError.
    """
    root.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise NoMountError("a small file system needs root and CAP_SYS_ADMIN")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
