"""The zarr replay buffers of Diffusion Policy and its descendants: every episode end to end in one array per key.

    data/action                     (N, A)
    data/agentview_image, img ...   (N, H, W, 3) pictures
    data/<vector>                   (N, D)
    meta/episode_ends               (E,) where each episode ends

A folder or a zip file, zarr's format 2 or 3. It names neither task nor rate: `--task`, `--instruction` and `--hz` do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from orchestrator.data.episodes import Episode
from orchestrator.data.sources.source import (
    Item,
    Pictures,
    Raw,
    Reading,
    SourceError,
    cameras_by_name,
    chosen_cameras,
    chosen_proprio,
    contract_of,
    finished,
    kept_frames,
    label_of,
    names_of,
    native_rate,
    orientation,
    origin,
    rows_of,
    width_of,
)
from policy.interface import Contract
from sim_workers.env import PROPRIO_KEYS
from sim_workers.tasks import TASKS


@dataclass
class ReplayBuffer:
    """A buffer's folder or zip file."""

    path: Path
    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _cameras: dict[str, str]
    _keys: dict[str, str]
    """Camera of the source -> its array."""
    _proprio: tuple[str, ...]
    _stored: str
    _native_hz: float
    _spans: dict[str, tuple[int, int]]
    """Item -> its first row and the row after its last."""

    def read(self, item: Item) -> Episode:
        first, last = self._spans[item.name]
        try:
            data = _open(self.path)["data"]
            raw = Raw(
                frames={camera: _colours(data[self._keys[camera]][first:last]) for camera in self._cameras},
                proprio=np.concatenate([rows_of(data[key][first:last]) for key in self._proprio], 1) if self._proprio else None,
                action=data["action"][first:last] if item.labelled else None,
                success=None,
            )
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise SourceError(f"{self.path.name}, {item.name}: it cannot be read ({' '.join(str(error).split())}); restore its chunks") from None
        return finished(item, raw, self.contract, self._cameras, self._stored, self._native_hz)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        first, _ = self._spans[item.name]
        data = _open(self.path)["data"]
        return {camera: _colours(data[self._keys[camera]][first : first + 1])[0] for camera in self._cameras}


def open_replay_buffer(path: Path, reading: Reading) -> ReplayBuffer:
    """Look at a buffer's arrays; SourceError if it is none, or does not say enough."""
    root, where = _open(path), str(path)
    try:
        data, ends = root["data"], [int(end) for end in root["meta/episode_ends"][:]]
        arrays = dict(sorted(data.arrays()))
    except (KeyError, ValueError, AttributeError) as error:
        message = " ".join(str(error).split())
        mend = (
            "it is compressed with a codec that is not installed"
            if "codec" in message
            else "it is no replay buffer with data/* and meta/episode_ends"
        )
        raise SourceError(f"{path}: {mend} ({message})") from None
    keys = cameras_by_name(name for name, array in arrays.items() if array.ndim == 4 and array.shape[-1] == 3)
    cameras = chosen_cameras(where, keys, reading)
    if not cameras:
        raise SourceError(f"{path}: it has no pictures among its arrays ({', '.join(sorted(arrays))})")
    labelled = not reading.action_free
    if labelled and "action" not in arrays:
        raise SourceError(f"{path}: it has no data/action; add --action-free to import its pictures")
    widths = {name: width_of(array) for name, array in arrays.items() if array.ndim <= 2 and array.dtype.kind == "f" and name != "action"}
    proprio, names = chosen_proprio(where, "arrays", widths, (PROPRIO_KEYS,), reading)
    sizes = {camera: (int(arrays[keys[camera]].shape[1]), int(arrays[keys[camera]].shape[2])) for camera in cameras}
    native_hz = native_rate(where, None, reading)
    stored, questions = orientation(path.name, "upright", "", reading)
    instruction = reading.instruction or TASKS.get(reading.task or "", "")
    if not reading.task:
        questions.append(f"{path.name}: it does not name its task; say it with --task")
    if not instruction:
        questions.append(f"{path.name}: it does not say in words what is done; say it with --instruction")
    action = names_of(["action"], [int(arrays["action"].shape[1])]) if labelled else ()
    contract = contract_of(where, cameras, sizes, names, action, native_hz, "unknown", reading)
    source = ReplayBuffer(path, "diffusion-policy zarr", contract, [], [], questions, cameras, keys, proprio, stored, native_hz, {})
    for number, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
        name = f"episode_{number:06d}"
        if last <= first or last > min(array.shape[0] for array in arrays.values()):
            source.problems.append(f"{path.name}, {name}: meta/episode_ends says rows {first} to {last}, which are not there; left out")
            continue
        length = len(kept_frames(last - first, native_hz, contract.control_hz))
        said = origin(f"{path.name}, {name}", stored, next(iter(sizes.values())), native_hz, contract)
        source.items.append(Item(name, f"{label_of(path, reading)}-{name}", reading.task or "", instruction, length, labelled, said))
        source._spans[name] = (first, last)
    return source


def _open(path: Path) -> Any:
    try:
        return zarr.open_group(zarr.storage.ZipStore(path, mode="r") if path.is_file() else str(path), mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: it cannot be read as zarr ({type(error).__name__}: {' '.join(str(error).split())})") from None


def _colours(pictures: Any) -> Pictures:
    """Bytes, whatever number type they are kept in; Diffusion Policy's own buffers hold them as floats up to 255."""
    if pictures.dtype == np.uint8:
        return np.asarray(pictures)
    return np.asarray(np.clip(np.round(pictures * (255 if pictures.max() <= 1 else 1)), 0, 255), np.uint8)
