"""Does importing cost little more than encoding what it stores, and is its memory independent of how long a
film is?

    python -m bench.imports              two minutes
    python -m bench.imports --quick

The same episodes in four layouts, imported in one process by turns with encoding them alone; and a film of
1080p of a quarter of the length.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import zarr

from bench import corpus, harness
from bench.harness import Child
from orchestrator.data.episode_format import Episode, encode
from orchestrator.data.episode_store import load_manifest, put_episode
from orchestrator.data.exporters.lerobot_v3 import export
from orchestrator.data.importers.base import ImportOptions, open_source
from orchestrator.storage.base import open_storage

HZ = corpus.CONTRACT.control_hz
READINGS = {
    "robomimic HDF5": ImportOptions(images="upright"),
    "LeRobot v3": ImportOptions(),
    "zarr": ImportOptions(task="Lift", hz=HZ, proprio=("state",)),
    "films": ImportOptions(task="Lift"),
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
    _write_film(
        path,
        (np.roll(noise, 8 * i, axis=1) for i in range(30 * seconds)),
        30,
        {"preset": "ultrafast", "crf": "30"},
    )


def peak_mib(mark: Callable[[], None], path: Path) -> float:
    """How much more memory a process takes at the most while it reads the film, 10 pictures of 64x64 a
    second.
    """
    source = open_source(
        path, ImportOptions(cameras={"front": "front"}, task="Lift", image_size=(64, 64), resample_hz=10.0)
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = _peak_kib()
    source.read(source.items[0])
    return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1])


def _write_robomimic(path: Path, episodes: list[Episode]) -> None:
    with h5py.File(path, "w") as file:
        kwargs = {"robots": ["Panda"], "control_freq": HZ}
        file.create_group("data").attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_version": "1.5.2", "type": 1, "env_kwargs": kwargs}
        )
        for number, episode in enumerate(episodes):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = episode.action
            assert episode.proprio is not None
            for key, columns in (
                ("robot0_eef_pos", slice(0, 3)),
                ("robot0_eef_quat", slice(3, 7)),
                ("robot0_gripper_qpos", slice(7, 9)),
            ):
                demo[f"obs/{key}"] = episode.proprio[:, columns]
            for camera, frames in episode.frames.items():
                demo.create_dataset(
                    f"obs/{camera}_image", data=frames, chunks=(1, *frames.shape[1:]), compression="lzf"
                )


def _write_zarr(path: Path, episodes: list[Episode]) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    arrays: dict[str, Any] = {
        camera: np.concatenate([episode.frames[camera] for episode in episodes]) for camera in corpus.CAMERAS
    }
    arrays |= {
        "state": np.concatenate([e.proprio for e in episodes]),
        "action": np.concatenate([e.action for e in episodes]),
    }
    for name, values in arrays.items():
        group.create_array(f"data/{name}", data=values, chunks=(160, *values.shape[1:]))
    group.create_array("meta/episode_ends", data=np.cumsum([episode.length for episode in episodes]))


def _write_film(path: Path, frames: Any, hz: float = HZ, options: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            "libx264", rate=Fraction(hz).limit_denominator(1000), options=options or {"crf": "18"}
        )
        for number, picture in enumerate(frames):
            if not number:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
            )
        container.mux(stream.encode(None))


def per_episode(root: Path, episodes: list[Episode], rounds: int) -> tuple[dict[str, float], float]:
    """Seconds per episode of each way, and how many times as long an import takes as encoding alone."""
    for name in ("store", "layouts"):
        (root / name).mkdir()
    with ProcessPoolExecutor(2) as executor:
        corpus.write_store(str(root / "store"), episodes, executor)
    ways: dict[str, Callable[[], float]] = {"encoding": partial(seconds_of_encoding, episodes)}
    for layout, path in write_layouts(root / "layouts", str(root / "store"), episodes).items():
        ways[layout] = partial(seconds_of_import, path, layout, str(root / f"imported-{path.stem}"))
    seconds = harness.interleaved(ways, rounds)
    imports = [statistics.mean(took) for took in zip(*(seconds[layout] for layout in READINGS), strict=True)]
    each = {name: statistics.median(took) / len(episodes) for name, took in seconds.items()}
    return each | {"import": statistics.median(imports) / len(episodes)}, harness.median_ratio(
        imports, seconds["encoding"]
    )


def peak_of_film(root: Path, seconds: int) -> float:
    """MiB that reading a film of 1080p takes, in a process of its own."""
    path = root / f"film-{seconds}" / "a.front.mp4"
    write_1080p(path, seconds)
    with Child() as child:
        return float(child.run(peak_mib, path.parent)[1])


@harness.command("imports")
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    made_of, count, rounds, short_s, long_s = (2, 3, 3, 1, 2) if quick else (5, 10, 5, 10, 40)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "recorded").mkdir()
        recorded = corpus.recorded(root / "recorded", made_of)
        seconds, ratio = per_episode(
            root, [corpus.variant(recorded, number) for number in range(count)], rounds
        )
        short, long = peak_of_film(root, short_s), peak_of_film(root, long_s)
    print(
        f"{count} episodes of {corpus.LENGTH} steps, 2 cameras of 128x128; {rounds} rounds by turns,"
        " medians\n"
    )
    print(f"{'':<20}{'s per episode':>14}")
    for way, took in seconds.items():
        print(f"{way:<20}{took:>14.3f}")
    print(
        f"\na film of 1080p, kept at 64x64: {short:.0f} MiB for {short_s} s of it, {long:.0f} MiB for"
        f" {long_s} s\n"
    )
    return {
        "import_s_per_episode": seconds["import"],
        "import_ratio_to_encoding": ratio,
        "import_mib_1080p": long,
        "import_mib_growth_1080p": long - short,
    }


if __name__ == "__main__":
    harness.run(main)
