"""Importer of robomimic's HDF5 files and their descendants: MimicGen, RoboCasa, LIBERO, Isaac Lab.

    data                          attributes env_args (JSON: which simulator, at which rate), LIBERO:
                                  problem_info (JSON with the instruction)
    data/demo_3/actions           (L, A)
    data/demo_3/obs/agentview_image, agentview_rgb, robot0_eef_pos ...    pictures (L, H, W, 3) or (L, 3, H,
                                                                          W), and (L, D) vectors
    data/demo_3                   attribute ep_meta (RoboCasa: JSON with the instruction as `lang`)
    mask/<name>                   optional lists of demonstrations

`demoscale export` adds to `data` the attribute demoscale.contract (JSON, `Contract`) and
demoscale.proprio_keys, to each demonstration demoscale.task, demoscale.instruction and demoscale.success;
such a file raises no questions.

Demonstrations that differ from most others of their file in cameras, size of pictures or widths of vectors
are left out. Pictures are paired with actions as in the file. (LIBERO's recorder takes each picture after its
action, and its policies are trained so.)
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import Episode
from orchestrator.data.importers.base import (
    HDF5_SUFFIXES,
    ImportOptions,
    Item,
    Pictures,
    RawEpisode,
    SourceError,
    action_names,
    cameras_by_name,
    cause,
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
    refuse_pointer,
    unusable,
    visible,
)
from orchestrator.data.importers.hdf5_arrays import (
    CHUNK_CACHE,
    PictureArray,
    is_vectors,
    member,
    picture_array,
    refuse_elsewhere,
    refuse_unreadable,
    shapes,
    vectors,
)
from orchestrator.data.importers.image_ops import RANGES, in_blocks, range_of
from policy.interface import Contract
from sim_workers.envs.robosuite import ACTION, PROPRIO, PROPRIO_KEYS
from sim_workers.envs.tasks import TASKS

LIBEROS_HAND = ("ee_pos", "ee_ori", "gripper_states")
"""LIBERO's names for the same hand and fingers, the hand's rotation as axis times angle; it is converted back
to the original quaternion.
"""
LIBEROS_WIDTHS = (3, 3, 2)
PROPRIO_BY_DEFAULT = (PROPRIO_KEYS, LIBEROS_HAND)
ACTIONS = "actions"
ARM = len(ACTION)
MOBILE_BASE = ("base_x", "base_y", "base_turn", "torso", "base_mode_minus1_arm_plus1_base")
"""Action dimensions of RoboCasa's mobile Panda, after the arm's."""
FAULTS = (OSError, KeyError, RuntimeError, ValueError, TypeError)
"""Exceptions that h5py raises for a damaged file."""


class _NothingReadError(Exception):
    """Error of a file that holds nothing readable, in a sentence; in a folder with other files, the file is
    left out.
    """


@dataclass(frozen=True)
class _Made:
    """Origin of a file, by its own attributes."""

    task: str
    instruction: str | None
    hz: float | None
    simulator: str
    arm: tuple[str, ...] | None
    """Names of the arm's action dimensions, where the controller is known to be the simulator's; else
    None.
    """
    single_panda: bool
    image_convention: str


@dataclass(frozen=True)
class _Stated:
    """Conventions that an export of a store states."""

    contract: Contract
    proprio_keys: tuple[str, ...]


@dataclass(frozen=True)
class _Shape:
    """Parts of one demonstration, without their values."""

    cameras: dict[str, tuple[str, tuple[int, int]]]
    """Camera -> its key in `obs` and (H, W)."""
    rows: int
    """Number of pictures of its first camera."""
    widths: dict[str, int]
    """Vector in `obs` -> values per row."""
    action: int | None
    """Values per action; None if it has none."""


@dataclass(frozen=True)
class _Plan:
    """Parts of a demonstration to read, and their required shapes; can be pickled."""

    cameras: dict[str, str]
    """Camera of the source -> name in the store."""
    sizes: dict[str, tuple[int, int]]
    proprio: dict[str, int]
    """Vector in `obs` -> values per row."""
    hand: bool
    """Whether the vectors are LIBERO's and must be converted to the simulator's."""
    action: str
    """Name of the actions in a demonstration; empty if they are dropped."""
    width: int
    """Values per action in the file."""
    arm_only: bool
    unlabelled_too: bool
    """Whether demonstrations without actions are taken as well."""
    stated: bool
    """Whether demonstrations carry the attributes of an export."""

    @property
    def kept(self) -> int:
        """Values per action in the store."""
        return ARM if self.arm_only else self.width


@dataclass(frozen=True)
class _Content:
    """Facts about a demonstration that can be imported."""

    rows: int
    labelled: bool
    digest: str
    largest: float
    """Largest absolute value of its actions, without the gripper's and a mobile base's."""
    extremes: dict[str, tuple[float, float]]
    """Number type of pictures -> lowest and highest value."""


@dataclass
class RobomimicHdf5:
    """Source: one file, or a folder of files with equal conventions."""

    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _plan: _Plan
    _stored: str
    _native_hz: float
    _ranges: dict[str, str]
    """Number type of pictures -> one of RANGES."""
    _places: dict[str, tuple[Path, str]]
    """Item -> file and demonstration."""

    def read(self, item: Item) -> Episode:
        if item.problem:
            raise SourceError(item.problem)
        path, demo = self._places[item.name]
        try:
            with h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE) as file:
                group = member(file, f"data/{demo}")
                pictures = _pictures(member(group, "obs"))
                rows = pictures[next(iter(self._plan.cameras))].rows
                kept = kept_frames(rows, self._native_hz, self.contract.control_hz)
                for name in self._plan.cameras:
                    pictures[name].refuse_unreadable()
                size = self.contract.image_size
                raw = RawEpisode(
                    frames={
                        name: in_blocks(partial(self._bytes, pictures[name]), kept, self._stored, size)
                        for name in self._plan.cameras
                    },
                    proprio=_proprio_values(member(group, "obs"), self._plan) if self._plan.proprio else None,
                    action=(
                        vectors(member(group, self._plan.action), self._plan.action)[:, : self._plan.kept]
                        if item.labelled
                        else None
                    ),
                    success=_success(group, self._plan.stated),
                    rows=rows,
                )
        except (*FAULTS, AttributeError) as error:
            raise SourceError(f"{path.name}, {demo}: {cause(error)}; restore the file") from None
        return finished(item, raw, self.contract, self._plan.cameras, self._native_hz)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        if item.problem:
            raise SourceError(item.problem)
        path, demo = self._places[item.name]
        with h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE) as file:
            pictures = _pictures(member(file, f"data/{demo}/obs"))
            return {name: self._bytes(pictures[name], 0, 1)[0] for name in self._plan.cameras}

    def _bytes(self, pictures: PictureArray, first: int, last: int) -> Pictures:
        return RANGES[self._ranges[pictures.number]].pictures(pictures.block(first, last))


# -- files ---------------------------------------------------------------------------------------------------


def open_hdf5(path: Path, reading: ImportOptions) -> RobomimicHdf5:
    """Open a file, or every HDF5 file of a folder.

    Raises SourceError if no file can be read, or if two files' conventions differ.
    """
    if path.is_file():
        try:
            return _open_file(path, reading, label_of(path, reading), "")
        except _NothingReadError as error:
            raise SourceError(str(error)) from None
    files = list(visible(path, HDF5_SUFFIXES, depth=1))
    stems = Counter(file.stem for file in files)
    source, first, unreadable = None, path, []
    for file in files:
        prefix = f"{file.stem}-" if stems[file.stem] == 1 else f"{file.name.replace('.', '-')}-"
        try:
            other = _open_file(file, reading, label_of(path, reading), prefix)
        except _NothingReadError as error:
            unreadable.append(str(error))
            continue
        if source is None:
            source, first = other, file
        else:
            _join(source, first, other, file)
    if source is None:
        raise SourceError(unreadable[0])
    source.problems += [f"{problem}; left out" for problem in unreadable]
    return source


def _join(source: RobomimicHdf5, first: Path, other: RobomimicHdf5, file: Path) -> None:
    """Add a file's demonstrations to the source. Raises SourceError if the conventions differ."""
    conventions = {**source.contract.to_json(), "recorded_rate": source._native_hz}
    others = {**other.contract.to_json(), "recorded_rate": other._native_hz}
    conventions["way of storing pictures"], others["way of storing pictures"] = source._stored, other._stored
    for name, mine in conventions.items():
        if (theirs := others[name]) != mine:
            raise SourceError(
                f"{file}: its {name.replace('_', ' ')} is {theirs}, that of {first.name} {mine}; import them"
                " one by one"
            )
    if replace(source._plan, sizes={}) != replace(other._plan, sizes={}):
        raise SourceError(
            f"{file}: its datasets are not called as those of {first.name}; import them one by one"
        )
    for number, mine in source._ranges.items():
        if (theirs := other._ranges.get(number, mine)) != mine:
            raise SourceError(
                f"{file}: the values of its pictures ({number}) range over {theirs}, those of {first.name}"
                f" over {mine}; import them one by one, or say what black and white are with --picture-range"
            )
    source.items += other.items
    source.problems += other.problems
    asked = {question.partition(": ")[2] for question in source.questions}
    source.questions += [question for question in other.questions if question.partition(": ")[2] not in asked]
    source._places |= other._places
    source._ranges |= other._ranges


def _open_file(path: Path, reading: ImportOptions, label: str, prefix: str) -> RobomimicHdf5:
    try:
        refuse_pointer(path)
    except (SourceError, OSError) as error:
        raise _NothingReadError(str(error)) from None
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
    except FAULTS as error:
        raise _NothingReadError(
            f"{path}: it cannot be read as HDF5 ({' '.join(str(error).split())}); was it copied whole?"
        ) from None
    with file:
        try:
            return _understand(path, file, reading, label, prefix)
        except FAULTS as error:
            raise _NothingReadError(f"{path}: {cause(error)}") from None


def _understand(path: Path, file: Any, reading: ImportOptions, label: str, prefix: str) -> RobomimicHdf5:
    data = member(file, "data")
    if not isinstance(data, h5py.Group):
        raise _NothingReadError(
            f"{path}: it has no group `data` with demonstrations, as robomimic's files have"
        )
    stated = _stated(data)
    found = _looked_at(path, file, data, reading)
    made = _made(path, data, reading)
    plan, proprio, action = _planned(path, data, found.shapes, made, stated, reading)
    native_hz = native_rate(str(path), stated.contract.control_hz if stated else made.hz, reading)
    convention = "upright" if stated else None
    stored, questions = orientation(path.name, convention, made.image_convention, reading)
    if stated:
        reading = replace(reading, render_profile=reading.render_profile or stated.contract.render_profile)
    simulator = stated.contract.simulator if stated else made.simulator
    contract = contract_of(
        str(path), plan.cameras, plan.sizes, proprio, action, native_hz, simulator, reading
    )

    contents: dict[str, _Content] = {}
    faults: dict[str, str] = dict(found.faults)
    for demo, shape in found.shapes.items():
        problems: list[str] = []
        with leaving_out(f"{path.name}, {demo}", problems):
            contents[demo] = _content(member(data, demo), shape, plan, contract, native_hz, reading)
        if problems:
            faults[demo] = problems[0]
    if not contents:
        raise _NothingReadError(
            f"{path}: none of its demonstrations can be imported:"
            f" {next(iter(faults.values())).removesuffix('; left out')}"
        )

    ranges, more = _ranges(path, contents.values(), reading)
    questions += more
    if not (stated and reading.deltas is None):
        arm, more = action_names(
            path.name, action[:ARM], max(content.largest for content in contents.values()), reading
        )
        questions += more
        contract = contract_of(
            str(path), plan.cameras, plan.sizes, proprio, (*arm, *action[ARM:]), native_hz, simulator, reading
        )

    items, places = [], {}
    chosen = (sorted(plan.cameras.items()), stored, contract.image_size, tuple(plan.proprio), plan.hand)
    for demo in (name for name in found.order if name in contents or name in faults):
        content, name = contents.get(demo), prefix + demo
        if content is None:
            length = found.shapes[demo].rows if demo in found.shapes else 0
            items.append(unusable(name, length, bool(plan.action), faults[demo]))
            continue
        attributes = _attributes(data, demo)
        task = reading.task or _words(attributes.get("demoscale.task")) or made.task
        instruction = reading.instruction or _words(attributes.get("demoscale.instruction"))
        instruction = (
            instruction or _words(_json(attributes.get("ep_meta")).get("lang")) or made.instruction or ""
        )
        length = len(kept_frames(content.rows, native_hz, contract.control_hz))
        its_ranges = {number: ranges[number] for number in content.extremes}
        digest = identity(content.digest, chosen, its_ranges, task, instruction)
        size = next(iter(plan.sizes.values()))
        whence = origin(f"{path.name}, {demo}", stored, size, native_hz, contract, digest)
        items.append(Item(name, f"{label}-{name}", task, instruction, length, content.labelled, whence))
        places[name] = (path, demo)
    if not all(item.instruction for item in items if not item.problem):
        questions.append(f"{path.name}: it does not say in words what is done; say it with --instruction")
    left_out = [*found.absent, *(faults[demo] for demo in found.order if demo in faults)]
    return RobomimicHdf5(
        _family(data, next(iter(contents))),
        contract,
        items,
        left_out,
        questions,
        plan,
        stored,
        native_hz,
        ranges,
        places,
    )


def _family(data: Any, demo: str) -> str:
    kind = (
        "LIBERO"
        if "problem_info" in data.attrs
        else "RoboCasa"
        if "ep_meta" in _attributes(data, demo)
        else "robomimic"
    )
    return f"{kind} HDF5"


# -- contents of a file --------------------------------------------------------------------------------------


@dataclass
class _Found:
    """Demonstrations of a file."""

    order: list[str]
    """Names of the examined demonstrations, by number."""
    shapes: dict[str, _Shape] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    """Demonstration -> reason why it is left out, as a sentence."""
    absent: list[str] = field(default_factory=list)
    """A sentence for each demonstration that a mask lists and the file lacks."""


def _looked_at(path: Path, file: Any, data: Any, reading: ImportOptions) -> _Found:
    """Return the demonstrations that have pictures, and a sentence for each that has none. Raises
    _NothingReadError if none has.
    """
    names = sorted((str(name) for name in data), key=_by_number)
    found = _Found(names)
    if reading.mask:
        listed = _masked(path, file, reading.mask)
        found.order = [name for name in names if name in listed]
        found.absent = [
            f"{path.name}, {name}: the mask {reading.mask} lists it, but it is not in the file; left out"
            for name in sorted(listed - set(names), key=_by_number)
        ]
    states, hints = False, ""
    for name in found.order:
        problems: list[str] = []
        with leaving_out(f"{path.name}, {name}", problems):
            group = member(data, name)
            if not isinstance(group, h5py.Group) or not {ACTIONS, "obs", "states"} & set(group):
                continue  # not a demonstration: a count, statistics
            refuse_elsewhere(group)
            states = states or "states" in set(group)
            obs = member(group, "obs")
            shape = _shape(group, obs, reading) if isinstance(obs, h5py.Group) else None
            if shape is None:
                hints = hints or (", ".join(shapes(obs)) if isinstance(obs, h5py.Group) else "")
                raise ValueError("it has no pictures")
            found.shapes[name] = shape
        if problems:
            found.faults[name] = problems[0]
    if found.shapes:
        return found
    if states:
        raise _NothingReadError(
            f"{path}: its demonstrations hold states and actions but no pictures, as robosuite's own recorder"
            " leaves them; render them first, for example with robomimic's dataset_states_to_obs.py"
        )
    if others := [
        fault for fault in found.faults.values() if not fault.endswith(": it has no pictures; left out")
    ]:
        raise _NothingReadError(
            f"{path}: none of its demonstrations can be imported: {others[0].removesuffix('; left out')}"
        )
    raise _NothingReadError(
        f"{path}: it holds no demonstration with pictures under"
        f" data/demo_<k>/obs{f' ({hints})' * bool(hints)}"
    )


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
        return {_text(name) for name in np.ravel(listed[()])}
    except (*FAULTS, AttributeError) as error:
        raise SourceError(
            f"{path}: its mask {mask} is no list of names ({cause(error)}); leave --mask out, or repair it"
        ) from None


def _shape(group: Any, obs: Any, reading: ImportOptions) -> _Shape | None:
    """Return the shape of a demonstration; None if it has no pictures."""
    pictures = _pictures(obs)
    if not pictures:
        return None
    widths = {}
    for key in obs:
        if picture_array(found := member(obs, key), key) is None and is_vectors(found):
            widths[key] = math.prod(found.shape[1:])
    action = member(group, reading.action or ACTIONS)
    return _Shape(
        cameras={name: (array.name, array.size) for name, array in pictures.items()},
        rows=next(iter(pictures.values())).rows,
        widths=widths,
        action=int(action.shape[1]) if is_vectors(action) and action.ndim == 2 else None,
    )


def _pictures(obs: Any) -> dict[str, PictureArray]:
    """Return camera -> its pictures in `obs`. Groups in `obs` (Isaac Lab's datagen_info) hold no pictures."""
    found = {str(key): array for key in obs if (array := picture_array(member(obs, key), str(key)))}
    named = Counter(name for key in found for name in cameras_by_name([key]))
    return {
        (name if named[name] == 1 else key): array
        for key, array in found.items()
        for name in cameras_by_name([key])
    }


# -- choice of its parts -------------------------------------------------------------------------------------


def _planned(
    path: Path,
    data: Any,
    found: dict[str, _Shape],
    made: _Made,
    stated: _Stated | None,
    reading: ImportOptions,
) -> tuple[_Plan, tuple[str, ...], tuple[str, ...]]:
    """Return the plan, from the reading and from what most demonstrations have, and the names of
    proprioception and actions.
    """
    cameras = _cameras(path, found.values(), stated, reading)
    sizes = {
        name: _most(shape.cameras[name][1] for shape in found.values() if name in shape.cameras)
        for name in cameras
    }
    proprio, names = _proprio(path, found.values(), stated, reading)
    hand = tuple(proprio) == LIBEROS_HAND and tuple(proprio.values()) == LIBEROS_WIDTHS

    key = reading.action or ACTIONS
    actions = [shape.action for shape in found.values() if shape.action]
    labelled = not reading.action_free and bool(actions or not (stated and reading.action is None))
    if labelled and not actions:
        if reading.action:
            offered = sorted({name for demo in found for name in _two_dimensional(member(data, demo))})
            raise SourceError(
                f"{path}: there are no vectors {key}; --action can choose from {', '.join(offered) or 'none'}"
            )
        raise SourceError(
            f"{path}: {next(iter(found))} has no vectors `actions`; add --action-free to import its pictures"
        )
    width = _most(actions) if labelled else 0
    robocasa = width == ARM + len(MOBILE_BASE) and made.single_panda
    action = _action_names(path, width, made, robocasa, stated, reading) if labelled else ()
    plan = _Plan(
        cameras=cameras,
        sizes=sizes,
        proprio=proprio,
        hand=hand,
        action=key if labelled else "",
        width=width,
        arm_only=labelled and robocasa and reading.arm_only,
        unlabelled_too=stated is not None and reading.action is None,
        stated=stated is not None,
    )
    return plan, PROPRIO if hand else names, action


def _most(values: Iterable[Any]) -> Any:
    """Return the most frequent value; of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0]


def _cameras(
    path: Path, found: Iterable[_Shape], stated: _Stated | None, reading: ImportOptions
) -> dict[str, str]:
    """Return the cameras of most demonstrations, or those that the reading chooses, which only some
    may have.
    """
    combinations = Counter(tuple(shape.cameras) for shape in found)
    if reading.cameras:
        return chosen_cameras(
            str(path), dict.fromkeys(name for names in combinations for name in names), reading
        )
    available = max(combinations, key=lambda names: (combinations[names], len(names)))
    if stated and set(stated.contract.cameras) == set(available):
        available = stated.contract.cameras
    return chosen_cameras(str(path), available, reading)


def _proprio(
    path: Path, found: Iterable[_Shape], stated: _Stated | None, reading: ImportOptions
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return key -> width of the vectors that make up the proprioception, and a name per value."""
    found = list(found)
    having = Counter(key for shape in found for key in shape.widths)
    asked = reading.proprio or (stated.proprio_keys if stated else ())
    widths = {
        key: _most(shape.widths[key] for shape in found if key in shape.widths)
        for key, count in having.items()
        if key in asked or 2 * count >= len(found)
    }
    if (
        stated
        and reading.proprio is None
        and sum(widths.get(key, 0) for key in stated.proprio_keys) == len(stated.contract.proprio)
    ):
        return {key: widths[key] for key in stated.proprio_keys if key in widths}, stated.contract.proprio
    keys, names = chosen_proprio(str(path), "vectors", widths, PROPRIO_BY_DEFAULT, reading)
    return {key: widths[key] for key in keys}, names


def _two_dimensional(group: Any) -> list[str]:
    names = []
    for key in group:
        with suppress(ValueError):
            if is_vectors(found := member(group, key)) and found.ndim == 2:
                names.append(str(key))
    return names


def _action_names(
    path: Path, width: int, made: _Made, robocasa: bool, stated: _Stated | None, reading: ImportOptions
) -> tuple[str, ...]:
    if reading.arm_only and not robocasa:
        raise SourceError(
            f"{path}: --arm-only is for RoboCasa's {ARM + len(MOBILE_BASE)} action dimensions; this file has"
            f" {width} of another layout"
        )
    arm = made.arm if (reading.action or ACTIONS) == ACTIONS else None
    if robocasa:
        arm = arm or (*(f"arm_{i}" for i in range(ARM - 1)), "gripper")
        return arm if reading.arm_only else (*arm, *MOBILE_BASE)
    if stated and reading.action is None and len(stated.contract.action) == width:
        return stated.contract.action
    return arm if arm and width == ARM else names_of(["action"], [width])


def _content(
    group: Any, shape: _Shape, plan: _Plan, contract: Contract, native_hz: float, reading: ImportOptions
) -> _Content:
    """Check a demonstration and hash its content. Raises ValueError if it differs from the file's others or
    is damaged.
    """
    obs = member(group, "obs")
    missing = [name for name in plan.cameras if name not in shape.cameras]
    missing += [key for key in plan.proprio if key not in shape.widths]
    if missing:
        raise ValueError(f"obs has no {', '.join(missing)}")
    pictures = {name: _pictures(obs)[name] for name in plan.cameras}
    rows = next(iter(pictures.values())).rows
    if not all(array.rows for array in pictures.values()):
        raise ValueError("it is empty")
    if other := [name for name, array in pictures.items() if array.size != plan.sizes[name]]:
        listed = ", ".join(
            "{} {}x{}, most {}x{}".format(name, *pictures[name].size, *plan.sizes[name]) for name in other
        )
        raise ValueError(f"its pictures have another size ({listed})")
    labelled = bool(plan.action) and (shape.action is not None or not plan.unlabelled_too)
    if labelled and shape.action != plan.width:
        raise ValueError(f"it has no actions of {plan.width} dimensions")
    if other := [key for key, width in plan.proprio.items() if shape.widths[key] != width]:
        listed = ", ".join(f"{key} {shape.widths[key]}, most {plan.proprio[key]}" for key in other)
        raise ValueError(f"its vectors have another width ({listed})")
    _refuse_different_lengths(group, pictures, plan, labelled)
    refuse_bulk(int(rows * contract.control_hz / native_hz), len(pictures), contract.image_size)
    for array in pictures.values():
        array.refuse_unreadable()

    action = vectors(member(group, plan.action), plan.action) if labelled else None
    if action is not None and plan.arm_only and np.abs(action[:, ARM : ARM + 4]).max() > 1e-6:
        raise ValueError("the base moves, which --arm-only cannot express")
    proprio = _proprio_values(obs, plan) if plan.proprio else None
    samples = [array.block(rows // 2, rows // 2 + 1) for array in pictures.values()]
    extremes: dict[str, tuple[float, float]] = {}
    for array in pictures.values():
        known = array.dataset.dtype == np.uint8 or reading.picture_range
        lowest, highest = (0.0, 0.0) if known else array.extremes()
        before = extremes.get(array.number, (lowest, highest))
        extremes[array.number] = (min(before[0], lowest), max(before[1], highest))
    return _Content(
        rows=rows,
        labelled=labelled,
        digest=identity(
            rows,
            None if action is None else action[:, : plan.kept],
            proprio,
            _success(group, plan.stated),
            *samples,
        ),
        largest=(
            float(np.abs(action[:, : min(plan.width, ARM) - 1]).max(initial=0)) if action is not None else 0.0
        ),
        extremes=extremes,
    )


def _refuse_different_lengths(
    group: Any, pictures: dict[str, PictureArray], plan: _Plan, labelled: bool
) -> None:
    lengths = {f"camera {name}": array.rows for name, array in pictures.items()}
    lengths |= {key: member(group, f"obs/{key}").shape[0] for key in plan.proprio}
    if labelled:
        lengths[plan.action] = member(group, plan.action).shape[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "its parts differ in length"
            f" ({', '.join(f'{name} {length}' for name, length in lengths.items())})"
        )


def _ranges(
    path: Path, contents: Iterable[_Content], reading: ImportOptions
) -> tuple[dict[str, str], list[str]]:
    """Return number type of pictures -> one of RANGES, decided over all of the file's pictures, and
    questions.
    """
    extremes: dict[str, tuple[float, float]] = {}
    for content in contents:
        for number, (lowest, highest) in content.extremes.items():
            before = extremes.get(number, (lowest, highest))
            extremes[number] = (min(before[0], lowest), max(before[1], highest))
    ranges, questions = {}, []
    for number, (lowest, highest) in extremes.items():
        if number == "uint8":
            ranges[number] = "0..255"
            continue
        try:
            ranges[number] = reading.picture_range or range_of(np.dtype(number), lowest, highest)
        except ValueError as error:
            ranges[number] = "0..255"
            questions.append(
                f"{path.name}: {error}; say what black and white are with --picture-range"
                f" {' or '.join(RANGES)}"
            )
    return ranges, questions


# -- values --------------------------------------------------------------------------------------------------


def _proprio_values(obs: Any, plan: _Plan) -> npt.NDArray[Any]:
    """Return the concatenated vectors, (L, P)."""
    rows = [vectors(member(obs, key), key) for key in plan.proprio]
    # (L, 3) axis times angle, 0 to 2 pi, to x, y, z, w: the inverse of robosuite's `quat2axisangle`, sign
    # included
    if plan.hand:
        angle = np.linalg.norm(rows[1], axis=1, keepdims=True)
        rows[1] = np.concatenate([rows[1] * np.sinc(angle / (2 * np.pi)) / 2, np.cos(angle / 2)], 1)
    return np.concatenate(rows, 1)


def _success(group: Any, stated: bool) -> bool | None:
    """Return the success that an export states, else that of sparse rewards; None for missing, shaped or
    unreadable rewards.
    """
    if stated:
        said = group.attrs.get("demoscale.success")
        return bool(said) if isinstance(said, (bool, np.bool_)) else None
    try:
        found = member(group, "rewards")
        rewards = vectors(found, "rewards") if is_vectors(found) else np.empty(0)
    except FAULTS:
        return None
    return bool(rewards.any()) if rewards.size and np.isin(rewards, (0, 1)).all() else None


# -- attributes of a file ------------------------------------------------------------------------------------


def _stated(data: Any) -> _Stated | None:
    """Return the conventions that `demoscale export` wrote; None for a file of another program."""
    said = _attributes(data)
    try:
        contract = Contract.from_json(_json(said.get("demoscale.contract")))
        keys = json.loads(_text(said.get("demoscale.proprio_keys", "[]")))
    except (*FAULTS, RecursionError, IndexError):
        return None
    names = (
        *contract.cameras,
        *contract.proprio,
        *contract.action,
        contract.render_profile,
        contract.simulator,
    )
    if not all(isinstance(name, str) for name in names) or not _positive(contract.control_hz):
        return None
    return _Stated(
        contract, tuple(keys) if isinstance(keys, list) and all(isinstance(key, str) for key in keys) else ()
    )


def _made(path: Path, data: Any, reading: ImportOptions) -> _Made:
    said = _attributes(data)
    args, problem = _json(said.get("env_args")), _json(said.get("problem_info"))
    kwargs = _table(args.get("env_kwargs"))
    version = _words(args.get("env_version")) or _words(said.get("repository_version")) or "unknown"
    robots = kwargs.get("robots")
    robots = [robots] if isinstance(robots, str) else robots if isinstance(robots, list) else []
    single_panda = len(robots) == 1 and str(robots[0]).startswith("Panda")
    # LIBERO has a file per task; many tasks share an environment's name.
    named = (
        path.stem.removesuffix("_demo")
        if problem
        else _words(args.get("env_name")) or _words(said.get("env")) or path.stem
    )
    task = reading.task or named
    convention = _words(said.get("macros_image_convention"))
    return _Made(
        task=task,
        instruction=_words(problem.get("language_instruction")) or TASKS.get(task),
        hz=_positive(kwargs.get("control_freq")) or _isaacs_rate(args),
        simulator=f"robosuite {version}, mujoco unknown" if args.get("type", 1) == 1 else "unknown",
        arm=ACTION if single_panda and _is_our_controller(kwargs.get("controller_configs")) else None,
        single_panda=single_panda,
        image_convention=(
            f" (this file's convention is {convention}{', upside-down' * (convention == 'opengl')})"
            if convention
            else ""
        ),
    )


def _isaacs_rate(args: dict[str, Any]) -> float | None:
    """Return Isaac Lab's steps per second, from the duration of a physics step and the number of them per
    action.
    """
    steps = _table(args.get("sim_args"))
    seconds, count = _positive(steps.get("dt")), _positive(steps.get("decimation"))
    return _positive(round(1 / (seconds * count), 6)) if args.get("type") == 2 and seconds and count else None


def _is_our_controller(config: Any) -> bool:
    """Return whether robosuite's controller takes hand displacements as in ACTION; old files name the
    controller, new ones its parts.
    """
    if not isinstance(config, dict):
        return False
    if config.get("type") == "OSC_POSE":
        delta = config.get("control_delta", config.get("input_type") == "delta")
        return (
            bool(delta)
            and config.get("output_max") == [0.05] * 3 + [0.5] * 3
            and config.get("input_max", 1) == 1
        )
    return any(_is_our_controller(part) for part in config.values())


def _attributes(group: Any, name: str = "") -> dict[str, Any]:
    """Return the attributes of a group, or of a member of it; an unreadable one counts as missing."""
    found: dict[str, Any] = {}
    attributes = (member(group, name) if name else group).attrs
    for key in attributes:
        try:
            found[str(key)] = attributes[key]
        except FAULTS:
            continue
    return found


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _words(value: Any) -> str:
    """Return a sentence or name; '' for anything else. LIBERO also stores sentences as lists of words."""
    if isinstance(value, (list, np.ndarray)):
        words = (
            [_words(word) for word in list(np.ravel(value)) if isinstance(word, (str, bytes))]
            if isinstance(value, np.ndarray)
            else value
        )
        return " ".join(words) if all(isinstance(word, str) for word in words) else ""
    return _text(value) if isinstance(value, (str, bytes)) else ""


def _positive(value: Any) -> float | None:
    """Return a number above zero and below 1e9 as float; None for anything else."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9
    return float(value) if plain else None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(value: Any) -> dict[str, Any]:
    try:
        return _table(json.loads(_text(value))) if value is not None else {}
    except (ValueError, RecursionError):
        return {}
