"""Importer of the zarr replay buffers of Diffusion Policy, UMI and their descendants: one array per key holds
all episodes end to end.

    data/action                     (N, A)
    data/agentview_image, img ...   (N, H, W, 3) or (N, 3, H, W) pictures
    data/<vector>                   (N, D)
    meta/episode_ends               (E,) where each episode ends

A folder or a zip file, zarr's format 2 or 3, possibly inside other folders. It states neither task nor rate:
`--task`, `--instruction` and `--hz` do. zarr returns the fill value for a missing chunk; episodes with such
values are left out.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.importers.base import EpisodeInfo, ImportOptions, Item, RawEpisode, Source, SourceInfo
from orchestrator.data.importers.conventions import (
    cameras_by_name,
    chosen_cameras,
    chosen_proprio,
    names_of,
    native_rate,
    orientation,
    renamed_actions,
    rows_of,
    source_info,
    width_of,
)
from orchestrator.data.importers.image_ops import (
    MOST_PIXELS,
    RANGES,
    SMALLEST,
    Pictures,
    ValueRange,
    in_blocks,
    other_channels,
    passed_over,
    range_of,
)
from orchestrator.data.importers.items import build_items, label_of
from orchestrator.data.importers.source_files import SourceError
from orchestrator.data.importers.zarr_chunks import (
    ReplayBuffer,
    chunk_faults,
    folder_in_zip,
    refuse_large,
    vectors_of,
)
from sim_workers.envs.robosuite import PROPRIO_KEYS
from sim_workers.envs.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class ReplayBufferReader:
    """Reader of one replay buffer."""

    buffer: ReplayBuffer
    keys: dict[str, str]
    """Camera of the source -> its array."""
    ranges: dict[str, ValueRange]
    """Camera of the source -> range of its values."""
    proprio: tuple[str, ...]
    action: str
    spans: dict[str, tuple[int, int]]
    """Episode -> (first row, row after the last)."""

    def read(self, item: Item, info: SourceInfo) -> RawEpisode:
        """Return an episode, pictures upright and scaled; SourceError or ValueError if it is damaged."""
        first, last = self.spans[item.name]
        try:
            data = self.buffer.open()["data"]
            kept = info.kept(last - first)
            frames = {}
            for camera in info.cameras:
                pictures = _Pictures(data[self.keys[camera]], self.ranges[camera])
                frames[camera] = in_blocks(
                    pictures.bytes, first + kept, info.stored, info.contract.image_size
                )
            return RawEpisode(
                frames=frames,
                rows=last - first,
                proprio=(
                    np.concatenate([rows_of(data[key][first:last]) for key in self.proprio], 1)
                    if self.proprio
                    else None
                ),
                action=data[self.action][first:last] if item.labelled else None,
            )
        except Exception as error:  # decompressors raise various errors
            said = " ".join(str(error).split())
            raise SourceError(
                f"{info.name}, {item.name}: it cannot be read ({type(error).__name__}: {said}); restore its"
                " chunks"
            ) from None

    def first_pictures(self, item: Item, info: SourceInfo) -> dict[str, Pictures]:
        """Return one (H, W, 3) picture per camera as stored."""
        first, _ = self.spans[item.name]
        data = self.buffer.open()["data"]
        return {
            camera: _Pictures(data[self.keys[camera]], self.ranges[camera]).bytes(first, first + 1)[0]
            for camera in info.cameras
        }


def open_replay_buffer(path: Path, reading: ImportOptions) -> Source:
    """Open a buffer and check its arrays. Raises SourceError if it is none, or if an option is missing or
    wrong.
    """
    buffer, where = ReplayBuffer(path, folder_in_zip(path)), str(path)
    arrays, last_rows = _arrays(buffer)
    pictures = [name for name, array in arrays.items() if _is_pictures(array)]
    keys = cameras_by_name(pictures)
    if len(keys) < len(pictures):  # `front_rgb` and `front_image`
        keys = {name: name for name in pictures}
    cameras = chosen_cameras(where, keys, reading)
    if not cameras:
        raise SourceError(f"{path}: it has no pictures among its arrays ({', '.join(sorted(arrays))})")
    labelled, action = not reading.action_free, reading.action or "action"
    if labelled and action not in arrays:
        raise SourceError(
            f"{path}: it has no data/{action}; name the action with --action, or add --action-free to import"
            " its pictures"
        )
    if labelled and arrays[action].ndim != 2:
        raise SourceError(
            f"{path}: data/{action} has the shape {arrays[action].shape}, where (N, A) is meant; name another"
            " with --action"
        )
    widths = {
        name: width_of(array)
        for name, array in arrays.items()
        if array.ndim in (1, 2) and array.dtype.kind == "f" and name != action
    }
    proprio, names = chosen_proprio(where, "arrays", widths, (PROPRIO_KEYS,), reading)
    used = [*(keys[camera] for camera in cameras), *proprio, *([action] if labelled else [])]
    sizes = {camera: _size(path, arrays[keys[camera]]) for camera in cameras}
    if reading.picture_range not in (None, "0..255") and all(
        arrays[keys[camera]].dtype == np.uint8 for camera in cameras
    ):
        raise SourceError(
            f"{path}: --picture-range {reading.picture_range} cannot be applied to pictures that are bytes;"
            " leave it out"
        )
    for key in used:
        refuse_large(path, f"data/{key}", arrays[key])
    faults = {key: chunk_faults(buffer, f"data/{key}", arrays[key]) for key in used}
    vectors = {}
    for key in [*proprio, *([action] if labelled else [])]:
        vectors[key], damaged = vectors_of(path, key, arrays[key])
        faults[key] += damaged
    native_hz = native_rate(where, None, reading)
    stored, questions = orientation(path.name, reading)
    instruction = reading.instruction or TASKS.get(reading.task or "", "")
    if not reading.task:
        questions.append(f"{path.name}: it does not name its task; say it with --task")
    if not instruction:
        questions.append(f"{path.name}: it does not say in words what is done; say it with --instruction")
    rows = {key: int(arrays[key].shape[0]) for key in used}
    _refuse_other_rows(path, rows, last_rows)
    spans, problems = _spans(path, last_rows, min(rows.values()))
    if not reading.cameras:
        problems += passed_over(
            path.name, {f"data/{name}": other_channels(array) for name, array in arrays.items()}
        )
    every = [fault for key in used for fault in faults[key]]
    bad = {
        name: next((f.sentence for f in every if f.first < last and f.last > first), "")
        for name, (first, last) in spans.items()
    }
    ranges, nan, more = _ranges(
        path,
        {c: arrays[keys[c]] for c in cameras},
        {name: s for name, s in spans.items() if not bad[name]},
        reading,
    )
    questions += more
    bad |= nan
    action_dims = names_of([action], [int(arrays[action].shape[1])]) if labelled else ()
    info = source_info(
        where,
        reading,
        format="diffusion-policy zarr",
        name=path.name,
        label=label_of(path, reading),
        cameras=cameras,
        sizes=sizes,
        stored=stored,
        native_hz=native_hz,
        labelled=labelled,
        proprio=names,
        action=action_dims,
    )
    task = reading.task or ""

    def describe(name: str) -> EpisodeInfo:
        first, last = spans[name]
        if bad.get(name):
            raise ValueError(bad[name])
        if not all(np.isfinite(values[first:last]).all() for values in vectors.values()):
            raise ValueError("it holds a value that is not a number")
        middle = (first + last) // 2
        shown = [
            _Pictures(arrays[keys[camera]], ranges[camera]).bytes(middle, middle + 1) for camera in cameras
        ]
        return EpisodeInfo(
            rows=last - first,
            picture_size=next(iter(sizes.values())),
            task=task,
            instruction=instruction,
            content=(
                *(values[first:last] for values in vectors.values()),
                *shown,
                *info.choices,
                task,
                instruction,
            ),
        )

    listing = build_items(info, {name: last - first for name, (first, last) in spans.items()}, describe)
    largest = float(np.nanmax(np.abs(vectors[action][:, :-1]), initial=0)) if labelled else 0.0
    renamed, more = renamed_actions(info, largest, reading)
    return Source(
        info=renamed,
        reader=ReplayBufferReader(
            buffer=buffer, keys=keys, ranges=ranges, proprio=proprio, action=action, spans=spans
        ),
        items=listing.items,
        problems=problems + listing.problems,
        questions=questions + more,
    )


def _arrays(buffer: ReplayBuffer) -> tuple[dict[str, Any], list[int]]:
    """Return the arrays of `data` by name, and the row after the last of each episode. Raises SourceError if
    the buffer has none.
    """
    root = buffer.open()
    try:
        arrays, ends = dict(sorted(root["data"].arrays())), root["meta/episode_ends"]
        refuse_large(buffer.path, "meta/episode_ends", ends)
        if lost := chunk_faults(buffer, "meta/episode_ends", ends):
            raise SourceError(f"{buffer.path}: {lost[0].sentence}")
        return arrays, [int(end) for end in ends[:]]
    except SourceError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        reason = (
            "it is compressed with a codec that is not installed; run `pip install imagecodecs` if it is"
            " UMI's, otherwise install the codec"
            if "codec" in said
            else "it is no replay buffer with data/* and meta/episode_ends"
        )
        raise SourceError(f"{buffer.path}: {reason} ({said})") from None


def _refuse_other_rows(path: Path, rows: dict[str, int], ends: list[int]) -> None:
    """Raise SourceError for arrays of different lengths of which one goes on after the last episode: their
    rows may not belong to the same moments.
    """
    if len(set(rows.values())) > 1 and max(rows.values()) > max(ends, default=0):
        listed = ", ".join(f"data/{key} {count}" for key, count in rows.items())
        raise SourceError(
            f"{path}: its arrays differ in rows ({listed}), and meta/episode_ends ends at row"
            f" {max(ends, default=0)}; write them with one row per step"
        )


def _spans(path: Path, ends: list[int], rows: int) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return episode -> its rows, and a sentence for each whose rows are missing or uncertain.

    Where ends descend, either of the two may be wrong, so all episodes that begin or end at one of them are
    left out.
    """
    bounds = [0, *ends]
    falls = {i for i in range(1, len(bounds)) if bounds[i] < bounds[i - 1]}
    uncertain = (falls | {i - 1 for i in falls}) - {0}
    spans, problems, reached = {}, [], 0
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        name = f"episode_{number:06d}"
        said = f"{path.name}, {name}: meta/episode_ends says rows {first} to {last}"
        if last <= first or last > rows or first < 0:
            problems.append(f"{said}, which are not there; left out")
        elif first < reached or {number, number + 1} & uncertain:
            problems.append(f"{said}, but its ends do not ascend there; correct them; left out")
        else:
            spans[name], reached = (first, last), last
    if ends and (end := max(ends)) < rows:
        problems.append(
            f"{path.name}: rows {end} to {rows} belong to no episode of meta/episode_ends; left out"
        )
    return spans, problems


# -- pictures ------------------------------------------------------------------------------------------------


def _is_pictures(array: Any) -> bool:
    if array.ndim != 4 or array.dtype.kind not in "uif":
        return False
    return bool(array.shape[-1] == 3) or (array.shape[1] == 3 and min(array.shape[2:]) >= SMALLEST)


def _size(path: Path, array: Any) -> tuple[int, int]:
    """Return (H, W) of an array's pictures. Raises SourceError if they have more than MOST_PIXELS pixels."""
    height, width = array.shape[1:3] if array.shape[-1] == 3 else array.shape[2:]
    if height * width > MOST_PIXELS:
        raise SourceError(
            f"{path}: data/{array.basename} has pictures of {height}x{width}; that is too much to be read"
        )
    return int(height), int(width)


class _Pictures:
    """Pictures of one array; the last chunk read is cached, since blocks are smaller than most chunks."""

    def __init__(self, array: Any, values: ValueRange) -> None:
        self._array, self._range = array, values
        self._chunk = int(array.chunks[0])
        self._first, self._window = 0, np.empty((0, *array.shape[1:]), array.dtype)

    def values(self, first: int, last: int) -> npt.NDArray[Any]:
        """Return rows `first` to `last`, (K, H, W, 3), with values as stored."""
        if first < self._first or last > self._first + len(self._window):
            begin = first // self._chunk * self._chunk
            self._window = self._array[begin : -(-last // self._chunk) * self._chunk]
            self._first = begin  # after the read: a chunk that cannot be read leaves the cache valid
        values = self._window[first - self._first : last - self._first]
        return values if self._array.shape[-1] == 3 else np.moveaxis(values, 1, -1)

    def bytes(self, first: int, last: int) -> Pictures:
        return np.ascontiguousarray(self._range.pictures(self.values(first, last)))


def _ranges(
    path: Path, arrays: dict[str, Any], spans: dict[str, tuple[int, int]], reading: ImportOptions
) -> tuple[dict[str, ValueRange], dict[str, str], list[str]]:
    """Return camera -> range of its values, from all its pictures, episode -> fault of its pictures, and
    questions.
    """
    ranges, bad, questions = {}, dict[str, str](), list[str]()
    for camera, array in arrays.items():
        if array.dtype == np.uint8:
            ranges[camera] = RANGES["0..255"]
            continue
        lowest, highest = math.inf, -math.inf
        pictures = _Pictures(array, RANGES["0..255"])
        for name, (first, last) in spans.items():
            try:
                extremes = [
                    (float(v.min()), float(v.max()))
                    for a in range(first, last, 32)
                    for v in [pictures.values(a, min(a + 32, last))]
                ]
            except Exception as error:  # decompressors raise various errors
                bad[name] = (
                    f"its pictures of {camera} cannot be read ({type(error).__name__}:"
                    f" {' '.join(str(error).split())})"
                )
                continue
            if not np.isfinite(extremes).all():
                bad[name] = f"its pictures of {camera} hold a value that is not a number"
                continue
            lowest, highest = (
                min(lowest, *(low for low, _ in extremes)),
                max(highest, *(high for _, high in extremes)),
            )
        try:
            name = reading.picture_range or (
                range_of(array.dtype, lowest, highest) if highest >= lowest else "0..255"
            )
        except ValueError as error:
            questions.append(
                f"{path.name}: of camera {camera} {error}; say what black and white are with --picture-range"
                f" ({', '.join(RANGES)})"
            )
            name = "0..255"
        ranges[camera] = RANGES[name]
    return ranges, bad, questions
