"""The files of a checkpoint, ours or an external policy's: their common hash, what its policy needs, and the
error of an invalid one. Without torch, for processes that only move checkpoints.

A sweep's storage keeps weights that training leaves as they are once, by content, and its checkpoints refer
to them:

<storage>/arms/<run>/step_000100/frozen.json    size and SHA-256 of each such file, by its name in the
                                                checkpoint
<storage>/frozen/<sha256>                       their contents

The fingerprint of a checkpoint is that of all its files, wherever they are.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from policy.errors import DemoscaleError
from policy.interface import PRESENT_ONLY, PolicyNeeds
from policy.untrusted import printable, read_json

CARD = "checkpoint.json"
"""File with everything about a policy of ours except its weights."""
CARD_BYTES = 32 << 20
"""Size limit of checkpoint.json in bytes; the ids of a million episodes fit."""
TRAINER = "trainer.safetensors"
"""File with the state that resumes training of our policies; it does not change how they act."""


FROZEN_CARD = "frozen.json"
"""File of a checkpoint in a sweep's storage with the files that the storage keeps once (`FrozenFile`)."""
FROZEN_FOLDER = "frozen"
"""Folder of a storage with these files, by SHA-256."""
FROZEN_NAME = re.compile(r"(unet|vae|text_encoder)/[\w.-]+\.safetensors")
"""Names that such a file may have in a checkpoint."""


class CheckpointError(DemoscaleError):
    """Invalid checkpoint; the message is one sentence with the folder, the defect and the fix."""


@dataclass(frozen=True)
class FrozenFile:
    """A file of a checkpoint that its storage keeps once."""

    size: int
    """In bytes."""
    sha256: str

    @property
    def key(self) -> str:
        """Place in the storage."""
        return f"{FROZEN_FOLDER}/{self.sha256}"

    @classmethod
    def of(cls, path: Path) -> "FrozenFile":
        """Read a file."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def frozen_card(files: Mapping[str, FrozenFile]) -> bytes:
    """Return the content of frozen.json. files: by name in the checkpoint."""
    return json.dumps({name: vars(file) for name, file in sorted(files.items())}, indent=1).encode()


def read_frozen_card(card: bytes, where: str) -> dict[str, FrozenFile]:
    """Return what `frozen_card` wrote. Raises CheckpointError, which names `where`, if it is damaged or names
    a file that cannot be a checkpoint's.
    """
    try:
        files = {
            str(name): FrozenFile(int(stated["size"]), str(stated["sha256"]))
            for name, stated in read_json(card, CARD_BYTES).items()
        }
        for name, file in files.items():
            if not FROZEN_NAME.fullmatch(name) or not re.fullmatch("[0-9a-f]{64}", file.sha256):
                raise ValueError(f"it names {printable(name, 60)}")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: {FROZEN_CARD} is damaged; copy the checkpoint again ({printable(str(error), 200)})"
        ) from None
    return files


def frozen_files(folder: Path) -> dict[str, FrozenFile]:
    """Return the files of a checkpoint that its storage keeps, by name; none for a checkpoint with all its
    files. Raises CheckpointError if frozen.json is damaged.
    """
    try:
        card = (folder / FROZEN_CARD).read_bytes()
    except OSError:
        return {}
    return read_frozen_card(card, str(folder))


def not_there(where: str, name: str) -> CheckpointError:
    """Return the error of a checkpoint without a file that its storage keeps."""
    return CheckpointError(
        f"{where}: its storage keeps {name} in {FROZEN_FOLDER}/, and it is not there; copy a checkpoint with"
        " `demoscale export-policy`, which takes along every file, or restore that folder"
    )


@contextmanager
def whole_checkpoint(folder: Path) -> Iterator[Path]:
    """Yield a folder with all files of a checkpoint: the folder itself, or one of links to its files and to
    those that its storage keeps once. Raises CheckpointError if one of these is missing.
    """
    if not (frozen := frozen_files(folder)):
        yield folder
        return
    storage = folder.resolve().parents[2] if len(folder.resolve().parents) > 2 else folder
    with tempfile.TemporaryDirectory(prefix="demoscale-checkpoint-") as name:
        link_files(folder, Path(name))
        for file, stated in frozen.items():
            place = storage / stated.key
            if not place.is_file() or place.stat().st_size != stated.size:
                raise not_there(str(folder), file)
            (Path(name) / file).parent.mkdir(exist_ok=True)
            (Path(name) / file).symlink_to(place)
        try:
            yield Path(name)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(name, str(folder))) from None


def link_files(folder: Path, target: Path) -> None:
    """Link every file of a checkpoint's folder except frozen.json into another folder, under its name."""
    for file in folder.rglob("*"):
        if file.is_file() and file.name != FROZEN_CARD:
            link = target / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


def fingerprint(folder: Path) -> str:
    """Return a hash of all files except trainer.safetensors; policies with equal fingerprints act equally.

    A file that the storage keeps once counts by the SHA-256 in frozen.json.
    """
    digests = {name: bytes.fromhex(file.sha256) for name, file in frozen_files(folder).items()}
    for file in folder.rglob("*"):
        if file.is_file() and file.name not in (TRAINER, FROZEN_CARD):
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
