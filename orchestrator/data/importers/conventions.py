"""Conventions of a source: its cameras, rate, vectors and the orientation of its pictures, as its files state
them, as `ImportOptions` complete them, and as the store's `Contract` writes them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.data.importers.base import ImportOptions, SourceInfo
from orchestrator.data.importers.image_ops import TURNS
from orchestrator.data.importers.source_files import SourceError
from policy.interface import Contract
from sim_workers.envs.robosuite import ACTION, PROPRIO, PROPRIO_KEYS

MOST_VALUES = 100_000
"""Maximum values per step of one vector."""
LARGEST_DELTA = 1.001
"""Largest absolute value of an action that is named a displacement in [-1, 1], rounding included."""


def chosen_cameras(where: str, available: Iterable[str], reading: ImportOptions) -> dict[str, str]:
    """Return camera of the source -> name in the store. Raises SourceError for an unknown camera or two with
    one name.
    """
    available = list(available)
    if unknown := [name for name in reading.cameras if name not in available]:
        raise SourceError(
            f"{where}: there is no camera {', '.join(unknown)}; --cameras can choose from"
            f" {', '.join(available) or 'none'}"
        )
    if len(set(reading.cameras.values())) < len(reading.cameras):
        raise SourceError(f"{where}: --cameras gives two cameras one name")
    return reading.cameras or {name: name for name in available}


def orientation(
    where: str, reading: ImportOptions, convention: str | None = "upright", hint: str = ""
) -> tuple[str, list[str]]:
    """Return how the pictures are stored, and a question if neither the reading nor the format's convention
    states it.

    hint: what the file says of it, for the question.
    """
    if reading.images and reading.images not in TURNS:
        raise SourceError(f"--images {reading.images}: pictures are {', '.join(TURNS)}")
    stored = reading.images or convention
    if stored:
        return stored, []
    return "upright", [
        f"{where}: pictures of this format are stored both ways up{hint}; look at them with --dry-run --sheet"
        f" sheet.png, then say --images {' or '.join(TURNS)}"
    ]


def native_rate(where: str, stated: float | None, reading: ImportOptions) -> float:
    """Return the recording's steps per second. Raises SourceError if neither the source nor the reading
    states them, or they differ.
    """
    if stated and reading.hz and abs(stated - reading.hz) > 1e-6:
        raise SourceError(
            f"{where}: it was recorded at {stated:g} steps per second, not {reading.hz:g}; leave --hz out, or"
            " mean --resample-hz"
        )
    if not (stated or reading.hz):
        raise SourceError(f"{where}: it does not say how many steps a second has; say it with --hz")
    return float(stated or reading.hz or 0)


def store_rate(where: str, native_hz: float, labelled: bool, reading: ImportOptions) -> float:
    """Return the steps per second of the episodes to be written. Raises SourceError for resampling episodes
    with actions.
    """
    if reading.resample_hz and reading.resample_hz != native_hz and labelled:
        raise SourceError(
            f"{where}: episodes with actions are not resampled from {native_hz:g} to {reading.resample_hz:g}"
            " per second, since an action is meant for one step; leave --resample-hz out, or add"
            " --action-free"
        )
    return reading.resample_hz or native_hz


def cameras_by_name(keys: Iterable[str]) -> dict[str, str]:
    """Return camera -> its key, among keys such as `agentview_image` and `eye_in_hand_rgb`."""
    return {re.sub(r"_(image|rgb)$", "", key): key for key in keys}


def chosen_proprio(
    where: str, kind: str, widths: dict[str, int], defaults: Sequence[tuple[str, ...]], reading: ImportOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of the vectors that make up the proprioception, and a name per value.

    kind: the format's word for vectors. widths: values per vector. defaults: sets of keys to try, in order of
    preference. Raises SourceError if neither the reading nor the defaults name existing vectors.
    """
    keys = reading.proprio
    if keys is None:
        keys = next(
            (keys for keys in defaults if set(keys) <= set(widths)), () if reading.action_free else None
        )
    if keys is None or not set(keys) <= set(widths) or not (keys or reading.action_free):
        raise SourceError(
            f"{where}: say which {kind} are the proprioception with --proprio; there are"
            f" {', '.join(sorted(widths)) or 'none'}"
        )
    names = names_of(keys, [widths[key] for key in keys])
    return keys, PROPRIO if keys == PROPRIO_KEYS and len(names) == len(PROPRIO) else names


def width_of(vectors: Any) -> int:
    """Return the values per row of (N, D) or (N,) vectors without reading any."""
    return int(np.prod(vectors.shape[1:]))


def rows_of(values: Any) -> Any:
    """Return (N, D) or (N,) values as (N, D)."""
    return values.reshape(len(values), -1)


def names_of(keys: Sequence[str], widths: Sequence[int]) -> tuple[str, ...]:
    """Return a name for every value of the concatenated vectors."""
    return tuple(
        name
        for key, width in zip(keys, widths, strict=True)
        for name in ([key] if width == 1 else [f"{key}_{i}" for i in range(width)])
    )


def action_names(
    where: str, action: tuple[str, ...], largest: float, reading: ImportOptions
) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the action's dimensions, and a question if values named as displacements exceed
    [-1, 1].

    largest: largest absolute value, the gripper's excluded. diffusion_policy's `image_abs.hdf5` holds
    absolute poses although its controller is one of displacements. Raises SourceError for an option that
    would be ignored, since the names do not say displacement.
    """
    if reading.deltas is not None and not any("delta" in name for name in action):
        raise SourceError(
            f"{where}: --{'deltas' if reading.deltas else 'absolute'} cannot be applied to actions that do"
            f" not say what they are ({', '.join(action)}); leave it out, or say --panda if they are laid out"
            " as the simulator's"
        )
    if reading.deltas is False:
        return tuple(name.replace("delta", "absolute") for name in action), []
    if action != ACTION or largest <= LARGEST_DELTA or reading.deltas:
        return action, []
    return names_of(["action"], [len(action)]), [
        f"{where}: its actions reach {largest:.3g}, but displacements as the file describes them stay within"
        " [-1, 1]; say --absolute if they are poses (as in diffusion_policy's image_abs.hdf5), --deltas if"
        " they are displacements all the same"
    ]


def renamed_actions(info: SourceInfo, largest: float, reading: ImportOptions) -> tuple[SourceInfo, list[str]]:
    """Return the conventions with the names of actions that `action_names` chooses, and its question."""
    names, questions = action_names(info.name, info.contract.action, largest, reading)
    return replace(info, contract=replace(info.contract, action=names)), questions


def source_info(
    where: str,
    reading: ImportOptions,
    *,
    format: str,
    name: str,
    label: str,
    cameras: dict[str, str],
    sizes: dict[str, tuple[int, int]],
    stored: str,
    native_hz: float,
    labelled: bool,
    proprio: tuple[str, ...] = (),
    action: tuple[str, ...] = (),
    simulator: str = "unknown",
) -> SourceInfo:
    """Return the conventions of a source.

    where: its path, for messages. sizes: (H, W) of some pictures, by a name for messages. The others: as in
    `SourceInfo` and `Contract`. Raises SourceError if the sizes differ, or if the dimensions do not fit
    `panda`.
    """
    contract = _contract(where, cameras, sizes, proprio, action, native_hz, simulator, reading)
    return SourceInfo(
        format=format,
        name=name,
        label=label,
        cameras=cameras,
        stored=stored,
        native_hz=native_hz,
        labelled=labelled,
        contract=contract,
    )


def _contract(
    where: str,
    cameras: dict[str, str],
    sizes: dict[str, tuple[int, int]],
    proprio: tuple[str, ...],
    action: tuple[str, ...],
    native_hz: float,
    simulator: str,
    reading: ImportOptions,
) -> Contract:
    """Return the conventions of the episodes to be written.

    sizes: (H, W) of some pictures, by a name for messages. Raises SourceError if they differ, or if the
    dimensions do not fit `panda`.
    """
    if len(set(sizes.values())) > 1 and not reading.image_size:
        listed = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise SourceError(
            f"{where}: the pictures differ in size ({listed}); choose one with --image-size, or some of them"
            " with --cameras"
        )
    if reading.panda:
        if (action and len(action) != len(ACTION)) or (proprio and len(proprio) != len(PROPRIO)):
            raise SourceError(
                f"{where}: --panda means {len(ACTION)} action dimensions and {len(PROPRIO)} values of"
                f" proprioception, here are {len(action)} and {len(proprio)}; choose vectors with --proprio,"
                " or leave --panda out"
            )
        proprio, action = PROPRIO if proprio else (), ACTION if action else ()
    return Contract(
        cameras=tuple(cameras.values()),
        image_size=reading.image_size or next(iter(sizes.values())),
        render_profile=reading.render_profile or "imported",
        proprio=proprio,
        action=action,
        control_hz=store_rate(where, native_hz, bool(action), reading),
        simulator=reading.simulator or simulator,
    )
