"""The ways of getting clips that bench/data.py compares, and the limits it tries; each runs in a process of
its own (`bench.harness.Child`).

All give the same clips in the same sequence: that of an ClipSampler over every episode of the store.
"""

import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bench.corpus import CAMERAS, SHAPE
from orchestrator.config.arms import Arm
from orchestrator.data import clip_stream as stream
from orchestrator.data.clip_sampler import ClipSampler, Draw
from orchestrator.data.clips import shown_frames
from orchestrator.data.episode_format import decode
from orchestrator.data.episode_store import fetch, load_manifest
from orchestrator.data.manifest import Manifest
from orchestrator.data.subset import select_episodes
from orchestrator.storage.base import open_storage

BATCH = 16  # clips
WARM_UP = 8  # batches before anything is counted
LOADER_WARM_UP = 2  # likewise of a DataLoader: each of its workers has opened the file and made one
BEYOND = 40  # batches that are never asked for, so that nothing runs dry while it is counted
LOADER_WORKERS = 2
ARM_DEMOS, ARM_STEPS = 1_000, 20_000  # of a large arm

Marker = Callable[[], None]


def order_of(manifest: Manifest, demos: tuple[str, ...] | None = None) -> ClipSampler:
    entries = tuple(manifest.select(manifest.episode_ids if demos is None else demos, with_stats=False))
    return ClipSampler(entries, (), manifest.fingerprint, seed=0, rank=0, world=1, batch_size=BATCH)


def draws(order: ClipSampler, batches: int) -> Iterator[Draw]:
    """Of the warm-up and of the batches that count."""
    return islice(order.walk(), (WARM_UP + batches) * BATCH)


def _counted(made: Iterator[Any], mark: Marker, warm_up: int, batches: int) -> None:
    for number, _ in enumerate(made, 1):
        if number in (warm_up, warm_up + batches):
            mark()
        if number == warm_up + batches:
            return


# -- ours ----------------------------------------------------------------------------------------------------


def join(mark: Marker, environment: dict[str, str], idle_s: float) -> None:
    """Start Ray as a training worker finds it; the process is idle between the two marks."""
    os.environ.update(environment)
    from orchestrator.cluster.ray_runtime import connect, quiet

    quiet()
    connect()
    import ray.data  # noqa: F401

    time.sleep(5)  # Ray's own processes are busy when they start
    mark()
    time.sleep(idle_s)
    mark()


def pipeline(mark: Marker, uri: str, batches: int, cluster: bool) -> None:
    """What orchestrator/training/ray_train.py reads, as tensors. cluster: with `data.decode: cluster`."""
    import torch

    from orchestrator.data.ray_prefetch import RayDataDecoder, RayDataFetcher

    manifest = load_manifest(open_storage(uri))
    mark()
    made = stream.batches(
        uri,
        manifest.contract,
        order_of(manifest),
        SHAPE,
        first_step=0,
        num_steps=WARM_UP + batches + BEYOND,
        fetcher=RayDataFetcher(),
        decoder=RayDataDecoder() if cluster else None,
    )
    _counted((batch.to(torch.device("cpu")) for batch in made), mark, WARM_UP, batches)
    made.close()  # type: ignore[attr-defined]


# -- others --------------------------------------------------------------------------------------------------


def bare(mark: Marker, uri: str, batches: int) -> None:
    """Only the decoding that the clips take, from bytes in memory."""
    storage, manifest = open_storage(uri), load_manifest(open_storage(uri))
    data = {entry.sha256: fetch(storage, entry) for entry in manifest.entries}
    mark()
    for place, draw in enumerate(draws(order_of(manifest), batches)):
        if place == WARM_UP * BATCH:
            mark()
        if draw.opens:
            entry = draw.visit.entry
            wanted = shown_frames(draw.visit.starts, entry.length, SHAPE).ravel().tolist()
            decode(data[entry.sha256], CAMERAS, draw.visit.with_actions, wanted)
    mark()


class Hdf5Clips:
    """A map-style data set over robomimic-style HDF5, opened once per worker, reading the frames a clip shows
    and no others.
    """

    def __init__(self, path: Path, clips: list[tuple[int, int]]) -> None:
        self._path, self._clips = path, clips
        self._file: Any = None

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, place: int) -> dict[str, npt.NDArray[Any]]:
        self._file = self._file or h5py.File(self._path, "r")
        number, start = self._clips[place]
        demo = self._file[f"data/demo_{number}"]
        length = demo["actions"].shape[0]
        seen = read_frames(start, length)
        done = start + np.arange(SHAPE.horizon)
        shown = np.minimum(np.arange(SHAPE.frames_per_view), len(seen) - 1)
        actions = demo["actions"][start : start + SHAPE.horizon]
        return {
            "frames": np.stack(
                [demo[f"obs/{camera}_image"][seen.start : seen.stop : seen.step][shown] for camera in CAMERAS]
            ),
            "proprio": demo["obs/proprio"][start],
            "actions": actions[np.minimum(np.arange(SHAPE.horizon), len(actions) - 1)],
            "action_mask": (done < length).astype(np.float32),
            "frame_mask": (np.arange(SHAPE.frames_per_view) < len(seen)).astype(np.float32),
        }


def read_frames(start: int, length: int) -> range:
    """Numbers of the frames that the clip at `start` reads; past the end it repeats the last of them."""
    return range(start, length, SHAPE.frame_stride)[: SHAPE.frames_per_view]


def hdf5(mark: Marker, uri: str, path: Path, batches: int) -> None:
    """Torch's DataLoader over an HDF5 file."""
    from torch.utils.data import DataLoader

    order = order_of(load_manifest(open_storage(uri)))
    clips = [
        (int(draw.visit.entry.episode_id.rpartition("-")[2]), draw.start)
        for draw in draws(order, batches + BEYOND)
    ]
    mark()
    source: Any = Hdf5Clips(path, clips)
    loader = iter(DataLoader(source, batch_size=BATCH, num_workers=LOADER_WORKERS))
    _counted(loader, mark, LOADER_WARM_UP, batches)


# -- limits --------------------------------------------------------------------------------------------------


def first_batch(mark: Marker, uri: str) -> tuple[float, float, float]:
    """Seconds until the manifest was there, until the arm's episodes were chosen, until the first batch."""
    from orchestrator.data.ray_prefetch import RayDataFetcher

    began = time.monotonic()
    manifest = load_manifest(open_storage(uri))
    loaded = time.monotonic()
    order = order_of(manifest, select_episodes(manifest, Arm(ARM_DEMOS, 0, seed=0)).demos)
    chosen = time.monotonic()
    made = stream.batches(
        uri,
        manifest.contract,
        order,
        SHAPE,
        first_step=0,
        num_steps=ARM_STEPS,
        fetcher=RayDataFetcher(),
    )
    next(made)
    seconds = tuple(moment - began for moment in (loaded, chosen, time.monotonic()))
    made.close()  # type: ignore[attr-defined]
    return seconds  # type: ignore[return-value]


def selection(mark: Marker, uri: str, demos: int) -> tuple[float, float]:
    """Seconds and GiB that it takes to choose an arm's episodes and to read their rows, with all that the
    process holds.
    """
    began = time.monotonic()
    manifest = load_manifest(open_storage(uri))
    subset = select_episodes(manifest, Arm(demos, 1.0, seed=0))
    manifest.select(subset.demos)
    manifest.select(subset.action_free)
    seconds = time.monotonic() - began
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return seconds, peak / 2**20


def epochs(mark: Marker, uri: str, object_store: int, count: int) -> int:
    """Stream a whole store `count` times, on a Ray of its own, with a mark before the first epoch and after
    each; return the bound of its memory in bytes.
    """
    import ray

    from orchestrator.cluster.ray_runtime import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    ray.init(
        object_store_memory=object_store, logging_level="ERROR", log_to_driver=False, include_dashboard=False
    )
    manifest = load_manifest(open_storage(uri))
    order = order_of(manifest)
    per_epoch = sum(entry.length for entry in order.demos) // BATCH
    from orchestrator.data.ray_prefetch import RayDataFetcher

    mark()
    made = stream.batches(
        uri,
        manifest.contract,
        order,
        SHAPE,
        first_step=0,
        num_steps=count * per_epoch,
        fetcher=RayDataFetcher(),
    )
    for number, _ in enumerate(made, 1):
        if number % per_epoch == 0:
            mark()
    ray.shutdown()
    return stream.memory_bound(manifest.contract, SHAPE, order.demos, BATCH, action_free=False)
