"""The same recorded episodes in the layout of each format."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.importers.base import ImportOptions, Source, SourceError, open_source
from robosuite_recordings import CAMERAS, HZ, INSTRUCTION, VECTORS, Recorded, load

# -- HDF5 ----------------------------------------------------------------------------------------------------


def _env_args(folder: Path, robots: tuple[str, ...] = ("Panda",), **changed: Any) -> str:
    """Return env_args as robomimic's converter makes them from robosuite's own attributes."""
    with h5py.File(folder / "demo.hdf5", "r") as file:
        info, version = json.loads(file["data"].attrs["env_info"]), file["data"].attrs["repository_version"]
    kwargs = {
        "robots": list(robots),
        "controller_configs": info["controller_configs"],
        "control_freq": HZ,
        **changed,
    }
    return json.dumps({"env_name": info["env_name"], "env_version": version, "type": 1, "env_kwargs": kwargs})


def robomimic(
    folder: Path, path: Path, episodes: list[Recorded], upside_down: bool = False, **changed: Any
) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = _env_args(folder, **changed)
        data.attrs["total"] = sum(len(episode.action) for episode in episodes)
        for number, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(episode.action)
            demo["actions"] = episode.action
            demo["rewards"] = np.eye(len(episode.action))[-1]
            for key, values in episode.vectors.items():
                demo[f"obs/{key}"] = values
            for camera, pictures in episode.frames.items():
                demo[f"obs/{camera}_image"] = pictures[:, ::-1] if upside_down else pictures
        file["mask/train"] = np.array([b"demo_0", b"demo_1"])
    return path


def libero(folder: Path, path: Path, episodes: list[Recorded]) -> Path:
    """Write other names for cameras and vectors, the instruction as an attribute, rows in OpenGL's order."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = _env_args(folder)
        data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
        data.attrs["problem_info"] = json.dumps(
            {"problem_name": "libero_tabletop_manipulation", "language_instruction": INSTRUCTION}
        )
        data.attrs["macros_image_convention"] = "opengl"
        for number, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = episode.action
            demo["obs/ee_pos"] = episode.vectors["robot0_eef_pos"]
            axis, cosine = (
                episode.vectors["robot0_eef_quat"][:, :3],
                episode.vectors["robot0_eef_quat"][:, 3:].clip(-1, 1),
            )
            demo["obs/ee_ori"] = axis * 2 * np.arccos(cosine) / np.sqrt(1 - cosine**2)
            demo["obs/gripper_states"] = episode.vectors["robot0_gripper_qpos"]
            for camera, pictures in episode.frames.items():
                demo[f"obs/{camera.removeprefix('robot0_')}_rgb"] = pictures[:, ::-1]
    return path


def robocasa(folder: Path, path: Path, episodes: list[Recorded]) -> Path:
    """Write twelve action dimensions and a sentence per demonstration; in the last one the base moves."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = _env_args(folder, robots=("PandaMobile",))
        for number, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["ep_meta"] = json.dumps({"lang": f"{INSTRUCTION} number {number}", "layout_id": 1})
            base = np.tile([0, 0, 0, 0, -1.0], (len(episode.action), 1))
            base[:, 0] = 0.5 * (number == len(episodes) - 1)
            demo["actions"] = np.concatenate([episode.action, base], 1)
            for key, values in episode.vectors.items():
                demo[f"obs/{key}"] = values
            for camera, pictures in episode.frames.items():
                demo[f"obs/{camera}_image"] = pictures
    return path


# -- films, LeRobot, zarr ------------------------------------------------------------------------------------


def film(path: Path, pictures: np.ndarray, hz: float = HZ, rotation: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            "libx264", rate=Fraction(hz).limit_denominator(1000), options={"crf": "8", "g": "10"}
        )
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for picture in pictures:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
            )
        container.mux(stream.encode(None))
    return path


def films(folder: Path, episodes: list[Recorded]) -> Path:
    for number, episode in enumerate(episodes):
        for camera, pictures in episode.frames.items():
            film(folder / "Lift" / f"demo_{number}.{camera}.mp4", pictures)
    return folder


def _png(picture: np.ndarray) -> bytes:
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
        picture.shape[1],
        picture.shape[0],
        "rgb24",
        Fraction(1, 1),
    )
    packets = encoder.encode(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    ) + encoder.encode(None)
    return b"".join(bytes(packet) for packet in packets)


def _features(dtype: str) -> dict[str, Any]:
    pictures = {
        f"observation.images.{camera}": {
            "dtype": dtype,
            "shape": [64, 64, 3],
            "names": ["height", "width", "channels"],
        }
        for camera in CAMERAS
    }
    scalars = {
        key: {"dtype": "int64", "shape": [1], "names": None}
        for key in ("frame_index", "episode_index", "index", "task_index")
    }
    return {
        **pictures,
        "observation.state": {
            "dtype": "float32",
            "shape": [9],
            "names": {"motors": [f"state_{i}" for i in range(9)]},
        },
        "action": {"dtype": "float32", "shape": [7], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **scalars,
    }


def _rows(number: int, first: int, episode: Recorded, dtype: str) -> pa.Table:
    length = len(episode.action)
    columns = {
        "observation.state": pa.array(list(episode.proprio.astype(np.float32)), pa.list_(pa.float32(), 9)),
        "action": pa.array(list(episode.action.astype(np.float32)), pa.list_(pa.float32(), 7)),
        "timestamp": pa.array(np.arange(length, dtype=np.float32) / HZ),
        "frame_index": pa.array(range(length)),
        "episode_index": pa.array([number] * length),
        "index": pa.array(range(first, first + length)),
        "task_index": pa.array([0] * length),
    }
    if dtype == "image":
        for camera, pictures in episode.frames.items():
            columns[f"observation.images.{camera}"] = pa.array(
                [{"bytes": _png(p), "path": None} for p in pictures]
            )
    return pa.table(columns)


def _write(table: pa.Table, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def lerobot_v3(folder: Path, episodes: list[Recorded], dtype: str = "video") -> Path:
    """Write several episodes to a file; the files of rows and of the two cameras are cut at different
    places.
    """
    files = {"data": (0, 1, 1), CAMERAS[0]: (0, 0, 0), CAMERAS[1]: (0, 0, 1)}
    firsts = np.cumsum([0] + [len(episode.action) for episode in episodes])
    lines = []
    for number, episode in enumerate(episodes):
        line = {
            "episode_index": number,
            "tasks": [INSTRUCTION],
            "length": len(episode.action),
            "data/chunk_index": 0,
        }
        line |= {
            "data/file_index": files["data"][number],
            "dataset_from_index": int(firsts[number]),
            "dataset_to_index": int(firsts[number + 1]),
        }
        for camera in CAMERAS if dtype == "video" else ():
            start = (
                sum(
                    len(episodes[n].action)
                    for n in range(number)
                    if files[camera][n] == files[camera][number]
                )
                / HZ
            )
            key = f"videos/observation.images.{camera}"
            line |= {f"{key}/chunk_index": 0, f"{key}/file_index": files[camera][number]}
            line |= {f"{key}/from_timestamp": start, f"{key}/to_timestamp": start + len(episode.action) / HZ}
        lines.append(line)
    for file in sorted(set(files["data"])):
        rows = [
            _rows(n, int(firsts[n]), episode, dtype)
            for n, episode in enumerate(episodes)
            if files["data"][n] == file
        ]
        _write(pa.concat_tables(rows), folder / f"data/chunk-000/file-{file:03d}.parquet", row_group_size=25)
    for camera in CAMERAS if dtype == "video" else ():
        for file in sorted(set(files[camera])):
            pictures = np.concatenate(
                [episode.frames[camera] for n, episode in enumerate(episodes) if files[camera][n] == file]
            )
            film(folder / f"videos/observation.images.{camera}/chunk-000/file-{file:03d}.mp4", pictures)
    _write(pa.Table.from_pylist(lines), folder / "meta/episodes/chunk-000/file-000.parquet")
    _write(pa.table({"task_index": [0], "__index_level_0__": [INSTRUCTION]}), folder / "meta/tasks.parquet")
    _info(folder, "v3.0", dtype, "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    return folder


def lerobot_v21(folder: Path, episodes: list[Recorded]) -> Path:
    first = 0
    for number, episode in enumerate(episodes):
        _write(
            _rows(number, first, episode, "video"), folder / f"data/chunk-000/episode_{number:06d}.parquet"
        )
        first += len(episode.action)
        for camera, pictures in episode.frames.items():
            film(folder / f"videos/chunk-000/observation.images.{camera}/episode_{number:06d}.mp4", pictures)
    (folder / "meta").mkdir()
    lines = [
        {"episode_index": n, "tasks": [INSTRUCTION], "length": len(episode.action)}
        for n, episode in enumerate(episodes)
    ]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": INSTRUCTION}) + "\n")
    _info(folder, "v2.1", "video", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet")
    return folder


def _info(folder: Path, version: str, dtype: str, data_path: str) -> None:
    video_path = "videos/" + (
        "chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if version == "v2.1"
        else "{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    )
    info = {
        "codebase_version": version,
        "robot_type": "panda",
        "fps": HZ,
        "chunks_size": 1000,
        "features": _features(dtype),
    }
    (folder / "meta/info.json").write_text(
        json.dumps({**info, "data_path": data_path, "video_path": video_path if dtype == "video" else None})
    )


def replay_buffer(folder: Path, episodes: list[Recorded]) -> Path:
    """Write every episode end to end in one array per key, in zarr's second format."""
    import zarr

    root = zarr.open_group(str(folder), mode="w", zarr_format=2)
    columns = {
        "action": np.concatenate([episode.action for episode in episodes]).astype(np.float32),
        **{
            key: np.concatenate([episode.vectors[key] for episode in episodes]).astype(np.float32)
            for key in VECTORS
        },
        **{
            f"{camera}_image": np.concatenate([episode.frames[camera] for episode in episodes])
            for camera in CAMERAS
        },
    }
    for key, values in columns.items():
        root.create_array(f"data/{key}", data=values, chunks=(16, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=np.cumsum([len(episode.action) for episode in episodes]))
    return folder


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


# -- all of them ---------------------------------------------------------------------------------------------

UPRIGHT, UPSIDE_DOWN = ImportOptions(images="upright"), ImportOptions(images="upside-down")
RENAMED = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}
ZARR = ImportOptions(hz=HZ, task="Lift")


@dataclass(frozen=True)
class Layout:
    """One format: how the episodes are written in it, and the options to read them."""

    write: Callable[[Path, Path, list[Recorded]], Path]
    reading: ImportOptions
    exact: bool = True
    """Whether its pictures are stored losslessly; else a video codec encodes them."""
    proprio: bool = True
    """Whether it has the proprioception of the simulator's own stores."""


LAYOUTS = {
    "robomimic": Layout(lambda raw, to, e: robomimic(raw, to / "lift.hdf5", e), UPRIGHT),
    "robomimic upside-down": Layout(
        lambda raw, to, e: robomimic(raw, to / "lift.hdf5", e, upside_down=True), UPSIDE_DOWN
    ),
    "LIBERO": Layout(
        lambda raw, to, e: libero(raw, to / "Lift_demo.hdf5", e),
        replace(UPSIDE_DOWN, cameras=RENAMED),
        proprio=False,
    ),
    "RoboCasa": Layout(lambda raw, to, e: robocasa(raw, to / "lift.hdf5", e), UPRIGHT),
    "LeRobot v3": Layout(
        lambda raw, to, e: lerobot_v3(to / "lift", e), ImportOptions(task="Lift"), exact=False
    ),
    "LeRobot v3, images": Layout(
        lambda raw, to, e: lerobot_v3(to / "lift", e, "image"), ImportOptions(task="Lift")
    ),
    "LeRobot v2.1": Layout(
        lambda raw, to, e: lerobot_v21(to / "lift", e), ImportOptions(task="Lift"), exact=False
    ),
    "zarr": Layout(lambda raw, to, e: replay_buffer(to / "lift.zarr", e), ZARR),
    "zarr, zipped": Layout(lambda raw, to, e: zipped(replay_buffer(to / "lift.zarr", e)), ZARR),
    "films": Layout(lambda raw, to, e: films(to / "lift", e), ImportOptions(), exact=False),
}


@cache
def written(recorded: Path, name: str) -> Path:
    """Return the recorded episodes in the layout of that name."""
    folder = recorded / f"layouts-{os.getpid()}" / name  # two processes of a session share `recorded`
    folder.mkdir(parents=True)
    return LAYOUTS[name].write(recorded, folder, load(recorded))


def damaged(recorded: Path, name: str, folder: Path) -> Path:
    """Return a copy of it, to be damaged."""
    original = written(recorded, name)
    copy = folder / original.name
    shutil.copytree(original, copy) if original.is_dir() else shutil.copy(original, copy)
    return copy


def opened(recorded: Path, name: str, **said: Any) -> Source:
    return open_source(written(recorded, name), replace(LAYOUTS[name].reading, **said))


def usable(source: Source) -> list[str]:
    """Return the names of the episodes that are imported."""
    return [item.name for item in source.items if not item.problem]


def refusal(path: Path, reading: ImportOptions) -> str:
    with pytest.raises(SourceError) as error:
        open_source(path, reading)
    return str(error.value)


def psnr(read: np.ndarray, meant: np.ndarray) -> float:
    error = np.mean((read.astype(float) - meant) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
