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

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from orchestrator.data.importers.base import EpisodeInfo, ImportOptions, Item, RawEpisode, Source, SourceInfo
from orchestrator.data.importers.conventions import (
    action_names,
    native_rate,
    orientation,
    source_info,
)
from orchestrator.data.importers.hdf5_arrays import (
    CHUNK_CACHE,
    FAULTS,
    PictureArray,
    is_vectors,
    member,
    vectors,
)
from orchestrator.data.importers.image_ops import RANGES, Pictures, in_blocks, range_of
from orchestrator.data.importers.items import build_items, examined, identity, label_of, refuse_bulk, unusable
from orchestrator.data.importers.robomimic_attributes import (
    attributes_of,
    family_of,
    json_of,
    recording_program,
    stated_conventions,
    words_of,
)
from orchestrator.data.importers.robomimic_demos import (
    DemoShape,
    NothingReadError,
    demonstrations_of,
    pictures_of,
)
from orchestrator.data.importers.robomimic_plan import ARM, DemoPlan, planned
from orchestrator.data.importers.source_files import (
    HDF5_SUFFIXES,
    SourceError,
    cause,
    refuse_pointer,
    visible,
)


@dataclass(frozen=True)
class _Content:
    """Facts about a demonstration that can be imported."""

    rows: int
    labelled: bool
    digest: str
    largest: float
    """Largest absolute value of its actions, without the gripper's and a mobile base's."""
    extremes: dict[tuple[str, str], tuple[float, float]]
    """(Camera, number type of its pictures) -> lowest and highest value."""


@dataclass(frozen=True, kw_only=True)
class RobomimicReader:
    """Reader of one file, or of a folder of files with equal conventions."""

    plan: DemoPlan
    ranges: dict[tuple[str, str], str]
    """(Camera, number type of its pictures) -> one of RANGES."""
    places: dict[str, tuple[Path, str]]
    """Item -> file and demonstration."""

    def read(self, item: Item, info: SourceInfo) -> RawEpisode:
        """Return an episode, pictures upright and scaled; SourceError or ValueError if it is damaged."""
        path, demo = self.places[item.name]
        plan, size = self.plan, info.contract.image_size
        try:
            with h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE) as file:
                group = member(file, f"data/{demo}")
                pictures = pictures_of(member(group, "obs"))
                rows = pictures[next(iter(plan.cameras))].rows
                kept = info.kept(rows)
                for name in plan.cameras:
                    pictures[name].refuse_unreadable()
                action = None
                if item.labelled:
                    action = vectors(member(group, plan.action), plan.action)[:, : plan.kept]
                return RawEpisode(
                    frames={
                        name: in_blocks(partial(self._bytes, name, pictures[name]), kept, info.stored, size)
                        for name in plan.cameras
                    },
                    rows=rows,
                    proprio=_proprio_values(member(group, "obs"), plan) if plan.proprio else None,
                    action=action,
                    success=recorded_success(group, plan.stated),
                )
        except (*FAULTS, AttributeError) as error:
            raise SourceError(f"{path.name}, {demo}: {cause(error)}; restore the file") from None

    def first_pictures(self, item: Item, info: SourceInfo) -> dict[str, Pictures]:
        """Return one (H, W, 3) picture per camera as stored."""
        path, demo = self.places[item.name]
        with h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE) as file:
            pictures = pictures_of(member(file, f"data/{demo}/obs"))
            return {name: self._bytes(name, pictures[name], 0, 1)[0] for name in self.plan.cameras}

    def _bytes(self, camera: str, pictures: PictureArray, first: int, last: int) -> Pictures:
        return RANGES[self.ranges[camera, pictures.number]].pictures(pictures.block(first, last))


# -- files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _File:
    """What one file holds."""

    path: Path
    info: SourceInfo
    reader: RobomimicReader
    items: list[Item]
    problems: list[str]
    questions: list[str]


def open_hdf5(path: Path, reading: ImportOptions) -> Source:
    """Open a file, or every HDF5 file of a folder.

    Raises SourceError if no file can be read, or if two files' conventions differ.
    """
    if path.is_file():
        try:
            return _joined(path, [_open_file(path, reading, label_of(path, reading), "")], [])
        except NothingReadError as error:
            raise SourceError(str(error)) from None
    paths = visible(path, HDF5_SUFFIXES, depth=1)
    if not paths:  # a folder that is named like a file
        raise SourceError(f"{path}: it is a folder without HDF5 files; name the file, or its folder")
    deeper = [file.relative_to(path).as_posix() for file in visible(path, HDF5_SUFFIXES) if file not in paths]
    stems = Counter(file.stem for file in paths)
    files: list[_File] = []
    unreadable: list[str] = []
    for place in paths:
        part = place.stem if stems[place.stem] == 1 else place.name.replace(".", "-")
        try:
            file = _open_file(place, reading, label_of(path, reading), part)
        except NothingReadError as error:
            unreadable.append(str(error))
            continue
        if files:
            _refuse_different(files, file)
        files.append(file)
    if not files:
        raise SourceError(unreadable[0])
    if deeper:
        some = ", ".join(deeper[:3]) + f" and {len(deeper) - 3} more" * (len(deeper) > 3)
        unreadable.append(
            f"{path.name}: files in folders below it are not read ({some}); import those folders too"
        )
    return _joined(path, files, unreadable)


def _refuse_different(files: list[_File], other: _File) -> None:
    """Raise SourceError if a file's conventions differ from those of the files before."""
    first = files[0]

    def conventions(file: _File) -> dict[str, Any]:
        return {
            **file.info.contract.to_json(),
            "recorded_rate": file.info.native_hz,
            "way of storing pictures": file.info.stored,
        }

    theirs = conventions(other)
    for name, mine in conventions(first).items():
        if theirs[name] != mine:
            raise SourceError(
                f"{other.path}: its {name.replace('_', ' ')} is {theirs[name]}, that of {first.path.name}"
                f" {mine}; import them one by one"
            )
    if replace(first.reader.plan, sizes={}) != replace(other.reader.plan, sizes={}):
        raise SourceError(
            f"{other.path}: its datasets are not called as those of {first.path.name}; import them one by one"
        )
    ranges = {kind: said for file in files for kind, said in file.reader.ranges.items()}
    for (camera, number), said in ranges.items():
        if (its := other.reader.ranges.get((camera, number), said)) != said:
            raise SourceError(
                f"{other.path}: the values of {camera} ({number}) range over {its}, those of"
                f" {first.path.name} over {said}; import them one by one, or say what black and white are"
                " with --picture-range"
            )


def _joined(path: Path, files: list[_File], unreadable: list[str]) -> Source:
    """Return the source of all files. A question that several files raise is asked once."""
    questions: dict[str, str] = {}
    for file in files:
        for question in file.questions:
            questions.setdefault(question.partition(": ")[2], question)
    return Source(
        info=replace(files[0].info, name=path.name),
        reader=RobomimicReader(
            plan=files[0].reader.plan,
            ranges={kind: said for file in files for kind, said in file.reader.ranges.items()},
            places={name: place for file in files for name, place in file.reader.places.items()},
        ),
        items=[item for file in files for item in file.items],
        problems=[
            *(problem for file in files for problem in file.problems),
            *(f"{problem}; left out" for problem in unreadable),
        ],
        questions=list(questions.values()),
    )


def _open_file(path: Path, reading: ImportOptions, label: str, part: str) -> _File:
    """Open one file. `part`: its name in the names and ids of its demonstrations, empty for none."""
    try:
        refuse_pointer(path)
    except SourceError as error:
        raise NothingReadError(str(error)) from None
    except OSError as error:
        raise NothingReadError(f"{path}: {cause(error)}") from None
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
    except FAULTS as error:
        raise NothingReadError(
            f"{path}: it cannot be read as HDF5 ({' '.join(str(error).split())}); was it copied whole?"
        ) from None
    with file:
        try:
            return _understand(path, file, reading, label, part)
        except FAULTS as error:
            raise NothingReadError(f"{path}: {cause(error)}") from None


def _understand(path: Path, file: Any, reading: ImportOptions, label: str, part: str) -> _File:
    data = member(file, "data")
    if not isinstance(data, h5py.Group):
        raise NothingReadError(
            f"{path}: it has no group `data` with demonstrations, as robomimic's files have"
        )
    stated = stated_conventions(data)
    found = demonstrations_of(path, file, data, reading)
    program = recording_program(path, data, reading)
    plan, proprio, action = planned(path, data, found.shapes, program, stated, reading)
    native_hz = native_rate(str(path), stated.contract.control_hz if stated else program.hz, reading)
    stored, questions = orientation(
        path.name, reading, convention="upright" if stated else None, hint=program.image_convention
    )
    if stated:
        reading = replace(reading, render_profile=reading.render_profile or stated.contract.render_profile)

    def info_with(action: tuple[str, ...], format: str) -> SourceInfo:
        return source_info(
            str(path),
            reading,
            format=format,
            name=path.name,
            label=f"{label}-{part}" if part else label,
            cameras=plan.cameras,
            sizes=plan.sizes,
            stored=stored,
            native_hz=native_hz,
            labelled=bool(plan.action),
            proprio=proprio,
            action=action,
            simulator=stated.contract.simulator if stated else program.simulator,
        )

    info = info_with(action, "robomimic HDF5")
    contents, faults = examined(
        path.name,
        found.shapes,
        lambda demo: _content(member(data, demo), found.shapes[demo], plan, info, reading),
    )
    faults = found.faults | faults
    if not contents:
        raise NothingReadError(
            f"{path}: none of its demonstrations can be imported:"
            f" {next(iter(faults.values())).removesuffix('; left out')}"
        )
    ranges, more = _ranges(path, contents.values(), reading)
    questions += more
    if not (stated and reading.deltas is None):
        largest = max(content.largest for content in contents.values())
        arm, more = action_names(path.name, action[:ARM], largest, reading)
        questions += more
        action = (*arm, *action[ARM:])
    info = info_with(action, family_of(data, next(iter(contents))))

    def describe(demo: str) -> EpisodeInfo:
        content, attributes = contents[demo], attributes_of(data, demo)
        task = reading.task or words_of(attributes.get("demoscale.task")) or program.task
        instruction = (
            reading.instruction
            or words_of(attributes.get("demoscale.instruction"))
            or words_of(json_of(attributes.get("ep_meta")).get("lang"))
            or program.instruction
            or ""
        )
        chosen = (
            sorted(plan.cameras.items()),
            stored,
            info.contract.image_size,
            tuple(plan.proprio),
            plan.hand,
        )
        its_ranges = {number: ranges[camera, number] for camera, number in content.extremes}
        if any(its_ranges[number] != ranges[camera, number] for camera, number in content.extremes):
            its_ranges = {
                f"{camera}, {number}": ranges[camera, number] for camera, number in content.extremes
            }
        return EpisodeInfo(
            rows=content.rows,
            picture_size=next(iter(plan.sizes.values())),
            labelled=content.labelled,
            task=task,
            instruction=instruction,
            content=(content.digest, chosen, its_ranges, task, instruction),
        )

    rows = {demo: shape.rows for demo, shape in found.shapes.items()}
    listing = build_items(info, {demo: rows[demo] for demo in contents}, describe)
    items = {item.name: item for item in listing.items}
    items |= {
        demo: unusable(demo, rows.get(demo, 0), info.labelled, problem) for demo, problem in faults.items()
    }
    ordered = [items[demo] for demo in found.order if demo in items]
    if not listing.instructed:
        questions.append(f"{path.name}: it does not say in words what is done; say it with --instruction")
    names = {demo: f"{part}-{demo}" if part else demo for demo in items}
    return _File(
        path=path,
        info=info,
        reader=RobomimicReader(
            plan=plan, ranges=ranges, places={name: (path, demo) for demo, name in names.items()}
        ),
        items=[replace(item, name=names[item.name]) for item in ordered],
        problems=[*found.absent, *(item.problem for item in ordered if item.problem)],
        questions=questions,
    )


# -- contents of a demonstration -----------------------------------------------------------------------------


def _content(
    group: Any, shape: DemoShape, plan: DemoPlan, info: SourceInfo, reading: ImportOptions
) -> _Content:
    """Check a demonstration and hash its content. Raises ValueError if it differs from the file's others or
    is damaged.
    """
    obs = member(group, "obs")
    missing = [name for name in plan.cameras if name not in shape.cameras]
    missing += [key for key in plan.proprio if key not in shape.widths]
    if missing:
        raise ValueError(f"obs has no {', '.join(missing)}")
    pictures = {name: pictures_of(obs)[name] for name in plan.cameras}
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
    refuse_bulk(len(info.kept(rows)), len(pictures), info.contract.image_size)
    for array in pictures.values():
        array.refuse_unreadable()

    action = vectors(member(group, plan.action), plan.action) if labelled else None
    if action is not None and plan.arm_only and np.abs(action[:, ARM : ARM + 4]).max() > 1e-6:
        raise ValueError("the base moves, which --arm-only cannot express")
    proprio = _proprio_values(obs, plan) if plan.proprio else None
    samples = [array.block(rows // 2, rows // 2 + 1) for array in pictures.values()]
    extremes = {
        (camera, array.number): (0.0, 0.0)
        if array.dataset.dtype == np.uint8 or reading.picture_range
        else array.extremes()
        for camera, array in pictures.items()
    }
    return _Content(
        rows=rows,
        labelled=labelled,
        digest=identity(
            rows,
            None if action is None else action[:, : plan.kept],
            proprio,
            success_of(group, plan.stated),
            *samples,
        ),
        largest=(
            float(np.abs(action[:, : min(plan.width, ARM) - 1]).max(initial=0)) if action is not None else 0.0
        ),
        extremes=extremes,
    )


def _refuse_different_lengths(
    group: Any, pictures: dict[str, PictureArray], plan: DemoPlan, labelled: bool
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
) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Return (camera, number type of its pictures) -> one of RANGES, decided over all of its pictures in the
    file, and questions. Raises SourceError for a range of pictures that are bytes.
    """
    extremes: dict[tuple[str, str], tuple[float, float]] = {}
    for content in contents:
        for kind, (lowest, highest) in content.extremes.items():
            before = extremes.get(kind, (lowest, highest))
            extremes[kind] = (min(before[0], lowest), max(before[1], highest))
    if reading.picture_range not in (None, "0..255") and all(number == "uint8" for _, number in extremes):
        raise SourceError(
            f"{path}: --picture-range {reading.picture_range} cannot be applied to pictures that are bytes;"
            " leave it out"
        )
    ranges, questions = {}, []
    for (camera, number), (lowest, highest) in extremes.items():
        if number == "uint8":
            ranges[camera, number] = "0..255"
            continue
        try:
            ranges[camera, number] = reading.picture_range or range_of(np.dtype(number), lowest, highest)
        except ValueError as error:
            ranges[camera, number] = "0..255"
            questions.append(
                f"{path.name}: of camera {camera} {error}; say what black and white are with --picture-range"
                f" ({', '.join(RANGES)})"
            )
    return ranges, questions


# -- values --------------------------------------------------------------------------------------------------


def _proprio_values(obs: Any, plan: DemoPlan) -> npt.NDArray[Any]:
    """Return the concatenated vectors, (L, P)."""
    rows = [vectors(member(obs, key), key) for key in plan.proprio]
    # (L, 3) axis times angle, 0 to 2 pi, to x, y, z, w: the inverse of robosuite's `quat2axisangle`, sign
    # included
    if plan.hand:
        angle = np.linalg.norm(rows[1], axis=1, keepdims=True)
        rows[1] = np.concatenate([rows[1] * np.sinc(angle / (2 * np.pi)) / 2, np.cos(angle / 2)], 1)
    return np.concatenate(rows, 1)


def success_of(group: Any, stated: bool) -> bool | None:
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


def recorded_success(group: Any, stated: bool) -> bool | None:
    """Return the success by `success_of`, else by Isaac Lab's attribute `success`; None without either.

    The attribute is no part of an episode's identity, so that episodes keep the one they were imported with.
    """
    success = success_of(group, stated)
    if success is None and not stated:
        said = attributes_of(group).get("success")
        success = bool(said) if isinstance(said, (bool, np.bool_)) else None
    return success
