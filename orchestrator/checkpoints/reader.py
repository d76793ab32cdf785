"""Reader of a checkpoint in a folder or below an s3:// prefix, as local files.

Checkpoints are untrusted input. Only the files of a checkpoint are read, JSON and safetensors, which contain
data and no code: a pickle next to them is never opened, and nothing outside the folder or prefix is read or
written, except weights that the checkpoint's storage keeps once (`policy/checkpoint_files.py`), by their
hash. The files of an external policy's checkpoint are copied, and opened by its own programs alone
(`external_card.py`).
"""

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.checkpoints import external_card
from orchestrator.checkpoints.external_card import ExternalCard
from orchestrator.storage.base import LocalStorage, NoObject, Storage, StorageError, open_storage
from policy.checkpoint_files import (
    FROZEN_CARD,
    FROZEN_NAME,
    CheckpointError,
    FrozenFile,
    fingerprint,
    frozen_card,
    frozen_files,
    link_files,
    not_there,
    read_frozen_card,
)

if TYPE_CHECKING:
    from policy.checkpoint import Card

PARTS = re.compile(
    r"checkpoint\.json|(heads|text)\.safetensors|(unet|vae|text_encoder)/[\w.-]+\.(json|safetensors)"
    r"|tokenizer/[\w.-]+\.(json|txt)"
)
"""Names of the files that acting needs, of those that `policy/checkpoint.py` writes."""


@contextmanager
def open_checkpoint(uri: str) -> Iterator[Path]:
    """Yield a temporary folder with the checkpoint's files and no others; a CheckpointError raised meanwhile
    names the `uri` instead of it.

    Raises StorageError if the place cannot be read or a file leads out of it, CheckpointError if there is no
    checkpoint.
    """
    with tempfile.TemporaryDirectory() as name:
        fetch(uri, Path(name), link=True)
        try:
            yield Path(name)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(name, uri)) from None


def fetch(uri: str, folder: Path, link: bool = False) -> None:
    """Copy the checkpoint's files into the folder; `link`: symlink those that are local files already. Raises
    the errors of `open_checkpoint`.
    """
    storage, frozen = open_storage(uri), dict[str, FrozenFile]()
    if storage.exists("checkpoint.json"):
        if storage.exists(FROZEN_CARD):
            frozen = read_frozen_card(storage.get(FROZEN_CARD), uri)
        keys = [*filter(PARTS.fullmatch, storage.list(""))]
    elif storage.exists(external_card.CARD):
        keys = [*ExternalCard.read(storage).files, external_card.CARD]
    else:
        raise CheckpointError(
            f"{uri}: no checkpoint.json, so this is not a demoscale checkpoint; correct the path"
        )
    for key in keys:
        _bring(storage, key, folder / key, link)
    bring_frozen(uri, frozen, folder, link)


def bring_frozen(uri: str, frozen: Mapping[str, FrozenFile], folder: Path, link: bool = False) -> None:
    """Copy files that the storage of the checkpoint at `uri` keeps once into the folder, or link them. Raises
    CheckpointError if one is missing or damaged.
    """
    if not frozen:
        return
    root = open_storage(uri.rstrip("/").rsplit("/", 3)[0])
    for name, file in frozen.items():
        if not root.exists(file.key):
            raise not_there(uri, name)
        _bring(root, file.key, folder / name, link)
        if not link and FrozenFile.of(folder / name) != file:
            raise CheckpointError(f"{root.uri}: {file.key} is damaged; restore it, or train the arm again")


def _bring(storage: Storage, key: str, target: Path, link: bool) -> None:
    """Copy an object into a file, or link it if it is a file already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(storage, LocalStorage):
        target.write_bytes(storage.get(key))
    elif link:
        target.symlink_to(_inside(storage, key))
    else:
        shutil.copyfile(_inside(storage, key), target)


@contextmanager
def to_resume(folder: Path, uri: str) -> Iterator[Path]:
    """Yield a folder with all files of a checkpoint, the trainer's state among them: `folder`, or one of
    links to its files and to those that the storage of the checkpoint at `uri` keeps once.

    Raises StorageError if the storage cannot be read, CheckpointError if a file is missing or damaged.
    """
    if not (frozen := frozen_files(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        link_files(folder, Path(name))
        bring_frozen(uri, frozen, Path(name), link=True)
        yield Path(name)


def keep_frozen(folder: Path, storage: Storage, parts: Collection[str]) -> None:
    """Move weight files of a new checkpoint to where its storage keeps them once, and write frozen.json.

    parts: subfolders of the checkpoint whose weights training leaves as they are. The fingerprint stays. What
    the storage has already is not written again. Raises StorageError.
    """
    frozen = {}
    for path in sorted(folder.glob("*/*")):
        if path.parent.name in parts and FROZEN_NAME.fullmatch(name := path.relative_to(folder).as_posix()):
            frozen[name] = file = FrozenFile.of(path)
            if not storage.exists(file.key):
                storage.put_file(file.key, path)
            path.unlink()
    if frozen:
        (folder / FROZEN_CARD).write_bytes(frozen_card(frozen))


def export_checkpoint(uri: str, folder: Path, expected: str = "") -> str:
    """Copy a checkpoint into the new folder with all files that acting needs; return its fingerprint.

    expected: its fingerprint; empty if it is not known. Raises StorageError and CheckpointError as
    `open_checkpoint`, also if the folder exists; an incomplete copy is removed.
    """
    if folder.exists():
        raise CheckpointError(f"{folder}: it exists; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as name:
        part = Path(name) / folder.name
        part.mkdir()
        fetch(uri, part)
        found = fingerprint(part)
        if expected and found != expected:
            raise CheckpointError(
                f"{uri}: the checkpoint has the fingerprint {found}, expected is {expected}: it was replaced"
                " or damaged; restore it"
            )
        os.replace(part, folder)
    return found


def card_of(uri: str) -> tuple["Card", str]:
    """Return the policy's card, and its fingerprint, its key in a sweep's ledger.

    Raises CheckpointError if the checkpoint is damaged or not demoscale's, StorageError if it cannot be read.
    """
    from policy.checkpoint import load_card

    with open_checkpoint(uri) as folder:
        return load_card(folder), fingerprint(folder)


def is_complete(uri: str, expected: str) -> bool:
    """Return whether the place has the checkpoint of this fingerprint, and a trainer's state, if any, that is
    not truncated.

    A full disk or a power failure leaves incomplete folders. Raises StorageError if the place cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_checkpoint(uri) as folder:
            if fingerprint(folder) != expected:
                return False
        # an object of a bucket is complete or missing
        if isinstance(place := open_storage(uri), LocalStorage) and place.exists("trainer.safetensors"):
            with safe_open(place.root / "trainer.safetensors", "numpy"):
                pass
    except (CheckpointError, SafetensorError, NoObject):
        return False
    return True


def _inside(place: LocalStorage, key: str) -> Path:
    file = (place.root / key).resolve()
    if not file.is_relative_to(place.root.resolve()):
        raise StorageError(
            f"{place.uri}: {key} is a link out of the folder, to {file}; copy the file itself there"
        )
    return file
