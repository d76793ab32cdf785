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
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from orchestrator.data.episode_format import Episode
from orchestrator.data.importers.base import (
    ImportOptions,
    Item,
    Pictures,
    RawEpisode,
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
from orchestrator.data.importers.image_ops import (
    MOST_PIXELS,
    MOST_VECTOR_BYTES,
    RANGES,
    SMALLEST,
    ValueRange,
    in_blocks,
    range_of,
)
from policy.interface import Contract
from sim_workers.envs.robosuite import PROPRIO_KEYS
from sim_workers.envs.tasks import TASKS

MOST_CHUNK_BYTES = 2 << 30
"""Maximum bytes of one chunk, or of one member of a zip file."""
ABSENT = 2**64 - 1
"""Length in a shard's index of a chunk that is not stored."""


@dataclass(frozen=True)
class _Buffer:
    """Folder or zip file of a buffer."""

    path: Path
    inside: str
    """Folder of the buffer in the zip file; empty for its top."""

    def open(self) -> Any:
        """Open the group with `data` and `meta`. Raises SourceError if it cannot be read as zarr."""
        with suppress(ImportError):
            from imagecodecs.numcodecs import register_codecs  # UMI's pictures are JPEG XL

            register_codecs(verbose=False)
        try:
            if self.path.is_file():
                return zarr.open_group(
                    zarr.storage.ZipStore(self.path, mode="r"), path=self.inside or None, mode="r"
                )
            return zarr.open_group(str(self.path), mode="r")
        except Exception as error:
            raise SourceError(
                f"{self.path}: it cannot be read as zarr ({type(error).__name__}:"
                f" {' '.join(str(error).split())})"
            ) from None

    @contextmanager
    def files(self, array: Any) -> Iterator["_Files"]:
        """Provide the files of an array."""
        if not self.path.is_file():
            folder = self.path / array.path
            yield _Files(
                {
                    file.relative_to(folder).as_posix(): file.stat().st_size
                    for file in folder.rglob("*")
                    if file.is_file()
                },
                folder,
            )
            return
        with zipfile.ZipFile(self.path) as archive:
            start = f"{array.path}/"
            members = {
                m.filename.removeprefix(start): m.file_size
                for m in archive.infolist()
                if m.filename.startswith(start)
            }
            yield _Files(members, zipfile.Path(archive, start))


@dataclass(frozen=True)
class _Files:
    """Files of one array: chunks, or shards of chunks."""

    sizes: dict[str, int]
    """Name, relative to the array -> size in bytes."""
    _folder: Path | zipfile.Path

    def part(self, name: str, first: int, length: int) -> bytes:
        """Return `length` bytes of a file from byte `first` on; fewer where it ends before."""
        with (self._folder / name).open("rb") as file:
            file.seek(first)
            return bytes(file.read(length))


@dataclass
class ReplayBuffer:
    """Source: one replay buffer."""

    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _buffer: _Buffer
    _cameras: dict[str, str]
    _keys: dict[str, str]
    """Camera of the source -> its array."""
    _ranges: dict[str, ValueRange]
    """Camera of the source -> range of its values."""
    _proprio: tuple[str, ...]
    _action: str
    _stored: str
    _native_hz: float
    _spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Item -> (first row, row after the last)."""

    def read(self, item: Item) -> Episode:
        """Return the whole episode, pictures upright, at the contract's size and rate."""
        first, last = self._spans[item.name]
        try:
            data = self._buffer.open()["data"]
            kept = kept_frames(last - first, self._native_hz, self.contract.control_hz)
            frames = {}
            for camera in self._cameras:
                pictures = _Pictures(data[self._keys[camera]], self._ranges[camera])
                frames[camera] = in_blocks(
                    pictures.bytes, first + kept, self._stored, self.contract.image_size
                )
            raw = RawEpisode(
                frames=frames,
                proprio=(
                    np.concatenate([rows_of(data[key][first:last]) for key in self._proprio], 1)
                    if self._proprio
                    else None
                ),
                action=data[self._action][first:last] if item.labelled else None,
                success=None,
                rows=last - first,
            )
        except Exception as error:  # decompressors raise various errors
            said = " ".join(str(error).split())
            raise SourceError(
                f"{self._buffer.path.name}, {item.name}: it cannot be read ({type(error).__name__}: {said});"
                " restore its chunks"
            ) from None
        return finished(item, raw, self.contract, self._cameras, self._native_hz)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        """Return the first picture of each camera as stored, neither turned nor scaled."""
        first, _ = self._spans[item.name]
        data = self._buffer.open()["data"]
        return {
            camera: _Pictures(data[self._keys[camera]], self._ranges[camera]).bytes(first, first + 1)[0]
            for camera in self._cameras
        }


def open_replay_buffer(path: Path, reading: ImportOptions) -> ReplayBuffer:
    """Open a buffer and check its arrays. Raises SourceError if it is none, or if an option is missing or
    wrong.
    """
    buffer, where = _Buffer(path, _inside(path)), str(path)
    root = buffer.open()
    try:
        arrays, ends = dict(sorted(root["data"].arrays())), root["meta/episode_ends"]
        _refuse_bulk(path, "meta/episode_ends", ends)
        if lost := _faults(buffer, "meta/episode_ends", ends):
            raise SourceError(f"{path}: {lost[0].sentence}")
        last_rows = [int(end) for end in ends[:]]
    except SourceError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        mend = (
            "it is compressed with a codec that is not installed; run `pip install imagecodecs` if it is"
            " UMI's, otherwise install the codec"
            if "codec" in said
            else "it is no replay buffer with data/* and meta/episode_ends"
        )
        raise SourceError(f"{path}: {mend} ({said})") from None
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
        _refuse_bulk(path, f"data/{key}", arrays[key])
    faults = {key: _faults(buffer, f"data/{key}", arrays[key]) for key in used}
    vectors = {}
    for key in [*proprio, *([action] if labelled else [])]:
        vectors[key], damaged = _vectors(path, key, arrays[key])
        faults[key] += damaged
    native_hz = native_rate(where, None, reading)
    stored, questions = orientation(path.name, "upright", "", reading)
    instruction = reading.instruction or TASKS.get(reading.task or "", "")
    if not reading.task:
        questions.append(f"{path.name}: it does not name its task; say it with --task")
    if not instruction:
        questions.append(f"{path.name}: it does not say in words what is done; say it with --instruction")
    spans, problems = _spans(path, last_rows, min(arrays[key].shape[0] for key in used))
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
    contract = contract_of(where, cameras, sizes, names, action_dims, native_hz, "unknown", reading)
    largest = float(np.nanmax(np.abs(vectors[action][:, :-1]), initial=0)) if labelled else 0.0
    renamed, more = action_names(path.name, contract.action, largest, reading)
    contract, questions = replace(contract, action=renamed), questions + more
    source = ReplayBuffer(
        "diffusion-policy zarr",
        contract,
        [],
        problems,
        questions,
        buffer,
        cameras,
        keys,
        ranges,
        proprio,
        action,
        stored,
        native_hz,
    )
    for name, (first, last) in spans.items():
        with leaving_out(f"{path.name}, {name}", problems):
            if bad.get(name):
                raise ValueError(bad[name])
            if not all(np.isfinite(values[first:last]).all() for values in vectors.values()):
                raise ValueError("it holds a value that is not a number")
            length = len(kept_frames(last - first, native_hz, contract.control_hz))
            refuse_bulk(length, len(cameras), contract.image_size)
            middle = (first + last) // 2
            shown = [
                _Pictures(arrays[keys[camera]], ranges[camera]).bytes(middle, middle + 1)
                for camera in cameras
            ]
            task = reading.task or ""
            content = identity(
                *(values[first:last] for values in vectors.values()),
                *shown,
                list(cameras.items()),
                stored,
                contract.image_size,
                task,
                instruction,
            )
            said = origin(
                f"{path.name}, {name}", stored, next(iter(sizes.values())), native_hz, contract, content
            )
            source.items.append(
                Item(name, f"{label_of(path, reading)}-{name}", task, instruction, length, labelled, said)
            )
            source._spans[name] = (first, last)
            continue
        source.items.append(unusable(name, max(0, last - first), labelled, problems[-1]))
    return source


def _inside(path: Path) -> str:
    """Return the folder of the buffer in a zip file; '' for its top or for a folder. Raises SourceError if
    there are several.
    """
    if not path.is_file():
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path}: it cannot be read as zarr ({type(error).__name__}: {error}); was it copied whole?"
        ) from None
    if large := [member for member in members if member.file_size > MOST_CHUNK_BYTES]:
        raise SourceError(
            f"{path}: its member {large[0].filename} announces {large[0].file_size / 2**30:.0f} GiB; that is"
            " too much to be read"
        )
    found = (re.match(r"(?:(.*)/)?meta/episode_ends/", member.filename) for member in members)
    tops = {match[1] or "" for match in found if match}
    tops = {
        top for top in tops if not any(part == "__MACOSX" or part.startswith(".") for part in top.split("/"))
    }
    if len(tops) > 1:
        raise SourceError(
            f"{path}: it holds {len(tops)} buffers ({', '.join(sorted(tops))}); unpack it and import them one"
            " by one"
        )
    return tops.pop() if tops else ""


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


# -- vectors and chunks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fault:
    """Range of rows of an array that are not stored, or are damaged."""

    first: int
    last: int
    """Row after the last."""
    sentence: str


def _refuse_bulk(path: Path, name: str, array: Any) -> None:
    """Raise SourceError for an array that is too large to read: vectors are read whole, pictures chunk by
    chunk.
    """
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if chunk > MOST_CHUNK_BYTES:
        raise SourceError(
            f"{path}: {name} has chunks of {chunk / 2**30:.1f} GiB; that is too much to be read, write it"
            " again in smaller ones"
        )
    if array.ndim <= 2 and (nbytes := math.prod(array.shape) * array.dtype.itemsize) > MOST_VECTOR_BYTES:
        raise SourceError(f"{path}: {name} takes {nbytes / 2**30:.1f} GiB; it is no array of vectors")


def _vectors(path: Path, key: str, array: Any) -> tuple[npt.NDArray[np.float32], list[_Fault]]:
    """Return all rows, (N, D), and faults for those that cannot be read, which are NaN. Raises SourceError if
    they are no numbers.
    """
    if array.dtype.kind not in "uif":
        raise SourceError(
            f"{path}: data/{key} holds {array.dtype}, no numbers; choose another with --proprio or --action"
        )
    try:
        return np.asarray(rows_of(array[:]), np.float32), []
    except Exception:  # a damaged chunk: read by chunk, so that the other episodes stay usable
        values, faults = np.full((array.shape[0], width_of(array)), np.nan, np.float32), []
        step = int(array.chunks[0])
        for first in range(0, array.shape[0], step):
            try:
                values[first : first + step] = rows_of(array[first : first + step])
            except Exception as error:
                said = (
                    f"rows {first} to {first + step} of data/{key} cannot be read ({type(error).__name__}:"
                    f" {' '.join(str(error).split())})"
                )
                faults.append(_Fault(first, first + step, f"{said}; restore their chunk"))
        return values, faults


def _faults(buffer: _Buffer, name: str, array: Any) -> list[_Fault]:
    """Return the chunks that are not stored, for which zarr returns fill values, or that are cut short
    without zarr's notice.
    """
    layout, faults = _layout(buffer, name, array), []
    outer = array.shards or array.chunks
    with buffer.files(array) as files:
        for place in itertools.product(
            *(range(-(-length // side)) for length, side in zip(array.shape, outer, strict=True))
        ):
            file = array.metadata.encode_chunk_key(place)
            rows = (place[0] * outer[0], (place[0] + 1) * outer[0])
            if file not in files.sizes:
                faults.append(_absent(name, *rows))
            elif layout.inner is None:
                if layout.blosc and not _is_whole(files.part(file, 0, 16), files.sizes[file]):
                    faults.append(_cut_short(name, *rows))
            else:
                faults += _shard_faults(name, array, layout, files, file, place)
    return faults


@dataclass(frozen=True)
class _Layout:
    """Layout of chunks in an array's files, from its metadata."""

    blosc: bool
    """Whether chunks begin with Blosc's header. Its decoder reads past the end of a chunk that is cut
    short.
    """
    inner: tuple[int, ...] | None = None
    """Number of chunks in a shard, per axis; None where every file is a chunk."""
    index_first: bool = False
    checksum: int = 0
    """Bytes of the checksum after a shard's index."""


def _layout(buffer: _Buffer, name: str, array: Any) -> _Layout:
    metadata = array.metadata.to_dict()
    if metadata["zarr_format"] == 2:
        return _Layout(getattr(array.metadata.compressor, "codec_id", "") == "blosc")
    codecs = metadata["codecs"]
    if not array.shards:
        return _Layout(_is_blosc(codecs))
    settings = codecs[0]["configuration"]
    index = [codec["name"] for codec in settings["index_codecs"]]
    big = any(codec.get("configuration", {}).get("endian") == "big" for codec in settings["index_codecs"])
    nested = any(codec["name"] == "sharding_indexed" for codec in settings["codecs"])
    if len(codecs) > 1 or nested or big or index not in (["bytes"], ["bytes", "crc32c"]):
        raise SourceError(
            f"{buffer.path}: {name} is sharded in a way that hides which chunks are stored; write it again"
            " without shards"
        )
    inner = tuple(outer // side for outer, side in zip(array.shards, array.chunks, strict=True))
    return _Layout(
        _is_blosc(settings["codecs"]), inner, settings["index_location"] == "start", 4 * (len(index) - 1)
    )


def _is_blosc(codecs: Sequence[Any]) -> bool:
    return codecs[-1]["name"] in ("blosc", "numcodecs.blosc")


def _is_whole(header: bytes, size: int) -> bool:
    """Return whether a Blosc chunk is as long as its header says."""
    return len(header) == 16 and int.from_bytes(header[12:16], "little") == size


def _shard_faults(
    name: str, array: Any, layout: _Layout, files: _Files, file: str, place: tuple[int, ...]
) -> list[_Fault]:
    """Return the faulty chunks of one shard, whose index has the offset and the length of each chunk."""
    assert layout.inner is not None
    size, count = files.sizes[file], math.prod(layout.inner)
    index = files.part(
        file, 0 if layout.index_first else max(0, size - 16 * count - layout.checksum), 16 * count
    )
    first = place[0] * array.shards[0]
    if len(index) < 16 * count:
        return [_cut_short(name, first, first + array.shards[0])]
    faults = []
    for inside, (offset, length) in zip(
        np.ndindex(*layout.inner), np.frombuffer(index, "<u8").reshape(-1, 2).tolist(), strict=True
    ):
        begins = [
            p * outer + i * side
            for p, outer, i, side in zip(place, array.shards, inside, array.chunks, strict=True)
        ]
        rows = (begins[0], begins[0] + array.chunks[0])
        if any(begin >= end for begin, end in zip(begins, array.shape, strict=True)):
            continue  # the last shard extends past the array's end
        if length == ABSENT:
            faults.append(_absent(name, *rows))
        elif offset + length > size or (layout.blosc and not _is_whole(files.part(file, offset, 16), length)):
            faults.append(_cut_short(name, *rows))
    return faults


def _absent(name: str, first: int, last: int) -> _Fault:
    said = (
        f"the chunk of {name} with rows {first} to {last} is not stored: it is lost, or holds nothing but the"
        " fill value"
    )
    return _Fault(first, last, f"{said}; restore it, or write the buffer again with write_empty_chunks=True")


def _cut_short(name: str, first: int, last: int) -> _Fault:
    return _Fault(first, last, f"the chunk of {name} with rows {first} to {last} is cut short; restore it")
