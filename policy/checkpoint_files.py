"""The files of a checkpoint, ours or an external policy's: their common hash, and the error of an invalid
one. Without torch, for processes that only move checkpoints.
"""

import hashlib
from pathlib import Path

from policy.errors import DemoscaleError


class CheckpointError(DemoscaleError):
    """Invalid checkpoint; the message is one sentence with the folder, the defect and the fix."""


def fingerprint(folder: Path) -> str:
    """Return a hash of all files except trainer.safetensors; policies with equal fingerprints act equally."""
    digest = hashlib.sha256()
    for file in sorted(
        file for file in folder.rglob("*") if file.is_file() and file.name != "trainer.safetensors"
    ):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]
