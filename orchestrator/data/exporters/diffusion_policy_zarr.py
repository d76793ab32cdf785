"""Exporter of a store's episodes to a replay buffer of Diffusion Policy, a folder in zarr's format 2, which
Diffusion Policy, UMI and `orchestrator/data/importers/diffusion_policy_zarr.py` read.

    data/<camera>_image       (N, H, W, 3) uint8, upright
    data/state                (N, P) float32, the proprioception; absent if there is none
    data/action               (N, A) float32
    data/has_action           (N,) bool, only if some episodes have no actions: theirs are zeros
    meta/episode_ends         (E,) int64, the row after the last of each episode
    meta                      attributes episode_ids, tasks, instructions (one per episode), and
                              demoscale.contract (JSON, `Contract`)

Chunks are compressed with Blosc and Zstandard; those of pictures hold PICTURES_PER_CHUNK. meta/episode_ends
is written last.
"""

import json
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import Blosc

from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.exporters.roles import HAS_ACTION, read_episode, shown_contract
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import Storage
from policy.interface import Contract

PICTURES_PER_CHUNK = 16
ROWS_PER_CHUNK = 4096
"""Rows of a vector in one chunk."""
STATE, ACTION = "state", "action"
_ALL = {"write_empty_chunks": True}  # a chunk of zeros that is left out looks like one that was lost


def export_zarr(
    storage: Storage,
    contract: Contract,
    entries: Sequence[EpisodeEntry],
    folder: Path,
    action_free: Collection[str] = (),
    proprio: Sequence[int] | None = None,
) -> Generator[EpisodeEntry, None, None]:
    """Write the episodes to an empty or new folder, yielding each when it is written; one at a time is in
    memory.

    action_free: ids of episodes whose actions are not written. proprio: as for `roles.shown_contract`. Raises
    EpisodeError if the folder is not empty or a camera's name contains a slash.
    """
    if folder.exists() and any(folder.iterdir()):
        raise EpisodeError(f"{folder}: it is not empty; export into a new folder, or empty it first")
    if slashed := [camera for camera in contract.cameras if "/" in camera]:
        raise EpisodeError(
            f"{storage.uri}: camera {slashed[0]} has a slash in its name, which a replay buffer cannot"
            " express; import the episodes again with another name, demoscale import --cameras"
        )
    written = shown_contract(contract, proprio)
    root = zarr.open_group(str(folder), mode="a", zarr_format=2)
    data, meta = root.require_group("data"), root.require_group("meta")
    rows = sum(entry.length for entry in entries)
    arrays = {
        f"{camera}_image": _array(data, f"{camera}_image", (rows, *contract.image_size, 3), np.uint8)
        for camera in contract.cameras
    }
    arrays |= {
        name: _array(data, name, (rows, width), np.float32)
        for name, width in ((STATE, len(written.proprio)), (ACTION, len(contract.action)))
        if width
    }
    if action_free:
        arrays[HAS_ACTION] = _array(data, HAS_ACTION, (rows,), np.bool_)
    first, ends = 0, []
    for entry in entries:
        episode = read_episode(storage, contract, entry, action_free, proprio)
        values: dict[str, npt.NDArray[Any] | None] = {STATE: episode.proprio, ACTION: episode.action}
        values |= {f"{camera}_image": frames for camera, frames in episode.frames.items()}
        values[HAS_ACTION] = np.full(episode.length, entry.episode_id not in action_free)
        for name, array in arrays.items():
            array[first : first + episode.length] = values[name]
        first += episode.length
        ends.append(first)
        yield entry
    meta.attrs["episode_ids"] = [entry.episode_id for entry in entries]
    meta.attrs["tasks"] = [entry.task for entry in entries]
    meta.attrs["instructions"] = [entry.instruction for entry in entries]
    meta.attrs["demoscale.contract"] = json.dumps(written.to_json())
    meta.create_array("episode_ends", data=np.array(ends, np.int64), compressors=None, config=_ALL)


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: type[Any]) -> Any:
    rows = PICTURES_PER_CHUNK if len(shape) == 4 else ROWS_PER_CHUNK
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(min(rows, shape[0]), *shape[1:]),
        compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.SHUFFLE),
        config=_ALL,
    )
