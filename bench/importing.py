"""What importing costs: seconds per episode of each layout, beside encoding the same episodes, and the memory that a film of 1080p takes."""

import json
import resource
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import zarr

from bench import corpus
from orchestrator.data.episodes import Episode, encode
from orchestrator.data.export import export
from orchestrator.data.sources.source import Reading, open_source
from orchestrator.data.store import load_manifest, put_episode
from orchestrator.storage import open_storage

HZ = corpus.CONTRACT.control_hz
READINGS = {
    "robomimic HDF5": Reading(images="upright"),
    "LeRobot v3": Reading(),
    "zarr": Reading(task="Lift", hz=HZ, proprio=("state",)),
    "films": Reading(task="Lift"),
}


def write_layouts(folder: Path, store: str, episodes: list[Episode]) -> dict[str, Path]:
    """The episodes in each layout; `store` holds them too."""
    paths = {name: folder / name.replace(" ", "_") for name in READINGS}
    paths["robomimic HDF5"] = paths["robomimic HDF5"].with_suffix(".hdf5")
    _write_robomimic(paths["robomimic HDF5"], episodes)
    storage = open_storage(store)
    manifest = load_manifest(storage)
    list(export(storage, manifest.contract, list(manifest.entries), paths["LeRobot v3"]))
    _write_zarr(paths["zarr"], episodes)
    for episode in episodes:
        for camera, frames in episode.frames.items():
            _write_film(paths["films"] / f"{episode.episode_id}.{camera}.mp4", frames)
    return paths


def seconds_of_import(path: Path, layout: str, store: str) -> float:
    """From looking at a source to its last episode in a store, in this process."""
    storage, began = open_storage(store), time.perf_counter()
    source = open_source(path, READINGS[layout])
    assert not source.questions, source.questions
    assert not source.problems, source.problems
    for item in source.items:
        put_episode(storage, source.read(item), source.contract.control_hz)
    return time.perf_counter() - began


def seconds_of_encoding(episodes: list[Episode]) -> float:
    began = time.perf_counter()
    for episode in episodes:
        encode(episode, HZ)
    return time.perf_counter() - began


def write_1080p(path: Path, seconds: int) -> None:
    """A film of noise that moves, 30 frames a second."""
    noise = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), np.uint8)
    _write_film(path, (np.roll(noise, 8 * i, axis=1) for i in range(30 * seconds)), 30, {"preset": "ultrafast", "crf": "30"})


def peak_mib(mark: Callable[[], None], path: Path) -> float:
    """How much more memory a process takes at the most while it reads the film, 10 pictures of 64x64 a second."""
    source = open_source(path, Reading(cameras={"front": "front"}, task="Lift", image_size=(64, 64), resample_hz=10.0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source.read(source.items[0])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _write_robomimic(path: Path, episodes: list[Episode]) -> None:
    with h5py.File(path, "w") as file:
        kwargs = {"robots": ["Panda"], "control_freq": HZ}
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Lift", "env_version": "1.5.2", "type": 1, "env_kwargs": kwargs})
        for number, episode in enumerate(episodes):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = episode.action
            assert episode.proprio is not None
            for key, columns in (("robot0_eef_pos", slice(0, 3)), ("robot0_eef_quat", slice(3, 7)), ("robot0_gripper_qpos", slice(7, 9))):
                demo[f"obs/{key}"] = episode.proprio[:, columns]
            for camera, frames in episode.frames.items():
                demo.create_dataset(f"obs/{camera}_image", data=frames, chunks=(1, *frames.shape[1:]), compression="lzf")


def _write_zarr(path: Path, episodes: list[Episode]) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    arrays: dict[str, Any] = {camera: np.concatenate([episode.frames[camera] for episode in episodes]) for camera in corpus.CAMERAS}
    arrays |= {"state": np.concatenate([e.proprio for e in episodes]), "action": np.concatenate([e.action for e in episodes])}
    for name, values in arrays.items():
        group.create_array(f"data/{name}", data=values, chunks=(160, *values.shape[1:]))
    group.create_array("meta/episode_ends", data=np.cumsum([episode.length for episode in episodes]))


def _write_film(path: Path, frames: Any, hz: float = HZ, options: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(hz).limit_denominator(1000), options=options or {"crf": "18"})
        for number, picture in enumerate(frames):
            if not number:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
