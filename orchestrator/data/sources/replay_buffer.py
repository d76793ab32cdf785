"""The zarr replay buffers of Diffusion Policy, UMI and their descendants: every episode end to end in one array per key.

    data/action                     (N, A)
    data/agentview_image, img ...   (N, H, W, 3) or (N, 3, H, W) pictures
    data/<vector>                   (N, D)
    meta/episode_ends               (E,) where each episode ends

A folder or a zip file, zarr's format 2 or 3, with other folders around it or not. It names neither task nor rate: `--task`, `--instruction`
and `--hz` do. zarr answers with the fill value for a chunk that is not there; such values are no pictures and no actions here.
"""

import itertools
import math
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from orchestrator.data.episodes import Episode
from orchestrator.data.sources.pictures import MOST_PIXELS, RANGES, Range, in_blocks, range_of
from orchestrator.data.sources.source import (
    Item,
    Pictures,
    Raw,
    Reading,
    SourceError,
    action_names,
    cameras_by_name,
    chosen_cameras,
    chosen_proprio,
    contract_of,
    finished,
    identity,
    kept_frames,
    label_of,
    leaving_out,
    names_of,
    native_rate,
    orientation,
    origin,
    refuse_bulk,
    rows_of,
    unusable,
    width_of,
)
from policy.interface import Contract
from sim_workers.env import PROPRIO_KEYS
from sim_workers.tasks import TASKS

MOST_VECTOR_BYTES = 1 << 30
"""Of one array of vectors, which is read whole."""
MOST_CHUNK_BYTES = 2 << 30
SMALLEST = 16
"""Pixels a side of channels-first pictures; other arrays have such shapes too."""


@dataclass(frozen=True)
class _Buffer:
    """A buffer's folder or zip file."""

    path: Path
    inside: str
    """Where in the zip file the buffer begins."""

    def open(self) -> Any:
        """The group with `data` and `meta`; SourceError if it is none."""
        with suppress(ImportError):
            from imagecodecs.numcodecs import register_codecs  # UMI's pictures are JPEG XL

            register_codecs()
        try:
            if self.path.is_file():
                return zarr.open_group(zarr.storage.ZipStore(self.path, mode="r"), path=self.inside or None, mode="r")
            return zarr.open_group(str(self.path), mode="r")
        except Exception as error:
            raise SourceError(f"{self.path}: it cannot be read as zarr ({type(error).__name__}: {' '.join(str(error).split())})") from None

    def files(self, array: Any) -> set[str]:
        """The files of an array, relative to it."""
        if self.path.is_file():
            start = f"{array.path}/"
            with zipfile.ZipFile(self.path) as archive:
                return {name.removeprefix(start) for name in archive.namelist() if name.startswith(start)}
        folder = self.path / array.path
        return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


@dataclass
class ReplayBuffer:
    """What a buffer offers."""

    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _buffer: _Buffer
    _cameras: dict[str, str]
    _keys: dict[str, str]
    """Camera of the source -> its array."""
    _ranges: dict[str, Range]
    """Per camera of the source."""
    _proprio: tuple[str, ...]
    _action: str
    _stored: str
    _native_hz: float
    _spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Item -> its first row and the row after its last."""

    def read(self, item: Item) -> Episode:
        first, last = self._spans[item.name]
        try:
            data = self._buffer.open()["data"]
            kept = kept_frames(last - first, self._native_hz, self.contract.control_hz)
            frames = {}
            for camera in self._cameras:
                pictures = _Pictures(data[self._keys[camera]], self._ranges[camera])
                frames[camera] = in_blocks(pictures.bytes, first + kept, self._stored, self.contract.image_size)
            raw = Raw(
                frames=frames,
                proprio=np.concatenate([rows_of(data[key][first:last]) for key in self._proprio], 1) if self._proprio else None,
                action=data[self._action][first:last] if item.labelled else None,
                success=None,
                rows=last - first,
            )
        except Exception as error:  # decompressors raise errors of their own
            said = " ".join(str(error).split())
            raise SourceError(
                f"{self._buffer.path.name}, {item.name}: it cannot be read ({type(error).__name__}: {said}); restore its chunks"
            ) from None
        return finished(item, raw, self.contract, self._cameras, self._native_hz)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        first, _ = self._spans[item.name]
        data = self._buffer.open()["data"]
        return {camera: _Pictures(data[self._keys[camera]], self._ranges[camera]).bytes(first, first + 1)[0] for camera in self._cameras}


def open_replay_buffer(path: Path, reading: Reading) -> ReplayBuffer:
    """Look at a buffer's arrays; SourceError if it is none, or does not say enough."""
    buffer, where = _Buffer(path, _inside(path)), str(path)
    root = buffer.open()
    try:
        data, ends = root["data"], [int(end) for end in root["meta/episode_ends"][:]]
        arrays = dict(sorted(data.arrays()))
    except Exception as error:
        said = " ".join(str(error).split())
        mend = (
            "it is compressed with a codec that is not installed; run `pip install imagecodecs` if it is UMI's, otherwise install the codec"
            if "codec" in said
            else "it is no replay buffer with data/* and meta/episode_ends"
        )
        raise SourceError(f"{path}: {mend} ({said})") from None
    keys = cameras_by_name(name for name, array in arrays.items() if _is_pictures(array))
    cameras = chosen_cameras(where, keys, reading)
    if not cameras:
        raise SourceError(f"{path}: it has no pictures among its arrays ({', '.join(sorted(arrays))})")
    labelled, action = not reading.action_free, reading.action or "action"
    if labelled and action not in arrays:
        raise SourceError(f"{path}: it has no data/{action}; name the action with --action, or add --action-free to import its pictures")
    if labelled and arrays[action].ndim != 2:
        raise SourceError(f"{path}: data/{action} has the shape {arrays[action].shape}, where (N, A) is meant; name another with --action")
    widths = {name: width_of(array) for name, array in arrays.items() if array.ndim <= 2 and array.dtype.kind == "f" and name != action}
    proprio, names = chosen_proprio(where, "arrays", widths, (PROPRIO_KEYS,), reading)
    used = [*(keys[camera] for camera in cameras), *proprio, *([action] if labelled else [])]
    vectors = {key: _vectors(path, key, arrays[key]) for key in [*proprio, *([action] if labelled else [])]}
    sizes = {camera: _size(path, arrays[keys[camera]]) for camera in cameras}
    native_hz = native_rate(where, None, reading)
    stored, questions = orientation(path.name, "upright", "", reading)
    instruction = reading.instruction or TASKS.get(reading.task or "", "")
    if not reading.task:
        questions.append(f"{path.name}: it does not name its task; say it with --task")
    if not instruction:
        questions.append(f"{path.name}: it does not say in words what is done; say it with --instruction")
    spans, problems = _spans(path, ends, min(arrays[key].shape[0] for key in used))
    absent = {key: _absent_rows(buffer, arrays[key]) for key in used}
    bad: dict[str, str] = {name: _absence(absent, span) for name, span in spans.items()}
    ranges, nan, more = _ranges(path, {c: arrays[keys[c]] for c in cameras}, {name: s for name, s in spans.items() if not bad[name]}, reading)
    questions += more
    bad |= nan
    action_dims = names_of([action], [int(arrays[action].shape[1])]) if labelled else ()
    contract = contract_of(where, cameras, sizes, names, action_dims, native_hz, "unknown", reading)
    largest = float(np.nanmax(np.abs(vectors[action][:, :-1]), initial=0)) if labelled else 0.0
    renamed, more = action_names(path.name, contract.action, largest, reading)
    contract, questions = replace(contract, action=renamed), questions + more
    source = ReplayBuffer(
        "diffusion-policy zarr", contract, [], problems, questions, buffer, cameras, keys, ranges, proprio, action, stored, native_hz
    )  # fmt: skip
    for name, (first, last) in spans.items():
        with leaving_out(f"{path.name}, {name}", problems):
            if bad.get(name):
                raise ValueError(bad[name])
            if not all(np.isfinite(values[first:last]).all() for values in vectors.values()):
                raise ValueError("it holds a value that is not a number")
            length = len(kept_frames(last - first, native_hz, contract.control_hz))
            refuse_bulk(length, len(cameras), contract.image_size)
            middle = (first + last) // 2
            shown = [_Pictures(arrays[keys[camera]], ranges[camera]).bytes(middle, middle + 1) for camera in cameras]
            task = reading.task or ""
            content = identity(
                *(values[first:last] for values in vectors.values()), *shown, list(cameras.items()), stored, contract.image_size, task, instruction
            )
            said = origin(f"{path.name}, {name}", stored, next(iter(sizes.values())), native_hz, contract, content)
            source.items.append(Item(name, f"{label_of(path, reading)}-{name}", task, instruction, length, labelled, said))
            source._spans[name] = (first, last)
            continue
        source.items.append(unusable(name, max(0, last - first), labelled, problems[-1]))
    return source


def _inside(path: Path) -> str:
    """The folder of a zip file in which the buffer is; '' for its top. SourceError if there are several."""
    if not path.is_file():
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            tops = {name.partition("meta/episode_ends/")[0].rstrip("/") for name in archive.namelist() if "meta/episode_ends/" in name}
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: it cannot be read as zarr ({type(error).__name__}: {error}); was it copied whole?") from None
    if len(tops) > 1:
        raise SourceError(f"{path}: it holds {len(tops)} buffers ({', '.join(sorted(tops))}); unpack it and import them one by one")
    return tops.pop() if tops else ""


def _spans(path: Path, ends: list[int], rows: int) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Episode -> its rows; and a sentence for each that the arrays do not have."""
    spans, problems = {}, []
    for number, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
        name = f"episode_{number:06d}"
        if last <= first or last > rows or first < 0:
            problems.append(f"{path.name}, {name}: meta/episode_ends says rows {first} to {last}, which are not there; left out")
        else:
            spans[name] = (first, last)
    return spans, problems


# -- pictures ---------------------------------------------------------------------------------------------------------------------------


def _is_pictures(array: Any) -> bool:
    if array.ndim != 4 or array.dtype.kind not in "uif":
        return False
    return bool(array.shape[-1] == 3) or (array.shape[1] == 3 and min(array.shape[2:]) >= SMALLEST)


def _size(path: Path, array: Any) -> tuple[int, int]:
    """(H, W)"""
    height, width = array.shape[1:3] if array.shape[-1] == 3 else array.shape[2:]
    chunk = math.prod(array.shards or array.chunks) * array.dtype.itemsize
    if height * width > MOST_PIXELS or chunk > MOST_CHUNK_BYTES:
        raise SourceError(
            f"{path}: data/{array.basename} has pictures of {height}x{width}, {chunk / 2**20:.0f} MiB to a chunk; that is too much to be read"
        )
    return int(height), int(width)


class _Pictures:
    """Pictures of one array; the chunk that was read last is kept, since blocks are smaller than most chunks."""

    def __init__(self, array: Any, values: Range) -> None:
        self._array, self._range = array, values
        self._chunk = int((array.shards or array.chunks)[0])
        self._first, self._window = 0, np.empty((0, *array.shape[1:]), array.dtype)

    def values(self, first: int, last: int) -> npt.NDArray[Any]:
        """(K, H, W, 3): rows `first` to `last`, as stored."""
        if first < self._first or last > self._first + len(self._window):
            self._first = first // self._chunk * self._chunk
            self._window = self._array[self._first : -(-last // self._chunk) * self._chunk]
        values = self._window[first - self._first : last - self._first]
        return values if self._array.shape[-1] == 3 else np.moveaxis(values, 1, -1)

    def bytes(self, first: int, last: int) -> Pictures:
        return np.ascontiguousarray(self._range.pictures(self.values(first, last)))


def _ranges(
    path: Path, arrays: dict[str, Any], spans: dict[str, tuple[int, int]], reading: Reading
) -> tuple[dict[str, Range], dict[str, str], list[str]]:
    """What black and white are, for each camera, from all its pictures; why an episode has no usable ones; and what must be asked."""
    ranges, bad, questions = {}, dict[str, str](), list[str]()
    for camera, array in arrays.items():
        if array.dtype == np.uint8:
            ranges[camera] = RANGES["0..255"]
            continue
        lowest, highest = math.inf, -math.inf
        pictures = _Pictures(array, RANGES["0..255"])
        for name, (first, last) in spans.items():
            try:
                extremes = [(float(v.min()), float(v.max())) for a in range(first, last, 32) for v in [pictures.values(a, min(a + 32, last))]]
            except Exception as error:  # decompressors raise errors of their own
                bad[name] = f"its pictures of {camera} cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
                continue
            if not np.isfinite(extremes).all():
                bad[name] = f"its pictures of {camera} hold a value that is not a number"
                continue
            lowest, highest = min(lowest, *(low for low, _ in extremes)), max(highest, *(high for _, high in extremes))
        try:
            name = reading.picture_range or (range_of(array.dtype, lowest, highest) if highest >= lowest else "0..255")
        except ValueError as error:
            questions.append(f"{path.name}: of camera {camera} {error}; say what black and white are with --picture-range ({', '.join(RANGES)})")
            name = "0..255"
        ranges[camera] = RANGES[name]
    return ranges, bad, questions


# -- vectors and chunks -----------------------------------------------------------------------------------------------------------------


def _vectors(path: Path, key: str, array: Any) -> npt.NDArray[np.float32]:
    """(N, D), all rows; those that cannot be read are not numbers."""
    if math.prod(array.shape) * array.dtype.itemsize > MOST_VECTOR_BYTES:
        raise SourceError(f"{path}: data/{key} takes {math.prod(array.shape) * array.dtype.itemsize / 2**30:.1f} GiB; it is no array of vectors")
    if array.dtype.kind not in "uif":
        raise SourceError(f"{path}: data/{key} holds {array.dtype}, no numbers; choose another with --proprio or --action")
    try:
        return np.asarray(rows_of(array[:]), np.float32)
    except Exception:  # a damaged chunk: the episodes beside it are still good
        values = np.full((array.shape[0], width_of(array)), np.nan, np.float32)
        step = int((array.shards or array.chunks)[0])
        for first in range(0, array.shape[0], step):
            with suppress(Exception):
                values[first : first + step] = rows_of(array[first : first + step])
        return values


def _absent_rows(buffer: _Buffer, array: Any) -> list[tuple[int, int]]:
    """Spans of rows for which a chunk is not stored."""
    chunk, files = array.shards or array.chunks, buffer.files(array)
    counts = [range(-(-length // side)) for length, side in zip(array.shape, chunk, strict=True)]
    return [
        (row * chunk[0], (row + 1) * chunk[0])
        for row in counts[0]
        if not all(array.metadata.encode_chunk_key((row, *rest)) in files for rest in itertools.product(*counts[1:]))
    ]


def _absence(absent: dict[str, list[tuple[int, int]]], span: tuple[int, int]) -> str:
    """Which chunk of an episode is not stored, as a sentence; empty if all are."""
    for key, spans in absent.items():
        for first, last in spans:
            if first < span[1] and last > span[0]:
                return (
                    f"the chunk of data/{key} with rows {first} to {last} is not stored: it is lost, or holds nothing but the fill value; "
                    "restore it, or write the buffer anew with write_empty_chunks=True"
                )
    return ""
