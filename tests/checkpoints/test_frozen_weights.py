"""Weights that a storage keeps once: checkpoints with and without them are the same policies."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUCKET
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.checkpoints.node_cache import cached_checkpoint
from orchestrator.checkpoints.reader import (
    export_checkpoint,
    fetch,
    is_complete,
    keep_frozen,
    open_checkpoint,
    to_resume,
)
from orchestrator.storage.base import open_storage
from orchestrator.testing.checkpoints import make_checkpoint, make_observation
from policy.checkpoint import load, load_weights
from policy.checkpoint_files import FROZEN_CARD, CheckpointError, fingerprint
from policy.inference import TrainedPolicy

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two checkpoints of one U-Net with different heads, with the trainer's state."""
    root = tmp_path_factory.mktemp("originals")
    first = make_checkpoint(root / "first")
    second = shutil.copytree(first, root / "second")
    heads = load_file(second / "heads.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in heads.items()}, second / "heads.safetensors")
    return [first, second]


def stored(originals: list[Path], uri: str) -> list[str]:
    """Store the checkpoints as a training run with a frozen U-Net does; return their URIs."""
    storage, places = open_storage(uri), []
    for step, original in enumerate(originals, 1):
        folder = shutil.copytree(original, original.parent / "upload")
        keep_frozen(folder, storage, ("vae", "unet"))
        for file in filter(Path.is_file, folder.rglob("*")):
            storage.put(f"arms/run/step_{step:06d}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        shutil.rmtree(folder)
        places.append(f"{storage.uri}/arms/run/step_{step:06d}")
    return places


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "runs")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{tmp_path.name}"


def actions(folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return TrainedPolicy(folder).act([make_observation(0)])[0].actions


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_checkpoints_of_one_unet_store_it_once_and_read_as_whole_ones(
    originals: list[Path], place: str, tmp_path: Path
) -> None:
    uris, names = stored(originals, place), [fingerprint(folder) for folder in originals]
    sizes = open_storage(place).sizes("")
    (shared,) = (key for key in sizes if key.startswith("frozen/"))
    assert sizes[shared] == (originals[0] / UNET).stat().st_size
    assert not any(key.endswith(UNET) for key in sizes)
    for uri, name, original in zip(uris, names, originals, strict=True):
        assert is_complete(uri, name), "the fingerprint is that of all files"
        with open_checkpoint(uri) as folder:
            assert fingerprint(folder) == name
        cached = cached_checkpoint(uri, name, tmp_path / "node")
        assert equal(load_weights(cached), load_weights(original))
    assert names[0] != names[1]
    assert export_checkpoint(uris[0], tmp_path / "whole", names[0]) == names[0]
    for key in sizes:
        open_storage(place).delete(key)
    assert not (tmp_path / "whole" / FROZEN_CARD).exists()
    assert equal(load_weights(tmp_path / "whole"), load_weights(originals[0]))
    with pytest.raises(CheckpointError, match="it exists; name a new folder"):
        export_checkpoint(uris[0], tmp_path / "whole")


def test_stored_folder_loads_and_resumes_where_it_lies(originals: list[Path], tmp_path: Path) -> None:
    uris = stored(originals, str(tmp_path / "runs"))
    assert fingerprint(Path(uris[1])) == fingerprint(originals[1]), "without reading the U-Net"
    assert np.array_equal(actions(Path(uris[1])), actions(originals[1]))
    elsewhere = shutil.copytree(uris[0], tmp_path / "fetched")  # as Ray Train fetches it from a bucket
    with to_resume(elsewhere, uris[0]) as folder:
        names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        assert names >= {UNET, "heads.safetensors", "trainer.safetensors"}
    with to_resume(originals[0], uris[0]) as folder:
        assert folder == originals[0], "a checkpoint of an earlier version has every file"


def test_copy_of_a_stored_folder_alone_raises_with_the_command(originals: list[Path], tmp_path: Path) -> None:
    uris = stored(originals, str(tmp_path / "runs"))
    alone = shutil.copytree(uris[0], tmp_path / "a" / "b" / "c" / "alone")
    for read in (lambda: fetch(str(alone), tmp_path / "copy"), lambda: load(alone)):
        with pytest.raises(CheckpointError, match=f"its storage keeps {UNET} .* `demoscale export-policy`"):
            read()


def test_damaged_shared_weights_are_no_complete_checkpoint(originals: list[Path], tmp_path: Path) -> None:
    uris = stored(originals, str(tmp_path / "runs"))
    (shared,) = (tmp_path / "runs" / "frozen").iterdir()
    data = bytearray(shared.read_bytes())
    data[-1] ^= 1
    shared.write_bytes(data)
    assert not is_complete(uris[0], fingerprint(originals[0]))
    with pytest.raises(CheckpointError, match=f"frozen/{shared.name} is damaged; restore it"):
        fetch(uris[0], tmp_path / "copy")


@pytest.mark.parametrize(
    "card",
    [
        {"../../secret.safetensors": {"size": 1, "sha256": "0" * 64}},
        {"heads.safetensors": {"size": 1, "sha256": "0" * 64}},
        {UNET: {"size": 1, "sha256": "../../../etc/passwd"}},
        {UNET: 7},
        [],
    ],
)
def test_untrusted_frozen_card_raises_and_reads_nothing(
    originals: list[Path], tmp_path: Path, card: object
) -> None:
    folder = shutil.copytree(originals[0], tmp_path / "runs" / "arms" / "run" / "step_000001")
    (folder / FROZEN_CARD).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"frozen.json is damaged; copy the checkpoint again"):
        fetch(str(folder), tmp_path / "copy")
