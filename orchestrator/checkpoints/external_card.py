"""Checkpoints of external policies, self-contained as ours are.

external.json    the card: policy, contract, options, step, provenance, and size and hash of every other file
policy/          the policy's folder that trained it, manifest and programs
weights/         what the training command wrote, opened by its own programs alone

The card is written last: a folder without one is no checkpoint, and files that it does not list do not count.
The programs are code, so a checkpoint is only served if its caller vouches for it: a sweep does for those
that its own training wrote, by their fingerprints.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.storage.base import LocalStorage, NoObject, Storage
from policy.checkpoint_files import CheckpointError
from policy.interface import Contract, PolicyNeeds
from policy.untrusted import printable, read_json

CARD = "external.json"
PROGRAMS, WEIGHTS = "policy", "weights"
"""Folders of a checkpoint: the policy's files, and what its training command wrote."""
FORMAT = 1
CARD_BYTES = 32 << 20
"""Size limit of a card in bytes."""


def is_external(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of an external policy."""
    return (folder / CARD).exists()


@dataclass(frozen=True)
class StoredFile:
    """Size and hash of one file."""

    size: int
    """In bytes."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "StoredFile":
        """Read a file."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True, kw_only=True)
class ExternalCard:
    """Content of external.json."""

    policy: str
    """Name of the policy."""
    policy_fingerprint: str
    """`ExternalPolicy.fingerprint` of its programs and packages."""
    contract: Contract
    """Conventions of the episodes that it was trained on."""
    options: Mapping[str, Any]
    """The policy's own settings."""
    lock: str
    """Versions of the packages of its environment; empty if uv did not make it."""
    needs: PolicyNeeds
    """What the policy needs besides the present observation."""
    step: int
    provenance: Mapping[str, Any]
    """Arm, data fingerprint, exact episode ids, knobs, packages. Nothing that differs between identical
    runs.
    """
    files: Mapping[str, StoredFile]
    """Every file besides the card, by its path in the checkpoint."""

    def write(self, folder: Path) -> None:
        """Write the card into a checkpoint's folder."""
        fields = {**vars(self), "format": FORMAT, "contract": self.contract.to_json()}
        fields["needs"] = vars(self.needs)
        fields["files"] = {name: vars(stored) for name, stored in sorted(self.files.items())}
        (folder / CARD).write_text(json.dumps(fields, indent=1, sort_keys=True))

    @classmethod
    def parse(cls, data: bytes, where: str) -> "ExternalCard":
        """Return the card that `write` wrote. Raises CheckpointError, which names `where`, if it is damaged
        or names a file outside the checkpoint.
        """
        try:
            fields = read_json(data, CARD_BYTES)
            if fields["format"] != FORMAT:
                raise CheckpointError(
                    f"{where}: {CARD} has format {printable(str(fields['format']), 40)}, this version reads"
                    f" {FORMAT}"
                )
            files = {
                name: StoredFile(int(f["size"]), str(f["sha256"])) for name, f in fields["files"].items()
            }
            for name in files:
                parts = PurePosixPath(name).parts
                if parts[0] not in (PROGRAMS, WEIGHTS) or ".." in parts or len(parts) < 2:
                    raise ValueError(f"files names {printable(name, 60)}")
            return cls(
                policy=str(fields["policy"]),
                policy_fingerprint=str(fields["policy_fingerprint"]),
                contract=Contract.from_json(fields["contract"]),
                options=dict(fields["options"]),
                lock=str(fields["lock"]),
                needs=PolicyNeeds(**fields.get("needs", {})),
                step=int(fields["step"]),
                provenance=dict(fields["provenance"]),
                files=files,
            )
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"{where}: {CARD} is damaged; copy the checkpoint again ({type(error).__name__}:"
                f" {printable(str(error), 200)})"
            ) from None

    @classmethod
    def read(cls, storage: Storage) -> "ExternalCard":
        """Return the card of the checkpoint in a storage. Raises CheckpointError if there is none or if it is
        damaged.
        """
        try:
            return cls.parse(storage.get(CARD), storage.uri)
        except NoObject:
            raise CheckpointError(f"{storage.uri}: no {CARD}, so this is no external checkpoint") from None

    def is_whole(self, folder: Path) -> bool:
        """Return whether a folder has every file of the checkpoint, unchanged."""
        return all(
            (path := folder / name).is_file() and StoredFile.of(path) == stored
            for name, stored in self.files.items()
        )


def files_of(folder: Path) -> dict[str, StoredFile]:
    """Return every file below a folder by its path in it, the card left out."""
    return {
        path.relative_to(folder).as_posix(): StoredFile.of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CARD
    }


def store(folder: Path, storage: Storage, prefix: str, last: str = CARD) -> None:
    """Copy a folder's files to a storage below `prefix`, which ends in `/`; the file `last` comes after all
    others. Raises StorageError.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in sorted(names, key=lambda name: (name == last, name)):
        if name == last:
            storage.sync(prefix)  # a power failure must not leave it without the others
        if isinstance(storage, LocalStorage) and name != last:
            target = storage.root / prefix / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            shutil.copyfile(folder / name, part)
            os.replace(part, target)
        else:
            storage.put(prefix + name, (folder / name).read_bytes())
