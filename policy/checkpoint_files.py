"""The files of a checkpoint, ours or an external policy's: their common hash, and the error of an invalid
one. Without torch, for processes that only move checkpoints.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from policy.errors import DemoscaleError

TRAINER = "trainer.safetensors"
"""File with the state that resumes training of our policies; it does not change how they act."""


class CheckpointError(DemoscaleError):
    """Invalid checkpoint; the message is one sentence with the folder, the defect and the fix."""


def fingerprint(folder: Path) -> str:
    """Return a hash of all files except trainer.safetensors; policies with equal fingerprints act equally."""
    digests = {}
    for file in folder.rglob("*"):
        if file.is_file() and file.name != TRAINER:
            with file.open("rb") as content:
                digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(content, "sha256").digest()
    return fingerprint_of(digests)


def fingerprint_of(digests: Mapping[str, bytes]) -> str:
    """Return the fingerprint of a checkpoint. digests: SHA-256 of every file by its path in the folder."""
    digest = hashlib.sha256()
    for name in sorted(digests, key=PurePosixPath):
        if PurePosixPath(name).name != TRAINER:
            digest.update(name.encode())
            digest.update(digests[name])
    return digest.hexdigest()[:16]
