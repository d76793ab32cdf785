"""LeRobot datasets, version 3.0 (several episodes to a file) and 2.x (one file per episode).

    meta/info.json                                   version, fps, features, templates of the paths below
    meta/episodes/chunk-*/file-*.parquet             3.0: per episode its length, tasks, and where its rows and pictures are
    meta/episodes.jsonl                              2.x: per episode its length and tasks
    data/**.parquet                                  a row per frame: observation.state, action, images if they are not videos
    videos/**.mp4                                    a video per camera

What `jobs.export` wrote says more about an episode (`demoscale/task`, `demoscale/success`), and is read back whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.episodes import Episode
from orchestrator.data.sources.pictures import film, image
from orchestrator.data.sources.source import (
    Item,
    Pictures,
    Raw,
    Reading,
    SourceError,
    chosen_cameras,
    contract_of,
    finished,
    kept_frames,
    label_of,
    names_of,
    native_rate,
    orientation,
    origin,
    rows_of,
)
from policy.interface import Contract

STATE, ACTION = "observation.state", "action"


@dataclass(frozen=True)
class _Place:
    """Where an episode is."""

    index: int
    rows: str
    """Path of its Parquet file."""
    first_row: int
    length: int
    videos: dict[str, tuple[str, float]]
    """Per feature: path of the video, and the second it starts at."""
    success: bool | None


@dataclass
class LeRobot:
    """A dataset's folder."""

    root: Path
    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _cameras: dict[str, str]
    _features: dict[str, str]
    """Camera of the source -> its feature."""
    _videos: bool
    _proprio: tuple[str, ...]
    _stored: str
    _native_hz: float
    _places: dict[str, _Place]

    def read(self, item: Item) -> Episode:
        place = self._places[item.name]
        images = [] if self._videos else [self._features[camera] for camera in self._cameras]
        try:
            table = self._rows(place, [*self._proprio, *([ACTION] if item.labelled else ()), *images, "episode_index"])
            frames = {camera: self._pictures(place, table, camera, place.length) for camera in self._cameras}
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise SourceError(f"{self.root.name}, {item.name}: it cannot be read ({' '.join(str(error).split())}); restore its files") from None
        if table["episode_index"].unique().to_pylist() != [place.index] or len(table) != place.length:
            raise SourceError(f"{self.root.name}, {item.name}: {place.rows} has other rows where its metadata says; restore meta/episodes")
        raw = Raw(
            frames=frames,
            proprio=np.concatenate([_vectors(table[key]) for key in self._proprio], 1) if self._proprio else None,
            action=_vectors(table[ACTION]) if item.labelled else None,
            success=place.success,
        )
        return finished(item, raw, self.contract, self._cameras, self._stored, self._native_hz)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        place = self._places[item.name]
        table = None if self._videos else self._rows(place, [self._features[camera] for camera in self._cameras])
        return {camera: self._pictures(place, table, camera, 1)[0] for camera in self._cameras}

    def _pictures(self, place: _Place, table: Any, camera: str, count: int) -> Pictures:
        feature = self._features[camera]
        if self._videos:
            path, start_s = place.videos[feature]
            return film(self.root / path, start_s, count, self._native_hz)
        cells = table[feature].slice(0, count).to_pylist()
        return np.stack([image(cell["bytes"] or (self.root / cell["path"]).read_bytes()) for cell in cells])

    def _rows(self, place: _Place, columns: list[str]) -> pa.Table:
        """The episode's rows, from the row groups that hold them."""
        file = pq.ParquetFile(self.root / place.rows)
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        starts = ends - [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        last_row = place.first_row + place.length
        groups = [i for i in range(file.num_row_groups) if starts[i] < last_row and ends[i] > place.first_row]
        if not groups:
            raise ValueError(f"{place.rows} ends before row {place.first_row}")
        return file.read_row_groups(groups, columns=columns, use_threads=False).slice(place.first_row - starts[groups[0]], place.length)


def open_lerobot(root: Path, reading: Reading) -> LeRobot:
    """Look at a dataset's metadata; SourceError if its version is not known or a feature it needs is not there."""
    try:
        return _understand(root, json.loads((root / "meta" / "info.json").read_text()), reading)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise SourceError(f"{root}: its metadata cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); restore meta/") from None


def _understand(root: Path, info: dict[str, Any], reading: Reading) -> LeRobot:
    version, features = str(info.get("codebase_version")), info["features"]
    if not version.startswith(("v2.", "v3.")):
        raise SourceError(f"{root}: LeRobot {version} is not read, only 2.0, 2.1 and 3.0; convert it with LeRobot's own scripts")
    where = str(root)
    kinds = {kind: [name for name, f in features.items() if f["dtype"] == kind and _is_colour(f)] for kind in ("video", "image")}
    videos = bool(kinds["video"])
    named = {_camera(name): name for name in kinds["video" if videos else "image"]}
    cameras = chosen_cameras(where, named, reading)
    if not cameras:
        raise SourceError(f"{root}: it has no camera among its features ({', '.join(features)})")
    labelled = not reading.action_free
    proprio = reading.proprio if reading.proprio is not None else tuple(key for key in (STATE,) if key in features)
    if missing := [key for key in (*proprio, *([ACTION] if labelled else ())) if key not in features]:
        raise SourceError(f"{root}: it has no feature {', '.join(missing)}; there are {', '.join(features)}")
    if labelled and not proprio:
        raise SourceError(f"{root}: it has no {STATE}; say which feature is the proprioception with --proprio, or add --action-free")
    native_hz = native_rate(where, info.get("fps"), reading)
    stored, questions = orientation(root.name, "upright", "", reading)
    sizes = {camera: _size(features[named[camera]]) for camera in cameras}
    contract = contract_of(
        where,
        cameras,
        sizes,
        tuple(name for key in proprio for name in _names(key, features[key])),
        _names(ACTION, features[ACTION]) if labelled else (),
        native_hz,
        f"unknown, robot {info.get('robot_type') or 'unknown'}",
        reading,
    )
    source = LeRobot(root, f"LeRobot {version}", contract, [], [], questions, cameras, named, videos, proprio, stored, native_hz, {})
    if other := kinds["image"] if videos else []:
        source.problems.append(f"{root.name}: it has videos and images; of {', '.join(other)} nothing is read")
    for line, place in _episodes_v3(root, info) if version.startswith("v3.") else _episodes_v2(root, info):
        name = f"episode_{place.index:06d}"
        absent = [path for path in (place.rows, *(place.videos[named[c]][0] for c in cameras if videos)) if not (root / path).is_file()]
        if absent:
            source.problems.append(f"{root.name}, {name}: there is no file {absent[0]}; left out")
            continue
        instruction = reading.instruction or next(iter(line.get("tasks") or ()), "")
        if not instruction:
            source.questions = [f"{root.name}: episodes have no task; say in words what is done with --instruction"]
        task = reading.task or line.get("demoscale/task") or instruction
        length = len(kept_frames(place.length, native_hz, contract.control_hz))
        said = origin(f"{root.name}, {name}", stored, next(iter(sizes.values())), native_hz, contract)
        source.items.append(Item(name, f"{label_of(root, reading)}-{name}", task, instruction, length, labelled, said))
        source._places[name] = place
    return source


def _episodes_v3(root: Path, info: dict[str, Any]) -> list[tuple[dict[str, Any], _Place]]:
    lines: list[dict[str, Any]] = []
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        file = pq.ParquetFile(path)
        wanted = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        lines += file.read(columns=wanted, use_threads=False).to_pylist()
    first_of_file: dict[tuple[int, int], int] = {}
    for line in lines:
        file_key = (line["data/chunk_index"], line["data/file_index"])
        first_of_file[file_key] = min(line["dataset_from_index"], first_of_file.get(file_key, line["dataset_from_index"]))
    episodes = []
    for line in lines:
        chunk, number = line["data/chunk_index"], line["data/file_index"]
        videos = {}
        for key in [key.split("/")[1] for key in line if key.startswith("videos/") and key.endswith("/from_timestamp")]:
            place = {name: line[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            videos[key] = (info["video_path"].format(video_key=key, **place), float(line[f"videos/{key}/from_timestamp"]))
        rows = info["data_path"].format(chunk_index=chunk, file_index=number)
        first_row = line["dataset_from_index"] - first_of_file[chunk, number]
        episodes.append((line, _Place(line["episode_index"], rows, first_row, line["length"], videos, line.get("demoscale/success"))))
    return episodes


def _episodes_v2(root: Path, info: dict[str, Any]) -> list[tuple[dict[str, Any], _Place]]:
    episodes = []
    for text in (root / "meta" / "episodes.jsonl").read_text().splitlines():
        line = json.loads(text)
        index = line["episode_index"]
        place = {"episode_chunk": index // info["chunks_size"], "episode_index": index}
        keys = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
        videos = {key: (info["video_path"].format(video_key=key, **place), 0.0) for key in keys}
        episodes.append((line, _Place(index, info["data_path"].format(**place), 0, line["length"], videos, None)))
    return episodes


def _camera(feature: str) -> str:
    return feature.removeprefix("observation.images.").removeprefix("observation.")


def _is_colour(feature: dict[str, Any]) -> bool:
    """Depth has one channel, or says so."""
    facts = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    return 3 in (feature["shape"][0], feature["shape"][-1]) and not (facts.get("is_depth_map") or facts.get("video.is_depth_map"))


def _size(feature: dict[str, Any]) -> tuple[int, int]:
    height, width = feature["shape"][:2] if feature["shape"][-1] == 3 else feature["shape"][1:]
    return int(height), int(width)


def _names(key: str, feature: dict[str, Any]) -> tuple[str, ...]:
    """One per value: LeRobot has lists, dictionaries of lists, or nothing."""
    width = int(np.prod(feature["shape"]))
    names = feature.get("names")
    if isinstance(names, dict):
        names = [name for part in names.values() if isinstance(part, list) for name in part]
    return tuple(map(str, names)) if names and len(names) == width else names_of([key.removeprefix("observation.")], [width])


def _vectors(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = rows_of(np.asarray(column.to_pylist(), np.float32))
    return vectors
