"""Caches on a node's own disk, of checkpoints and of exported episodes: each is fetched once per node,
regardless of the number of processes there.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.checkpoints.reader import fetch
from orchestrator.storage.base import LocalStorage
from policy.checkpoint_files import CheckpointError, fingerprint

MOST_BYTES = 20 * 2**30
"""Size limit of a cache, in bytes; half of the disk's free space is a second one. The least recently used
folder is evicted first.
"""
SPARE_S = 600.0
"""Seconds since its last request for which a folder is not evicted, since it may be loading."""
HIDDEN = ".part-"
"""Prefix of the names of folders that are being fetched or deleted: `.part-<name>-...`, while the process
that does so holds the lock of that name.
"""


def user_folder(kind: str) -> Path:
    """Return this user's folder for one kind of content on this node, below TMPDIR, created if it is missing.

    Raises CheckpointError if it belongs to another user.
    """
    root = Path(tempfile.gettempdir()) / f"demoscale-{os.getuid()}" / kind
    return _own(root)


def _own(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (owner := root.stat().st_uid) != os.getuid():
        raise CheckpointError(
            f"{root} belongs to user {owner}, who could put other weights there; remove it, or set TMPDIR"
        )
    return root


def cached_checkpoint(
    uri: str,
    expected: str,
    root: Path | None = None,
    most_bytes: int = MOST_BYTES,
    fetch: Callable[[str, Path], None] = fetch,
) -> Path:
    """Return the cached folder of the checkpoint at `uri`; the first process of a node fetches it, others
    wait for that.

    expected: its fingerprint. fetch: copies a checkpoint from its URI into a folder. Raises CheckpointError
    if the weights there have another fingerprint, or the cache belongs to another user.
    """

    def fill(folder: Path) -> None:
        fetch(uri, folder)
        if (found := fingerprint(folder)) != expected:
            raise CheckpointError(
                f"{uri}: the checkpoint has the fingerprint {found}, expected is {expected}: it was"
                " replaced or damaged; restore it, or train the arm again"
            )

    return cached_folder(expected, fill, _own(root) if root else user_folder("checkpoints"), most_bytes)


def cached_folder(name: str, fill: Callable[[Path], None], root: Path, most_bytes: int = MOST_BYTES) -> Path:
    """Return the folder `name` of a cache; the first process of a node calls `fill` with a folder that does
    not exist yet, others wait for that.

    root: the cache, `user_folder`. Its least recently used folders are evicted first, none for SPARE_S since
    its last request; a process that uses one for longer touches it (`os.utime`).
    """
    _make_room(root, most_bytes)
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=f"{HIDDEN}{name}-") as part:
                fetched = Path(part) / name
                fill(fetched)
                LocalStorage(fetched).sync("")  # a power failure must not leave an incomplete folder
                os.replace(fetched, folder)
        os.utime(folder)
    return folder


def _make_room(root: Path, most_bytes: int) -> None:
    """Evict folders until the cache is within its limits. Other processes may evict at the same time, so
    missing folders are skipped.
    """
    ages: list[tuple[float, int, Path]] = []
    for folder in (folder for folder in root.iterdir() if folder.is_dir()):
        try:
            used = folder.stat().st_mtime
            if not folder.name.startswith(HIDDEN):
                ages.append((used, sum(file.stat().st_size for file in folder.rglob("*")), folder))
            else:  # removed if the process that fetched or deleted it was killed
                name = folder.name.removeprefix(HIDDEN).rpartition("-")[0]
                with suppress(Timeout), FileLock(root / f"{name}.lock", timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue
    total = sum(size for _, size, _ in ages)
    most = min(most_bytes, (shutil.disk_usage(root).free + total) // 2)
    for used, size, folder in sorted(ages):
        if total <= most or time.time() - used < SPARE_S:
            return
        with FileLock(root / f"{folder.name}.lock"):
            if folder.is_dir() and folder.stat().st_mtime == used:
                # renamed first: a partly deleted folder must not be used
                going = root / f"{HIDDEN}{folder.name}-old"
                os.replace(folder, going)
                shutil.rmtree(going, ignore_errors=True)
        total -= size
