"""Chunks of a zarr replay buffer, in a folder or a zip file: which are stored, lost or damaged.

zarr returns the fill value for a chunk that is not stored, and some decoders read past the end of one that is
cut short, so chunks are checked before their values are used.
"""

import itertools
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from orchestrator.data.importers.conventions import rows_of, width_of
from orchestrator.data.importers.image_ops import MOST_VECTOR_BYTES
from orchestrator.data.importers.source_files import SourceError

MOST_CHUNK_BYTES = 2 << 30
"""Maximum bytes of one chunk, or of one member of a zip file."""
ABSENT = 2**64 - 1
"""Length in a shard's index of a chunk that is not stored."""


@dataclass(frozen=True)
class ReplayBuffer:
    """Folder or zip file of a buffer."""

    path: Path
    inside: str
    """Folder of the buffer in the zip file; empty for its top."""

    def open(self) -> Any:
        """Open the group with `data` and `meta`. Raises SourceError if it cannot be read as zarr.

        Consolidated metadata are not used: they are a copy, and older than episodes that were added later.
        """
        with suppress(ImportError):
            from imagecodecs.numcodecs import register_codecs  # UMI's pictures are JPEG XL

            register_codecs(verbose=False)
        try:
            if self.path.is_file():
                return zarr.open_group(
                    zarr.storage.ZipStore(self.path, mode="r"),
                    path=self.inside or None,
                    mode="r",
                    use_consolidated=False,
                )
            return zarr.open_group(str(self.path), mode="r", use_consolidated=False)
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


def folder_in_zip(path: Path) -> str:
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


@dataclass(frozen=True)
class ChunkFault:
    """Range of rows of an array that are not stored, or are damaged."""

    first: int
    last: int
    """Row after the last."""
    sentence: str


def refuse_large(path: Path, name: str, array: Any) -> None:
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


def vectors_of(path: Path, key: str, array: Any) -> tuple[npt.NDArray[np.float32], list[ChunkFault]]:
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
                faults.append(ChunkFault(first, first + step, f"{said}; restore their chunk"))
        return values, faults


def chunk_faults(buffer: ReplayBuffer, name: str, array: Any) -> list[ChunkFault]:
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


def _layout(buffer: ReplayBuffer, name: str, array: Any) -> _Layout:
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
        blosc=_is_blosc(settings["codecs"]),
        inner=inner,
        index_first=settings["index_location"] == "start",
        checksum=4 * (len(index) - 1),
    )


def _is_blosc(codecs: Sequence[Any]) -> bool:
    return codecs[-1]["name"] in ("blosc", "numcodecs.blosc")


def _is_whole(header: bytes, size: int) -> bool:
    """Return whether a Blosc chunk is as long as its header says."""
    return len(header) == 16 and int.from_bytes(header[12:16], "little") == size


def _shard_faults(
    name: str, array: Any, layout: _Layout, files: _Files, file: str, place: tuple[int, ...]
) -> list[ChunkFault]:
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


def _absent(name: str, first: int, last: int) -> ChunkFault:
    said = (
        f"the chunk of {name} with rows {first} to {last} is not stored: it is lost, or holds nothing but the"
        " fill value"
    )
    return ChunkFault(
        first, last, f"{said}; restore it, or write the buffer again with write_empty_chunks=True"
    )


def _cut_short(name: str, first: int, last: int) -> ChunkFault:
    return ChunkFault(
        first, last, f"the chunk of {name} with rows {first} to {last} is cut short; restore it"
    )
