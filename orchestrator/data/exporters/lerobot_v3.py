"""Exporter of a store's episodes to a LeRobot dataset, version 3.0, which `lerobot` and
`orchestrator/data/importers/lerobot.py` read.

The stored videos are copied byte for byte, one file per episode and camera. Layout as in Hugging Face's
`lerobot` (src/lerobot/datasets, version 3.0): meta/info.json, meta/stats.json, meta/tasks.parquet,
meta/episodes/, data/, videos/. The store's contract is kept whole in meta/info.json, under `demoscale`;
fields of an episode that LeRobot does not have are in columns demoscale/<name> of meta/episodes. An episode
that is exported without its actions has zeros there, and false in the column `has_action`; its actions count
in no statistics. `orchestrator/data/exporters/robomimic.py` and `diffusion_policy_zarr.py` write the other
formats.
"""

import json
import math
from collections.abc import Collection, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.clip_stream import decode_entry
from orchestrator.data.episode_format import CODEC_OPTIONS, Episode, EpisodeError, encode_video, read_parquet
from orchestrator.data.episode_store import fetch
from orchestrator.data.exporters.roles import HAS_ACTION, filled, shown, shown_contract
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.storage.base import Storage
from policy.interface import Contract

FILES_PER_CHUNK = 1000
EPISODES_PER_FILE = 1000  # episodes whose rows share a Parquet file
# minimum per episode and camera (fewer in shorter episodes), for the statistics of pixels
SAMPLED_FRAMES = 50
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
LEROBOT, ROBOMIMIC = "LeRobot", "robomimic"
NAMED = 10  # maximum number of episodes named in a sentence
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Statistics = dict[str, npt.NDArray[Any]]


def exportable(
    storage: Storage, manifest: Manifest, labelled_only: bool, kind: str = LEROBOT
) -> list[EpisodeEntry]:
    """Return the episodes that a data set of that kind can hold. Raises EpisodeError for a rate or episodes
    that it cannot express.
    """
    if kind == LEROBOT:
        check_rate(storage, manifest.contract)
    entries = list(manifest.entries)
    labelled = [entry for entry in entries if entry.labelled]
    if not labelled:
        raise EpisodeError(f"{storage.uri}: no episode has actions, and {kind} cannot express one without")
    if len(labelled) < len(entries) and not labelled_only:
        raise EpisodeError(
            f"{storage.uri}: {len(entries) - len(labelled)} of {len(entries)} episodes have no actions, which"
            f" {kind} cannot express; leave them out with --labelled-only"
            f" ({named(entry.episode_id for entry in entries if not entry.labelled)})"
        )
    return labelled


def check_rate(storage: Storage, contract: Contract) -> None:
    """Raise EpisodeError if LeRobot cannot express the store's control rate."""
    if contract.control_hz % 1:
        raise EpisodeError(
            f"{storage.uri}: LeRobot's fps is a whole number, the store has {contract.control_hz:g} steps per"
            " second"
        )


def named(episodes: Iterable[str]) -> str:
    """Return a list of episodes for a sentence, with the first NAMED by name."""
    ids = list(episodes)
    return ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def contract_of_export(path: Path | str) -> Contract:
    """Read the conventions that an export carries, from a LeRobot folder or a robomimic file.

    A policy trained on the export by another program uses them as its `contract`, so that it can be scored
    here: `contract = contract_of_export("lift.hdf5")` in the policy that `MODULE:FUNCTION` returns, for
    `demoscale score` and `demoscale serve`. A policy server in another language answers GET /contract with
    the output of `demoscale export --contract-of lift.hdf5`. Raises EpisodeError if the export is missing,
    unreadable, or carries no conventions.
    """
    path = Path(path)
    info = path / "meta" / "info.json"
    if not (path.is_file() or info.is_file()):
        raise EpisodeError(
            f"{path}: there is no export here; name a folder with meta/info.json, or an HDF5 file, that"
            " `demoscale export` wrote"
        )
    try:
        stated = (
            _stated_in_hdf5(path)
            if path.is_file()
            else json.loads(info.read_text()).get("demoscale", {}).get("contract")
        )
    except (OSError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise EpisodeError(
            f"{path}: it cannot be read ({' '.join(str(error).split())}); copy it again"
        ) from None
    if stated is None:
        raise EpisodeError(
            f"{path}: it does not state the conventions of a store, as what `demoscale export` writes does;"
            " export the store again"
        )
    try:
        return Contract.from_json(stated)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EpisodeError(
            f"{path}: the conventions it states are damaged ({type(error).__name__}: {error}); export the"
            " store again"
        ) from None


def _stated_in_hdf5(path: Path) -> Any:
    """Return the contract as JSON; None if the file has none."""
    import h5py

    with h5py.File(path, "r") as file:
        # a link could lead into another file
        if not isinstance(file.get("data", getlink=True), h5py.HardLink):
            return None
        text = file["data"].attrs.get("demoscale.contract")
    return None if text is None else json.loads(text)


def export(
    storage: Storage,
    contract: Contract,
    entries: list[EpisodeEntry],
    folder: Path,
    action_free: Collection[str] = (),
    proprio: Sequence[int] | None = None,
) -> Generator[EpisodeEntry, None, None]:
    """Write the episodes to an empty or new folder, yielding each when it is written.

    meta/info.json, which makes the folder a dataset, is written last. action_free: ids of episodes whose
    actions are not written; all others must be labelled. proprio: as for `roles.shown_contract`. Raises
    EpisodeError if the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise EpisodeError(f"{folder}: it is not empty; export into a new folder, or empty it first")
    instructions = sorted({entry.instruction for entry in entries})
    lines: list[dict[str, Any]] = []
    statistics: list[dict[str, Statistics]] = []
    rows: list[pa.Table] = []
    first = 0
    for index, entry in enumerate(entries):
        data = fetch(storage, entry)
        length = entry.length
        sampled = range(0, length, max(1, length // SAMPLED_FRAMES))
        has_action = entry.episode_id not in action_free
        episode = decode_entry(data, entry, contract, has_action, sampled)
        episode = shown(episode if has_action else filled(episode, contract), proprio)
        columns = _columns(episode, index, first, instructions.index(entry.instruction), contract.control_hz)
        statistics.append({name: _statistics(values) for name, values in columns.items()})
        if action_free:
            columns[HAS_ACTION] = np.full(length, has_action)
        if not has_action:
            statistics[-1]["action"]["count"] = np.array([0])
        for camera in contract.cameras:
            statistics[-1][_video_key(camera)] = _pixel_statistics(episode.frames[camera])
            place = {"chunk_index": index // FILES_PER_CHUNK, "file_index": index % FILES_PER_CHUNK}
            _write_bytes(
                folder / VIDEO_PATH.format(video_key=_video_key(camera), **place),
                _video(data, entry, contract, camera),
            )
        rows.append(_table(columns))
        lines.append(
            _line(entry, index, first, contract)
            | {f"stats/{k}/{s}": v.tolist() for k, part in statistics[-1].items() for s, v in part.items()}
        )
        if len(rows) == EPISODES_PER_FILE or index == len(entries) - 1:
            _write_table(pa.concat_tables(rows), folder / DATA_PATH.format(**_rows_place(index)))
            rows = []
        first += length
        yield entry
    _write_table(pa.Table.from_pylist(lines), folder / "meta/episodes/chunk-000/file-000.parquet")
    _write_table(_tasks(instructions), folder / "meta/tasks.parquet")
    merged = {
        key: {name: value.tolist() for name, value in _merged(parts).items()}
        for key in statistics[0]
        if (parts := [part[key] for part in statistics if part[key]["count"].any()])
    }
    _write_bytes(folder / "meta/stats.json", json.dumps(merged, indent=1).encode())
    _write_bytes(
        folder / "meta/info.json",
        json.dumps(
            _info(
                shown_contract(contract, proprio), len(entries), first, len(instructions), bool(action_free)
            ),
            indent=1,
        ).encode(),
    )


def _video(data: bytes, entry: EpisodeEntry, contract: Contract, camera: str) -> bytes:
    """Return the stored video of a camera, or one of the contract's view if the episode has other cameras."""
    if entry.cameras == contract.cameras and entry.image_size == contract.image_size:
        stored: bytes = read_parquet(data, [f"cam.{camera}"])[0][0].as_py()
        return stored
    return encode_video(decode_entry(data, entry, contract, False).frames[camera], contract.control_hz)


def _video_key(camera: str) -> str:
    return f"observation.images.{camera}"


def _rows_place(index: int) -> dict[str, int]:
    return {"chunk_index": 0, "file_index": index // EPISODES_PER_FILE}


def _columns(episode: Episode, index: int, first: int, task: int, hz: float) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of the data file, with a row per frame. Column `index` counts frames over the whole
    dataset.
    """
    assert episode.proprio is not None
    assert episode.action is not None
    counted = np.arange(episode.length)
    return {
        **({"observation.state": episode.proprio} if episode.proprio.shape[1] else {}),
        "action": episode.action,
        "timestamp": (counted / hz).astype(np.float32),
        "frame_index": counted,
        "episode_index": np.full(episode.length, index),
        "index": counted + first,
        "task_index": np.full(episode.length, task),
    }


def _table(columns: dict[str, npt.NDArray[Any]]) -> pa.Table:
    return pa.table(
        {
            name: pa.array(list(v), pa.list_(pa.float32(), v.shape[1])) if v.ndim == 2 else pa.array(v)
            for name, v in columns.items()
        }
    )


def _line(entry: EpisodeEntry, index: int, first: int, contract: Contract) -> dict[str, Any]:
    """Return an episode's row of meta/episodes; fields that LeRobot does not have are named
    demoscale/<name>.
    """
    line: dict[str, Any] = {"episode_index": index, "tasks": [entry.instruction], "length": entry.length}
    line |= {"dataset_from_index": first, "dataset_to_index": first + entry.length}
    line |= {f"data/{name}": value for name, value in _rows_place(index).items()}
    line |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    for camera in contract.cameras:
        key = f"videos/{_video_key(camera)}"
        line |= {f"{key}/chunk_index": index // FILES_PER_CHUNK, f"{key}/file_index": index % FILES_PER_CHUNK}
        line |= {f"{key}/from_timestamp": 0.0, f"{key}/to_timestamp": entry.length / contract.control_hz}
    own = {
        "episode_id": entry.episode_id,
        "task": entry.task,
        "success": entry.success,
        "source": entry.source,
    }
    return line | {f"demoscale/{name}": value for name, value in own.items()}


def _info(contract: Contract, episodes: int, frames: int, tasks: int, roles: bool) -> dict[str, Any]:
    height, width = contract.image_size
    fps = int(contract.control_hz)
    facts = {
        "video.height": height,
        "video.width": width,
        "video.channels": 3,
        "video.fps": fps,
        "video.codec": "h264",
        "has_audio": False,
    }
    shape = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
    # LeRobot encodes with these settings when an edit cuts a file. The pixel format is omitted, since its
    # h264 encoder refuses the stored one.
    settings = {f"video.{name}": int(CODEC_OPTIONS[name]) for name in ("crf", "g")}
    video = {"dtype": "video", **shape, "info": {**facts, **settings, "video.is_depth_map": False}}
    vectors = {"observation.state": contract.proprio, "action": contract.action}
    if not contract.proprio:
        del vectors["observation.state"]
    features: dict[str, Any] = {_video_key(camera): video for camera in contract.cameras}
    features |= {
        key: {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        for key, names in vectors.items()
    }
    features |= {"timestamp": {"dtype": "float32", "shape": [1], "names": None}}
    if roles:
        features[HAS_ACTION] = {"dtype": "bool", "shape": [1], "names": None}
    features |= {
        key: {"dtype": "int64", "shape": [1], "names": None}
        for key in ("frame_index", "episode_index", "index", "task_index")
    }
    return {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
        "demoscale": {"contract": contract.to_json()},
    }


def _tasks(instructions: list[str]) -> pa.Table:
    """Return the table of tasks, with metadata that mark the index column: LeRobot reads it with pandas and
    looks tasks up by the index.
    """
    described = [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {
            "name": "task",
            "field_name": "task",
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": None,
        },
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": described,
        "pandas_version": "2.0.0",
    }
    table = pa.table(
        {"task_index": pa.array(range(len(instructions)), pa.int64()), "task": pa.array(instructions)}
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _statistics(values: npt.NDArray[Any]) -> Statistics:
    """Return statistics per dimension of (N, D) rows or (N,) numbers."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    return {
        "min": rows.min(0),
        "max": rows.max(0),
        "mean": rows.mean(0),
        "std": rows.std(0),
        "count": np.array([len(rows)]),
        **dict(zip(QUANTILES, np.quantile(rows, [*QUANTILES.values()], axis=0), strict=True)),
    }


def _pixel_statistics(frames: npt.NDArray[np.uint8]) -> Statistics:
    """Return statistics per channel, (3, 1, 1), of pixel values scaled to 0 to 1; `count` is the number of
    frames.

    Computed from the counts of the 256 levels, which takes a tenth of the time of sorting the pixels.
    """
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])
    pixels, below = frames[..., 0].size, counts.cumsum(axis=1)

    def ranked(rank: int) -> npt.NDArray[np.float64]:
        """Return the value of that rank of each channel, from 0 on."""
        return np.asarray(levels[(below <= rank).sum(axis=1)])

    def quantile(q: float) -> npt.NDArray[np.float64]:
        rank = q * (pixels - 1)
        low, high = ranked(math.floor(rank)), ranked(math.ceil(rank))
        return np.asarray(low + (high - low) * (rank % 1))

    mean = counts @ levels / pixels
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / pixels
    statistics = {
        "min": ranked(0),
        "max": ranked(pixels - 1),
        "mean": mean,
        "std": np.sqrt(variance),
        **{name: quantile(q) for name, q in QUANTILES.items()},
    }
    shaped = {name: value.reshape(3, 1, 1) for name, value in statistics.items()}
    return {**shaped, "count": np.array([len(frames)])}


def _merged(parts: list[Statistics]) -> Statistics:
    """Return statistics over all episodes. Quantiles are means of the episodes' quantiles, as LeRobot merges
    them.
    """
    counts = np.array([part["count"][0] for part in parts], float)

    def mean(values: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.tensordot(counts / counts.sum(), np.stack(values), 1)

    whole = mean([part["mean"] for part in parts])
    variance = mean([part["std"] ** 2 + (part["mean"] - whole) ** 2 for part in parts])
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": whole,
        "std": np.sqrt(variance),
        "count": np.array([int(counts.sum())]),
        **{name: mean([part[name] for part in parts]) for name in QUANTILES},
    }


def _write_table(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
