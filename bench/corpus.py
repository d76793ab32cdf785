"""Episodes that benches read: genuine recordings of Lift, made longer and more, as our store and as HDF5; and
their pictures in our codec and others.

python -m bench.corpus FOLDER EPISODES   record them; in a process of its own, since a simulator is one per
                                         process
"""

import hashlib
import io
import subprocess
import sys
import time
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data import episode_format
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


def record(folder: Path, episodes: int) -> None:
    """Record episodes of Lift, one file each."""
    from sim_workers.demos.recorder import Demonstration, demonstrate
    from sim_workers.envs.robosuite import SimEnv

    env = SimEnv("Lift", CONTRACT)
    for seed in range(episodes):
        recording = demonstrate(env, Demonstration("Lift", seed, 0.3))
        np.savez(
            folder / f"{seed}.npz", proprio=recording.proprio, action=recording.action, **recording.frames
        )


def recorded(folder: Path, number: int = RECORDED) -> list[Episode]:
    """The recordings, LENGTH frames each: played forwards and backwards until they are that long."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench.corpus", str(folder), str(number)],
        cwd=CHECKOUT,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    episodes = []
    for seed in range(number):
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
    return Manifest.of_table(manifest.contract, table.set_column(0, "episode_id", ids).unify_dictionaries())


# -- codecs --------------------------------------------------------------------------------------------------

_SAME = {"preset": "medium", "g": "8", "bf": "0"}
CODECS = {
    "H.264 as RGB, crf 18, fastdecode (ours)": (
        episode_format.CODEC,
        episode_format.PIXEL_FORMAT,
        episode_format.CODEC_OPTIONS,
    ),
    "H.264 as RGB, crf 18": ("libx264rgb", "bgr24", {**_SAME, "crf": "18"}),
    "H.264 yuv420p, crf 18, fastdecode": ("libx264", "yuv420p", {**_SAME, "crf": "18", "tune": "fastdecode"}),
    "H.264 yuv420p, crf 18": ("libx264", "yuv420p", {**_SAME, "crf": "18"}),
    "H.264 yuv444p, crf 10": ("libx264", "yuv444p", {**_SAME, "crf": "10"}),
}


@dataclass(frozen=True)
class CodecCost:
    """Size, fidelity and decoding speed of pictures in one codec."""

    kib: float
    """Per 100 frames of one camera."""
    psnr: float
    """dB, over all pixels of all frames."""
    decoded: float
    """Frames per CPU second, one film after another, as RGB arrays."""


def _film(
    frames_LHW3: npt.NDArray[np.uint8], codec: str, pixel_format: str, options: dict[str, str]
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(20), options=options)
        stream.height, stream.width = frames_LHW3.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        for picture in frames_LHW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def compare(recorded: list[Episode], repeat: int) -> dict[str, CodecCost]:
    """Every codec on the same pictures; decoded `repeat` times in turns, the fastest counts."""
    pictures = [frames for episode in recorded for frames in episode.frames.values()]
    numbers = [np.arange(len(frames)) for frames in pictures]
    total = sum(map(len, pictures))
    films = {name: [_film(frames, *how) for frames in pictures] for name, how in CODECS.items()}
    fastest = dict.fromkeys(CODECS, float("inf"))
    squares = {}
    for turn in range(repeat):
        for name, kept in films.items():
            began = time.process_time()
            decoded = [
                episode_format._decode_video(film, which, len(which))
                for film, which in zip(kept, numbers, strict=True)
            ]
            fastest[name] = min(fastest[name], time.process_time() - began)
            if turn == 0:
                squares[name] = np.mean(
                    [np.mean((a.astype(np.float32) - b) ** 2) for a, b in zip(pictures, decoded, strict=True)]
                )
    return {
        name: CodecCost(
            sum(map(len, kept)) / 1024 / total * 100,
            float(10 * np.log10(255**2 / squares[name])),
            total / fastest[name],
        )
        for name, kept in films.items()
    }


if __name__ == "__main__":
    record(Path(sys.argv[1]), int(sys.argv[2]))
