"""What bench/data.py reads: genuine recordings of Lift, made longer and more, as our store and as HDF5.

python -m bench.corpus FOLDER        record them; in a process of its own, since a simulator is one per
                                     process
"""

import hashlib
import io
import subprocess
import sys
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.episode_format import Episode, read_parquet
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.provenance import CHECKOUT
from orchestrator.storage.base import open_storage
from policy.config import ClipShape
from sim_workers.envs.robosuite import contract

RECORDED = 5
LENGTH = 100  # frames
CAMERAS = ("agentview", "robot0_eye_in_hand")
CONTRACT = contract(CAMERAS, (128, 128), "fast")
SHAPE = ClipShape(frames_per_view=9, frame_stride=4, horizon=16)


def record(folder: Path) -> None:
    """RECORDED episodes of Lift, one file each."""
    from sim_workers.demos.recorder import Demonstration, demonstrate
    from sim_workers.envs.robosuite import SimEnv

    env = SimEnv("Lift", CONTRACT)
    for seed in range(RECORDED):
        recording = demonstrate(env, Demonstration("Lift", seed, 0.3))
        np.savez(
            folder / f"{seed}.npz", proprio=recording.proprio, action=recording.action, **recording.frames
        )


def recorded(folder: Path) -> list[Episode]:
    """The recordings, LENGTH frames each: played forwards and backwards until they are that long."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench.corpus", str(folder)],
        cwd=CHECKOUT,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    episodes = []
    for seed in range(RECORDED):
        with np.load(folder / f"{seed}.npz") as arrays:
            length = len(arrays["action"])
            there_and_back = np.concatenate([np.arange(length), np.arange(length - 2, 0, -1)])
            numbers = np.resize(there_and_back, LENGTH)
            frames = {camera: arrays[camera][numbers] for camera in CAMERAS}
            proprio, action = arrays["proprio"][numbers], arrays["action"][numbers]
        episodes.append(
            Episode(f"Lift-{seed}", "Lift", "lift the cube", frames, proprio, action, True, "scripted expert")
        )
    return episodes


def variant(episodes: list[Episode], number: int) -> Episode:
    """One of endlessly many episodes that look different: rolled, mirrored, brighter or darker."""
    rng = np.random.default_rng(number)
    base = episodes[number % len(episodes)]
    across, gain, mirrored = int(rng.integers(0, 128)), rng.uniform(0.8, 1.2), bool(rng.integers(0, 2))
    frames = {}
    for camera, pictures in base.frames.items():
        rolled = np.roll(pictures, across, axis=2)
        table = np.minimum(np.arange(256) * gain, 255).astype(np.uint8)
        frames[camera] = np.ascontiguousarray(table[rolled[:, :, ::-1] if mirrored else rolled])
    return replace(base, episode_id=f"Lift-{number:06d}", frames=frames)


def _put(uri: str, episode: Episode) -> EpisodeEntry:
    return put_episode(open_storage(uri), episode, CONTRACT.control_hz)


def write_store(uri: str, episodes: list[Episode], executor: Executor) -> Manifest:
    """Our own store, as `demoscale collect` leaves it."""
    entries = list(executor.map(_put, [uri] * len(episodes), episodes))
    return commit(open_storage(uri), CONTRACT, entries)


def write_heavy_store(uri: str, episode: Episode, mib: int) -> Manifest:
    """Episodes of a few frames and one MiB that nothing compresses, in a column no policy reads: much to
    fetch, little to decode.
    """
    storage = open_storage(uri)
    short = replace(
        episode, frames={camera: pictures[:8] for camera, pictures in episode.frames.items()}, numbers=None
    )
    short = replace(short, proprio=episode.proprio[:8], action=episode.action[:8])  # type: ignore[index]
    entry, rng = _put(uri, short), np.random.default_rng(0)
    table, entries = read_parquet(storage.get(entry.key)), []
    for number in range(mib):
        buffer = io.BytesIO()
        pq.write_table(
            table.append_column("ballast", pa.array([rng.bytes(2**20)], pa.binary())),
            buffer,
            compression="none",
        )
        data = buffer.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        key = f"objects/{sha256[:2]}/{sha256}.parquet"
        storage.put(key, data)
        entries.append(
            replace(entry, episode_id=f"Lift-{number:06d}", key=key, nbytes=len(data), sha256=sha256)
        )
    return commit(storage, CONTRACT, entries)


def write_hdf5(path: Path, episodes: list[Episode], compression: str | None) -> None:
    """As robomimic's converter writes demonstrations with pictures."""
    with h5py.File(path, "w") as file:
        for number, episode in enumerate(episodes):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = episode.length
            demo["actions"], demo["obs/proprio"] = episode.action, episode.proprio
            for camera, pictures in episode.frames.items():
                demo.create_dataset(f"obs/{camera}_image", data=pictures, compression=compression)


def many_names(manifest: Manifest, rows: int) -> Manifest:
    """A manifest of so many episodes, each one of the given manifest's under another name."""
    few = manifest._file.read()
    table = few.take(np.arange(rows) % len(few))
    ids = pa.array([f"Lift-{number:08d}" for number in range(rows)])
    return Manifest._of_table(manifest.contract, table.set_column(0, "episode_id", ids).unify_dictionaries())


if __name__ == "__main__":
    record(Path(sys.argv[1]))
