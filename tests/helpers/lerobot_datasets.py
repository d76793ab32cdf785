"""LeRobot datasets of pictures that show their frame number."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.episode_format import Episode, decode
from orchestrator.data.episode_store import commit, fetch, load_manifest
from orchestrator.data.import_episodes import Importer, LeftOut, missing, reconcile_contract
from orchestrator.data.importers.base import ImportOptions, Source, open_source
from orchestrator.storage.base import open_storage

BITS = 8


def numbered(numbers: Sequence[int], height: int = 32, width: int = 64) -> np.ndarray:
    """Return (L, H, W, 3): the upper half shows the number in bits, the lower half is grey."""
    pictures = np.full((len(numbers), height, width, 3), 90, np.uint8)
    for picture, number in zip(pictures, numbers, strict=True):
        for bit in range(BITS):
            picture[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = (
                230 if number >> bit & 1 else 20
            )
    return pictures


def numbers_of(pictures: np.ndarray) -> list[int]:
    height, width = pictures.shape[1:3]
    return [
        sum(
            int(p[height // 4, (2 * bit + 1) * width // (2 * BITS)].mean() > 128) << bit
            for bit in range(BITS)
        )
        for p in pictures
    ]


def write_film(
    path: Path,
    pictures: np.ndarray,
    hz: float,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    moments: Sequence[int] | None = None,
) -> Path:
    """Write a film; `moments`: the time of each picture in steps of 1 / hz, consecutive by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(hz).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {"crf": "8", "g": "10"})
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        stream.codec_context.time_base = 1 / rate
        for place, picture in zip(moments or range(len(pictures)), pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = place, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


KEY = "observation.images.top"
SENTENCES = ("lift the cube", "open the drawer", "close it")


@dataclass
class Dataset:
    """The parts of a LeRobot dataset; tests change them before they write it."""

    lengths: tuple[int, ...] = (10, 12, 11)
    hz: float = 10
    version: str = "v3.0"
    film: Callable[[Path, np.ndarray, float], object] = write_film
    """Writes the pictures of a file."""
    row: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda episode, columns: columns
    """Changes the columns of an episode's rows."""
    line: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda episode, line: line
    """Changes an episode's metadata."""
    info: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    rows_per_file: tuple[int, ...] = ()
    """Episodes in each Parquet file of version 3.0; all in one by default."""

    def write(self, root: Path) -> Path:
        firsts = np.cumsum([0, *self.lengths]).tolist()
        tables = [pa.table(self.row(i, self._columns(i, firsts[i]))) for i in range(len(self.lengths))]
        v3 = self.version.startswith("v3")
        if v3:
            numbers = range(firsts[-1])
            self.film(root / f"videos/{KEY}/chunk-000/file-000.mp4", numbered(numbers), self.hz)
            begin = 0
            for number, count in enumerate(self.rows_per_file or (len(tables),)):
                _write(
                    pa.concat_tables(tables[begin : begin + count]),
                    root / f"data/chunk-000/file-{number:03d}.parquet",
                )
                begin += count
        else:
            for i, table in enumerate(tables):
                _write(table, root / f"data/chunk-000/episode_{i:06d}.parquet")
                self.film(
                    root / f"videos/chunk-000/{KEY}/episode_{i:06d}.mp4",
                    numbered(range(firsts[i], firsts[i + 1])),
                    self.hz,
                )
        lines = [self.line(i, self._line(i, firsts[i], v3)) for i in range(len(self.lengths))]
        if v3:
            _write(pa.Table.from_pylist(lines), root / "meta/episodes/chunk-000/file-000.parquet")
            _write(
                pa.table({"task_index": range(len(SENTENCES)), "task": SENTENCES}),
                root / "meta/tasks.parquet",
            )
        else:
            (root / "meta").mkdir(parents=True, exist_ok=True)
            (root / "meta/episodes.jsonl").write_text(
                "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            )
            tasks = [{"task_index": i, "task": sentence} for i, sentence in enumerate(SENTENCES)]
            (root / "meta/tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
        (root / "meta/info.json").write_text(json.dumps(self._info(v3)))
        return root

    def _columns(self, episode: int, first: int) -> dict[str, Any]:
        length = self.lengths[episode]
        vectors = np.sin(np.arange(length)[:, None] + np.arange(7) + episode).astype(np.float32)
        return {
            "observation.state": pa.array(list(vectors[:, :5]), pa.list_(pa.float32())),
            "action": pa.array(list(vectors), pa.list_(pa.float32())),
            "timestamp": pa.array(np.arange(length, dtype=np.float32) / self.hz, pa.float32()),
            "frame_index": pa.array(range(length)),
            "episode_index": pa.array([episode] * length),
            "index": pa.array(range(first, first + length)),
            "task_index": pa.array([0] * length),
        }

    def _line(self, episode: int, first: int, v3: bool) -> dict[str, Any]:
        length = self.lengths[episode]
        line = {"episode_index": episode, "tasks": [SENTENCES[0]], "length": length}
        if not v3:
            return line
        place = {"chunk_index": 0, "file_index": 0}
        moments = {"from_timestamp": first / self.hz, "to_timestamp": (first + length) / self.hz}
        return {
            **line,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
            **{f"data/{k}": v for k, v in place.items()},
            **{f"videos/{KEY}/{k}": v for k, v in (place | moments).items()},
        }

    def _info(self, v3: bool) -> dict[str, Any]:
        scalars = {
            key: {"dtype": "int64", "shape": [1], "names": None}
            for key in ("frame_index", "episode_index", "index", "task_index")
        }
        features = {
            KEY: {"dtype": "video", "shape": [32, 64, 3], "names": ["height", "width", "channels"]},
            "observation.state": {"dtype": "float32", "shape": [5], "names": None},
            "action": {"dtype": "float32", "shape": [7], "names": None},
            **scalars,
        }
        paths = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"} if v3 else {}
        paths |= (
            {"video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}
            if v3
            else {}
        )
        if not v3:
            paths = {
                "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            }
        facts = {
            "codebase_version": self.version,
            "robot_type": "panda",
            "fps": self.hz,
            "chunks_size": 1000,
            "features": features | self.features,
        }
        return facts | paths | self.info


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)


def imported(path: Path, store: Path, **said: Any) -> tuple[Source, dict[str, Episode], list[str]]:
    """Import everything in this process; return the source, the stored episodes by item, and the reasons of
    omitted episodes.
    """
    storage = open_storage(str(store))
    source = reconcile_contract(open_source(path, ImportOptions(**said)), storage)
    assert not source.questions, source.questions
    importer = Importer(source, storage.uri)
    answers = [importer.record(item) for item in missing(source, storage)]
    entries = [answer for answer in answers if not isinstance(answer, LeftOut)]
    if entries:
        commit(storage, source.contract, entries)
    manifest = load_manifest(storage) if entries else None
    known = {entry.episode_id: entry for entry in manifest.entries} if manifest else {}
    cameras = source.contract.cameras
    episodes = {
        item.name: decode(fetch(storage, known[item.episode_id]), cameras, with_actions=item.labelled)
        for item in source.items
        if not item.problem and item.episode_id in known
    }
    return source, episodes, [answer.reason for answer in answers if isinstance(answer, LeftOut)]
