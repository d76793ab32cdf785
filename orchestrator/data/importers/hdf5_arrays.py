"""Safe access to the groups and arrays of an HDF5 file of unknown origin.

An HDF5 file can name other files of this machine (external links, external storage, virtual datasets); these
are refused. HDF5 returns zeros for data that were never written; such arrays are refused, since the zeros are
neither pictures nor actions.
"""

import importlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from orchestrator.data.importers.image_ops import BLOCK, MOST_PIXELS, MOST_VECTOR_BYTES, SMALLEST

with suppress(ImportError):
    importlib.import_module("hdf5plugin")  # registers its filters with HDF5

CHUNK_CACHE = 64 << 20
"""Bytes of cache per open dataset, so that a chunk that spans several blocks of frames is
decompressed once.
"""
FAULTS = (OSError, KeyError, RuntimeError, ValueError, TypeError)
"""Exceptions that h5py raises for a damaged file."""
MOST_LINKS = 16
"""Maximum length of a chain of soft links."""

FILTERS = {
    305: "lzo",
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32012: "fpzip",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
}
"""Registered number -> name of compressors that are not part of HDF5."""


# -- reaching ------------------------------------------------------------------------------------------------


def member(group: Any, path: str, followed: int = 0) -> Any:
    """Return the group or dataset at a path, None if there is none. Raises ValueError for a broken, circular
    or external link.

    HDF5 opens the target of an external link on lookup, so links are followed here, one name at a time.
    """
    found = group.file["/"] if path.startswith("/") else group
    for name in filter(lambda part: part not in ("", "."), path.split("/")):
        link = _link(found, name)
        if link is None:
            return None
        _refuse_external(link, name)
        if isinstance(link, h5py.SoftLink):
            if followed == MOST_LINKS:
                raise ValueError(f"its link {name} leads in a circle")
            target = member(found, link.path, followed + 1)
            if target is None:
                raise ValueError(f"its link {name} leads to {link.path}, which is not there")
            found = target
        else:
            found = found[name]
    return found


def _link(group: Any, name: str) -> Any:
    """Return the link of that name; None if there is none."""
    if not isinstance(group, h5py.Group):
        return None
    try:
        return group.get(name, getlink=True)
    except TypeError:
        raise ValueError(f"its link {name} is of a kind that is not followed") from None


def _refuse_external(link: Any, name: str) -> None:
    if isinstance(link, h5py.ExternalLink):
        raise ValueError(
            f"its {name} is a link into another file ({link.filename}), which is not followed; copy into the"
            " file what it links to"
        )


def refuse_elsewhere(group: Any) -> None:
    """Raise ValueError if anything in a group takes its data from another file.

    Soft links are not followed here: `member` checks those that are used.
    """
    seen, waiting = set(), [group]
    while waiting:
        here = waiting.pop()
        if (address := h5py.h5o.get_info(here.id).addr) in seen:
            continue
        seen.add(address)
        for name in here:
            link = _link(here, name)
            _refuse_external(link, name)
            if not isinstance(link, h5py.HardLink):
                continue
            found = here[name]
            if isinstance(found, h5py.Group):
                waiting.append(found)
            elif isinstance(found, h5py.Dataset):
                _refuse_stored_elsewhere(found, name)


def _refuse_stored_elsewhere(dataset: Any, name: str) -> None:
    if dataset.external:
        raise ValueError(
            f"the data of its {name} are in another file ({dataset.external[0][0]}), which is not read; copy"
            " them into the file"
        )
    if dataset.is_virtual:
        raise ValueError(
            f"the data of its {name} are put together from other datasets, which are not read; copy them into"
            " the file"
        )


# -- reading -------------------------------------------------------------------------------------------------


def refuse_unreadable(dataset: Any, name: str) -> None:
    """Raise ValueError for a dataset with values in another file, never written, or of a compressor that is
    not installed.
    """
    _refuse_stored_elsewhere(dataset, name)
    properties = dataset.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code, _, _, described = properties.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            said = (
                FILTERS.get(code)
                or described.decode(errors="replace").split(";")[0].strip()
                or "an unknown filter"
            )
            raise ValueError(
                f"the data of its {name} are compressed with {said} (HDF5 filter {code}), which is not"
                " installed here; run `pip install hdf5plugin`"
            )
    if not dataset.size:
        return
    if dataset.chunks:
        expected = prod(
            -(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)
        )
        if (written := dataset.id.get_num_chunks()) < expected:
            raise ValueError(
                f"of its {name} only {written} of {expected} chunks were ever written; record or copy it"
                " again"
            )
    elif dataset.id.get_storage_size() == 0:
        raise ValueError(f"of its {name} nothing was ever written; record or copy it again")


def is_vectors(found: Any) -> bool:
    """Return whether it is a dataset of (N,) or (N, D) numbers."""
    return isinstance(found, h5py.Dataset) and found.ndim in (1, 2) and found.dtype.kind in "fiu"


def vectors(dataset: Any, name: str) -> npt.NDArray[Any]:
    """Return all values of a dataset, (N, D). Raises ValueError if they cannot be read, are too many, or are
    not finite.
    """
    refuse_unreadable(dataset, name)
    if dataset.size * dataset.dtype.itemsize > MOST_VECTOR_BYTES:
        raise ValueError(
            f"the data of its {name} take {dataset.size * dataset.dtype.itemsize / 2**30:.1f} GiB, more than"
            f" {MOST_VECTOR_BYTES >> 30}"
        )
    values = dataset[()]
    values = values.reshape(len(values), prod(values.shape[1:]))
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32)).all(axis=1)
    if not finite.all():
        raise ValueError(f"a value of its {name} is not a number (row {int(np.argmin(finite))})")
    return np.asarray(values)


@dataclass(frozen=True)
class PictureArray:
    """N pictures of one camera, of any number type, channels first or last."""

    dataset: Any
    name: str
    channels_first: bool

    @property
    def rows(self) -> int:
        """Number of pictures."""
        return int(self.dataset.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.dataset.shape[2:] if self.channels_first else self.dataset.shape[1:3]
        return int(height), int(width)

    @property
    def number(self) -> str:
        """Name of its number type."""
        return str(self.dataset.dtype.name)

    def block(self, first: int, last: int) -> npt.NDArray[Any]:
        """Return the pictures of rows `first` to `last` (excluded), (K, H, W, 3), with values as stored."""
        values = self.dataset[first:last]
        return np.ascontiguousarray(np.moveaxis(values, 1, -1)) if self.channels_first else values

    def refuse_unreadable(self) -> None:
        """Raise ValueError for pictures that cannot be read (`refuse_unreadable`) or have more than
        MOST_PIXELS pixels.
        """
        refuse_unreadable(self.dataset, self.name)
        if prod(self.size) > MOST_PIXELS:
            raise ValueError(
                f"its pictures have {self.size[1]}x{self.size[0]} pixels, more than {MOST_PIXELS} in all"
            )

    def extremes(self) -> tuple[float, float]:
        """Return the lowest and the highest value, read in blocks. Raises ValueError if one is not finite."""
        lowest, highest = np.inf, -np.inf
        for first in range(0, self.rows, BLOCK):
            values = self.dataset[first : first + BLOCK]
            low, high = float(values.min()), float(values.max())
            if not np.isfinite((low, high)).all():
                raise ValueError("its pictures hold a value that is not a number")
            lowest, highest = min(lowest, low), max(highest, high)
        return lowest, highest


def picture_array(found: Any, name: str) -> PictureArray | None:
    """Return pictures if a dataset has their shape, (N, H, W, 3) or (N, 3, H, W) of numbers; else None."""
    if not isinstance(found, h5py.Dataset) or found.ndim != 4 or found.dtype.kind not in "uif":
        return None
    if found.dtype == np.uint8 and found.shape[3] == 3:
        return PictureArray(found, name, False)
    for channels_first, (channels, height, width) in (
        (False, (found.shape[3], *found.shape[1:3])),
        (True, found.shape[1:]),
    ):
        if channels == 3 and min(height, width) >= SMALLEST:
            return PictureArray(found, name, channels_first)
    return None


def shapes(group: Any) -> Iterator[str]:
    """Yield descriptions of the datasets with three or more axes, for messages about missing pictures."""
    for name in group:
        with suppress(Exception):
            found = member(group, name)
            if isinstance(found, h5py.Dataset) and found.ndim >= 3:
                yield f"{name} is {found.dtype} {tuple(found.shape[1:])}"
