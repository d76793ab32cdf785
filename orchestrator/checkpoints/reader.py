"""Reader of a checkpoint in a folder or below an s3:// prefix, as local files.

Checkpoints are untrusted input. Only the files of a checkpoint are read, JSON and safetensors, which contain
data and no code: a pickle next to them is never opened, and nothing outside the folder or prefix is read or
written. The files of an external policy's checkpoint are copied, and opened by its own programs alone
(`external_card.py`).
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.checkpoints import external_card
from orchestrator.checkpoints.external_card import ExternalCard
from orchestrator.storage.base import LocalStorage, NoObject, StorageError, open_storage
from policy.checkpoint_files import CheckpointError, fingerprint

if TYPE_CHECKING:
    from policy.checkpoint import Card

PARTS = re.compile(r"checkpoint\.json|(heads|text)\.safetensors|(unet|vae)/[\w.-]+\.(json|safetensors)")
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
    storage = open_storage(uri)
    if storage.exists("checkpoint.json"):
        keys = [*filter(PARTS.fullmatch, storage.list(""))]
    elif storage.exists(external_card.CARD):
        keys = [*ExternalCard.read(storage).files, external_card.CARD]
    else:
        raise CheckpointError(
            f"{uri}: no checkpoint.json, so this is not a demoscale checkpoint; correct the path"
        )
    for key in keys:
        target = folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(storage, LocalStorage):
            target.write_bytes(storage.get(key))
        elif link:
            target.symlink_to(_inside(storage, key))
        else:
            shutil.copyfile(_inside(storage, key), target)


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
