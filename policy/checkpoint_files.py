"""The files of a checkpoint, ours or an external policy's: their common hash, what its policy needs, and the
error of an invalid one. Without torch, for processes that only move checkpoints.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from policy.errors import DemoscaleError
from policy.interface import PRESENT_ONLY, PolicyNeeds
from policy.untrusted import read_json

CARD = "checkpoint.json"
"""File with everything about a policy of ours except its weights."""
CARD_BYTES = 32 << 20
"""Size limit of checkpoint.json in bytes; the ids of a million episodes fit."""
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


def needs_in(card: bytes) -> PolicyNeeds:
    """Return the needs that a checkpoint.json states. Raises ValueError or TypeError if it is damaged."""
    return stated_needs(read_json(card, CARD_BYTES))


def stated_needs(card: Mapping[str, Any]) -> PolicyNeeds:
    """Return the needs in the content of a checkpoint.json; absent ones are the default. Raises ValueError or
    TypeError for other than `PolicyNeeds`.
    """
    return PolicyNeeds(**card["needs"]) if "needs" in card else PRESENT_ONLY
