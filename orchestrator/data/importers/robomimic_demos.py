"""Demonstrations of a robomimic-style HDF5 file and the shapes of their parts, read without their values."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from orchestrator.data.importers.base import ImportOptions
from orchestrator.data.importers.conventions import cameras_by_name
from orchestrator.data.importers.hdf5_arrays import (
    FAULTS,
    PictureArray,
    is_vectors,
    member,
    picture_array,
    refuse_elsewhere,
    refuse_unreadable,
    shapes,
)
from orchestrator.data.importers.image_ops import other_channels, passed_over
from orchestrator.data.importers.items import examined
from orchestrator.data.importers.robomimic_attributes import text_of
from orchestrator.data.importers.source_files import SourceError, cause

ACTIONS = "actions"


class NothingReadError(Exception):
    """Error of a file that holds nothing readable, in a sentence; in a folder with other files, the file is
    left out.
    """


@dataclass(frozen=True)
class DemoShape:
    """Parts of one demonstration, without their values."""

    cameras: dict[str, tuple[str, tuple[int, int]]]
    """Camera -> its key in `obs` and (H, W)."""
    rows: int
    """Number of pictures of its first camera."""
    widths: dict[str, int]
    """Vector in `obs` -> values per row."""
    action: int | None
    """Values per action; None if it has none."""


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Demonstrations of a file."""

    order: list[str]
    """Names of the examined demonstrations, by number."""
    shapes: dict[str, DemoShape]
    faults: dict[str, str]
    """Demonstration -> reason why it is left out, as a sentence."""
    absent: list[str]
    """A sentence for each demonstration that a mask lists and the file lacks, and for each array of pictures
    that are not read.
    """


def demonstrations_of(path: Path, file: Any, data: Any, reading: ImportOptions) -> Demonstrations:
    """Return the demonstrations that have pictures, and a sentence for each that has none. Raises
    NothingReadError if none has.
    """
    names = _ordered(data)
    listed = _masked(path, file, reading.mask) if reading.mask else set(names)
    order = [name for name in names if name in listed]
    absent = _absent(path, listed - set(names), reading.mask)
    if reading.mask and not order:
        raise NothingReadError(
            f"{path}: its mask {reading.mask} lists none of its demonstrations; choose another with --mask"
        )
    states: list[str] = []
    hints: list[str] = []

    def shape_of(name: str) -> DemoShape | None:
        """Return None for what is no demonstration: a count, statistics."""
        group = member(data, name)
        if not isinstance(group, h5py.Group) or not {ACTIONS, "obs", "states"} & set(group):
            return None
        refuse_elsewhere(group)
        if "states" in set(group):
            states.append(name)
        obs = member(group, "obs")
        if not isinstance(obs, h5py.Group):
            raise ValueError("it has no pictures")
        shape = _shape(group, obs, reading)
        if shape is None:
            hints.append(", ".join(shapes(obs)))
            raise ValueError("it has no pictures")
        _refuse_fewer_steps(group, shape.rows)
        return shape

    shaped, faults = examined(path.name, order, shape_of)
    found = {name: shape for name, shape in shaped.items() if shape}
    if found:
        if not reading.cameras:
            obs = member(data, f"{next(iter(found))}/obs")
            arrays = {str(key): member(obs, key) for key in obs}
            absent += passed_over(
                path.name,
                {f"obs/{key}": other_channels(a) for key, a in arrays.items() if isinstance(a, h5py.Dataset)},
            )
        return Demonstrations(order=order, shapes=found, faults=faults, absent=absent)
    if states:
        raise NothingReadError(
            f"{path}: its demonstrations hold states and actions but no pictures, as robosuite's own recorder"
            " leaves them; render them first, for example with robomimic's dataset_states_to_obs.py"
        )
    if others := [fault for fault in faults.values() if not fault.endswith(": it has no pictures; left out")]:
        raise NothingReadError(
            f"{path}: none of its demonstrations can be imported: {others[0].removesuffix('; left out')}"
        )
    hint = next(filter(None, hints), "")
    raise NothingReadError(
        f"{path}: it holds no demonstration with pictures under data/demo_<k>/obs{f' ({hint})' * bool(hint)}"
    )


def _refuse_fewer_steps(group: Any, rows: int) -> None:
    """Raise ValueError if a demonstration's attribute num_samples says fewer steps than there are rows:
    robomimic reads no others, and the rest may be padding.
    """
    try:
        said = group.attrs.get("num_samples")
    except FAULTS:
        return
    if isinstance(said, (int, np.integer)) and 0 < said < rows:
        raise ValueError(
            f"its attribute num_samples says {said} steps, {rows} are there; correct it, or cut the rest"
        )


def demonstration_names(path: Path, file: Any, data: Any, mask: str | None) -> tuple[list[str], list[str]]:
    """Return the names of the demonstrations with states or actions, by number, and a sentence for each that
    a mask lists and the file lacks; mask: only those that it lists. Raises SourceError for an unknown mask.
    """
    names = _ordered(data)
    listed = _masked(path, file, mask) if mask else set(names)
    found = []
    for name in names:
        group = member(data, name) if name in listed else None
        if isinstance(group, h5py.Group) and {ACTIONS, "states"} & set(group):
            found.append(name)
    return found, _absent(path, listed - set(names), mask)


def _absent(path: Path, names: Iterable[str], mask: str | None) -> list[str]:
    """Return a sentence for each demonstration that a mask lists and the file lacks."""
    return [
        f"{path.name}, {name}: the mask {mask} lists it, but it is not in the file; left out"
        for name in sorted(names, key=_by_number)
    ]


def _ordered(data: Any) -> list[str]:
    return sorted((str(name) for name in data), key=_by_number)


def _by_number(name: str) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _masked(path: Path, file: Any, mask: str) -> set[str]:
    """Return the names that a mask lists."""
    group = member(file, "mask")
    masks = [str(name) for name in group] if isinstance(group, h5py.Group) else []
    if mask not in masks:
        raise SourceError(
            f"{path}: there is no mask {mask}; --mask can choose from {', '.join(masks) or 'none'}"
        )
    try:
        listed = member(group, mask)
        refuse_unreadable(listed, f"mask {mask}")
        return {text_of(name) for name in np.ravel(listed[()])}
    except (*FAULTS, AttributeError) as error:
        raise SourceError(
            f"{path}: its mask {mask} is no list of names ({cause(error)}); leave --mask out, or repair it"
        ) from None


def _shape(group: Any, obs: Any, reading: ImportOptions) -> DemoShape | None:
    """Return the shape of a demonstration; None if it has no pictures."""
    pictures = pictures_of(obs)
    if not pictures:
        return None
    widths = {}
    for key in obs:
        if picture_array(found := member(obs, key), key) is None and is_vectors(found):
            widths[key] = math.prod(found.shape[1:])
    action = member(group, reading.action or ACTIONS)
    return DemoShape(
        cameras={name: (array.name, array.size) for name, array in pictures.items()},
        rows=next(iter(pictures.values())).rows,
        widths=widths,
        action=int(action.shape[1]) if is_vectors(action) and action.ndim == 2 else None,
    )


def pictures_of(obs: Any) -> dict[str, PictureArray]:
    """Return camera -> its pictures in `obs`. Groups in `obs` (Isaac Lab's datagen_info) hold no pictures."""
    found = {str(key): array for key in obs if (array := picture_array(member(obs, key), str(key)))}
    named = Counter(name for key in found for name in cameras_by_name([key]))
    return {
        (name if named[name] == 1 else key): array
        for key, array in found.items()
        for name in cameras_by_name([key])
    }
